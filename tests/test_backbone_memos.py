"""Memos of backbones: the same facts as the network itself gives, or none."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.features import backbone_memos, backbones
from featurecache.features.backbones import build_backbone, load_backbone
from featurecache.storage import file_marks, memos

TINY = "test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def place(memo_folder: Path) -> Path:
    return memo_folder


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in build_backbone(TINY, "random").module.state_dict().items()}


@pytest.fixture
def weights(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks that were really built."""
    names: list[str] = []
    build: Callable[..., Any] = backbones.build_backbone

    def counted(name: str, *given: Any, **more: Any) -> Any:
        names.append(name)
        return build(name, *given, **more)

    monkeypatch.setattr(backbones, "build_backbone", counted)
    return names


def test_the_second_load_builds_nothing_until_the_network_is_needed(
    weights: Path, builds: list[str]
) -> None:
    first = load_backbone(TINY, weights, input_size=32)
    second = load_backbone(TINY, weights, input_size=32)
    assert builds == [TINY]
    assert second == first
    assert (second.key(), second.dim, second.notes) == (first.key(), first.dim, first.notes)
    assert second.network.basis == first.network.basis is not None
    state = second.module.state_dict()
    assert builds == [TINY, TINY]
    assert all(torch.equal(t, state[n]) for n, t in first.module.state_dict().items())


def test_a_remembered_backbone_takes_its_network_to_a_worker(
    weights: Path, builds: list[str]
) -> None:
    load_backbone(TINY, weights, input_size=32)
    sent = pickle.loads(pickle.dumps(load_backbone(TINY, weights, input_size=32)))
    assert builds == [TINY, TINY]
    assert isinstance(sent.module, torch.nn.Module)
    assert builds == [TINY, TINY]


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [{"input_size": 64}, {"crop": 0.5}, {"interpolation": "nearest"},
     {"layer": "features"}, {"layer": "features", "pooling": "max"}],
)  # fmt: skip
def test_another_setting_has_another_memo(
    setting: dict[str, Any], weights: Path, builds: list[str]
) -> None:
    plain = load_backbone(TINY, weights, input_size=32)
    other = load_backbone(TINY, weights, **{"input_size": 32, **setting})
    assert len(builds) == 2
    assert other.key() != plain.key()
    again = load_backbone(TINY, weights, **{"input_size": 32, **setting})
    assert len(builds) == 2
    assert again == other


def test_changed_weights_are_seen_though_time_and_size_are_the_same(
    weights: Path, tensors: dict[str, torch.Tensor], builds: list[str]
) -> None:
    first = load_backbone(TINY, weights, input_size=32)
    before = weights.stat()
    changed = {n: t.clone() for n, t in tensors.items()}
    next(t for t in changed.values() if t.is_floating_point()).view(-1)[0] += 1
    save_file(changed, weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    second = load_backbone(TINY, weights, input_size=32)
    assert builds == [TINY, TINY]
    assert second.weights != first.weights


def test_a_removed_file_is_an_error_again(weights: Path) -> None:
    load_backbone(TINY, weights, input_size=32)
    weights.unlink()
    with pytest.raises(BadInput, match="no such file"):
        load_backbone(TINY, weights, input_size=32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("installed_versions", lambda *names: dict.fromkeys(names, "99")),
        ("marks_below", lambda folder, suffixes: [[str(folder), "other"]]),
    ],
)
def test_another_installation_has_no_memo(
    name: str, value: object, weights: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_backbone(TINY, weights, input_size=32)
    monkeypatch.setattr(backbone_memos, name, value)
    load_backbone(TINY, weights, input_size=32)
    assert builds == [TINY, TINY]


def test_what_can_not_be_marked_has_no_memo(
    weights: Path, builds: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_marks, "QUIET_SECONDS", 3600 * 24 * 365 * 50)
    for source in (weights, "random", weights, "random"):
        assert load_backbone(TINY, source, input_size=32).network.basis is None
    assert len(builds) == 4
    assert not place.exists()


def test_weights_that_change_while_they_are_read_leave_no_memo(
    weights: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = backbones.build_backbone

    def changing(*given: Any, **more: Any) -> Any:
        backbone = build(*given, **more)
        os.utime(weights)
        return backbone

    monkeypatch.setattr(backbones, "build_backbone", changing)
    assert load_backbone(TINY, weights, input_size=32).network.basis is None
    assert not place.exists()


def memo_file(place: Path) -> Path:
    (path,) = place.glob("backbone-*.json")
    return path


def rewrite(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a memo as somebody would who knows its checksum."""
    name = memo_file(place).name
    memo = json.loads(memos.read_memo(name, 1 << 20) or b"")
    change(memo)
    assert memos.write_memo(name, json.dumps(memo).encode())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda memo: memo.update(format=2),
        lambda memo: memo.update(basis="0" * 64),
        lambda memo: memo.update(more=1),
        lambda memo: memo.pop("facts"),
        lambda memo: memo["facts"].pop("dim"),
        lambda memo: memo["facts"].update(dim=-1),
        lambda memo: memo["facts"].update(dim="5"),
        lambda memo: memo["facts"].update(weights="short"),
        lambda memo: memo["facts"].update(crop=7.0),
        lambda memo: memo["facts"].update(mean=[0.0] * 1000),
    ],
)
def test_a_memo_that_does_not_fit_is_not_used(
    change: Callable[[dict[str, Any]], object], weights: Path, builds: list[str], place: Path
) -> None:
    load_backbone(TINY, weights, input_size=32)
    rewrite(place, change)
    load_backbone(TINY, weights, input_size=32)
    assert builds == [TINY, TINY]


def test_a_memo_with_another_digest_is_refused_when_the_network_is_loaded(
    weights: Path, place: Path
) -> None:
    true = load_backbone(TINY, weights, input_size=32)
    rewrite(place, lambda memo: memo["facts"].update(weights="0" * 64))
    wrong = load_backbone(TINY, weights, input_size=32)
    with pytest.raises(FeatureCacheError, match=r"a memo of it .* did not fit") as error:
        wrong.module  # noqa: B018
    assert "weights: " in str(error.value)
    assert "run the same command again" in str(error.value)
    assert load_backbone(TINY, weights, input_size=32) == true


def test_weights_of_the_hub_have_no_memo(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backbones._weights_source(TINY, None) == (None, "")
    path, pin = backbones._weights_source("efficientnet_lite0", None)
    assert path is not None and path.is_file()
    assert len(pin) == 64
