"""Doctor: finds this machine fit, and finds what is planted to be wrong."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurecache.errors import BackboneUnavailable, FeatureCacheError
from featurecache.features import backbones
from featurecache.features.engines import engines_here
from featurecache.features.preprocess import Preprocess
from featurecache.stages.looking import doctor as room
from featurecache.stages.looking.doctor import Check, doctor, known_image


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known image takes seconds for each engine; where it is not the matter it is left out."""
    monkeypatch.setattr(room, "known_image", lambda engine: f"{engine} looked")


@pytest.mark.slow
def test_this_machine_is_fit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "featurecache", "doctor", "--json", "--cache", str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = by_name([Check(**row) for row in json.loads(done.stdout)])
    assert all(check.ok for check in checks.values())
    for name, precisions in engines_here().items():
        assert checks[f"engine {name}"].found == "/".join(precisions)
        assert "a daisy with probability 0.3" in checks[f"known image, {name}"].found
    assert checks["torch"].found == importlib.metadata.version("torch")
    assert "efficientnet_lite0" in checks["weights at hand"].found
    assert "0 spaces" in checks[f"cache {tmp_path / 'c'}"].found
    assert not (tmp_path / "c").exists()  # looking makes nothing


@pytest.mark.slow
def test_known_image() -> None:
    assert known_image("torch-cpu") == "a daisy with probability 0.323, expected 0.323"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's usual ones
        ((0.0,) * 3, (1.0,) * 3),  # none
    ],
)
def test_wrong_normalisation_is_found(monkeypatch: pytest.MonkeyPatch, mean: Any, std: Any) -> None:
    right = backbones.preprocess_of

    def wrong(*given: Any) -> Preprocess:
        return dataclasses.replace(right(*given), mean=mean, std=std)

    monkeypatch.setattr(backbones, "preprocess_of", wrong)
    with pytest.raises(
        FeatureCacheError, match="weights, preprocessing or normalisation are wrong"
    ):
        known_image("torch-cpu")


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"interpolation": "nearest"}, {"input_size": 112}])
def test_wrong_preprocessing_is_found(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    right = backbones.preprocess_of
    monkeypatch.setattr(
        backbones, "preprocess_of", lambda *given: dataclasses.replace(right(*given), **change)
    )
    with pytest.raises(FeatureCacheError, match=r"expected 0\.323: weights, preprocessing"):
        known_image("torch-cpu")


@pytest.mark.slow
def test_random_weights_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_load_packaged", lambda name, module: None)
    with pytest.raises(
        FeatureCacheError, match="weights, preprocessing or normalisation are wrong"
    ):
        known_image("torch-cpu")


def test_what_fails_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def known(engine: str) -> str:
        if engine == "openvino":
            raise RuntimeError("no such kernel")
        raise BackboneUnavailable("the weights are gone")

    def imgaug() -> str:
        raise AttributeError("np.sctypes was removed in the NumPy 2.0 release")

    monkeypatch.setattr(room, "known_image", known)
    monkeypatch.setattr(room, "_imgaug", imgaug)
    monkeypatch.setattr(room, "engines_here", lambda: {"torch-cpu": ("f32",), "openvino": ("f32",)})
    checks = by_name(doctor(tmp_path))
    assert {name for name, check in checks.items() if not check.ok} == {
        "imgaug imports",
        "known image, torch-cpu",
        "known image, openvino",
    }
    assert checks["known image, torch-cpu"].found == "the weights are gone"
    assert checks["known image, openvino"].found == "RuntimeError: no such kernel"
    assert "np.sctypes" in checks["imgaug imports"].found


def test_missing_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("openvino", "h5py"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    checks = by_name(doctor(tmp_path))
    assert checks["h5py"] == Check(name="h5py", ok=False, found="not installed")
    assert checks["openvino"] == Check(
        name="openvino", ok=True, found="not installed"
    )  # torch can do its work


def test_no_weights_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None) -> None:
    monkeypatch.setattr(room, "alias_rows", lambda: [{"name": "a", "state": "not here"}])
    assert by_name(doctor(tmp_path))["weights at hand"] == Check(
        name="weights at hand", ok=False, found="none"
    )


def test_a_cache_that_cant_be_used(tmp_path: Path, quick: None) -> None:
    (tmp_path / "file").write_text("no cache")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(b"x")
    for path in (tmp_path / "file", tmp_path / "photos"):
        checks = by_name(doctor(path))
        bad = [check for check in checks.values() if not check.ok]
        assert [check.name for check in bad] == [f"cache {path}"]
        assert path.name in bad[0].found


def test_a_cache_that_cant_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root can write anywhere
    check = by_name(doctor(tmp_path / "not/yet"))[f"cache {tmp_path / 'not/yet'}"]
    assert check == Check(name=check.name, ok=False, found=f"{tmp_path} can't be written")
