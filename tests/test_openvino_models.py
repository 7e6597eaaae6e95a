"""Stored models of OpenVINO: the same vectors bit for bit, or no stored model."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from featurecache.features import openvino_models
from featurecache.features.backbones import Backbone, build_backbone, load_backbone
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.network_sources import module_source
from featurecache.storage import memos
from featurecache.training.tensors import digest_of_tensors

pytest.importorskip("openvino", reason="not built for this platform")

TINY = "test_efficientnet.r160_in1k"


@pytest.fixture(autouse=True)
def place(memo_folder: Path) -> Path:
    return memo_folder


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    state = build_backbone(TINY, "random", input_size=32).module.state_dict()
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / "w.safetensors")
    loaded = load_backbone(TINY, tmp_path / "w.safetensors", input_size=32)
    assert loaded.network.basis is not None
    return loaded


CONVERTED: dict[str, Any] = {}  # digest of weights -> model; to convert one takes a second


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    convert = openvino_models._convert

    def counted(backbone: Backbone, shape: tuple[int, ...]) -> Any:
        names.append(backbone.name)
        digest = digest_of_tensors(backbone.module)
        if digest not in CONVERTED:
            CONVERTED[digest] = convert(backbone, shape)
        return CONVERTED[digest].clone()

    monkeypatch.setattr(openvino_models, "_convert", counted)
    return names


def vectors(backbone: Backbone) -> np.ndarray:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    return run_rows(open_engine(backbone, "openvino"), pixels)


def stored(place: Path) -> Path:
    (path,) = place.glob("openvino-*.model")
    return path


def test_a_stored_model_gives_the_same_bits(
    backbone: Backbone, conversions: list[str], tmp_path: Path
) -> None:
    first = vectors(backbone)
    again = load_backbone(TINY, tmp_path / "w.safetensors", input_size=32)
    assert np.array_equal(vectors(again), first)
    assert conversions == [TINY]
    assert "module" not in vars(again)  # neither torch nor timm was needed
    unmarked = dataclasses.replace(backbone, network=module_source(backbone.module))
    assert np.array_equal(vectors(unmarked), first)
    assert conversions == [TINY, TINY]


def test_a_replaced_network_is_not_taken_for_the_stored_one(
    backbone: Backbone, place: Path, conversions: list[str]
) -> None:
    vectors(backbone)
    other = build_backbone(TINY, "random", input_size=32).module
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
    replaced = dataclasses.replace(backbone, network=module_source(other))
    assert not np.array_equal(vectors(replaced), vectors(backbone))
    assert conversions == [TINY, TINY]
    assert stored(place)  # and the replaced one is not stored


def test_a_model_that_gives_other_bits_when_it_is_read_is_not_stored(
    backbone: Backbone, place: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_models, "_DIVISION_STAYS", "nothing_of_the_kind")
    vectors(backbone)
    assert list(place.glob("openvino-*")) == []


def test_a_stored_model_that_gives_other_bits_here_is_converted_again(
    backbone: Backbone, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine of another kind that shares the home folder."""
    first = vectors(backbone)
    with monkeypatch.context() as patch:
        patch.setattr(openvino_models._ModelMemo, "_probe", lambda self, compiled: "0" * 64)
        assert np.array_equal(vectors(backbone), first)
    assert conversions == [TINY, TINY]
    vectors(backbone)
    assert conversions == [TINY, TINY, TINY]  # that probe was stored; now it is not the right one


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: b"{}\n" + data.partition(b"\n")[2],
        lambda data: data.replace(b'"xml_size": ', b'"xml_size": 9'),
        lambda data: data.replace(b'"format": 1', b'"format": "1"'),
        lambda data: data.replace(b"<net ", b"<nut ", 1),
        lambda data: data[:-400] + bytes(400),
    ],
)
def test_a_stored_model_that_does_not_fit_is_not_used(
    change: Any, backbone: Backbone, place: Path, conversions: list[str]
) -> None:
    first = vectors(backbone)
    name = stored(place).name
    data = memos.read_memo(name, 1 << 30)
    assert data is not None and change(data) != data
    assert memos.write_memo(name, change(data))
    assert np.array_equal(vectors(backbone), first)
    assert conversions == [TINY, TINY]


@pytest.mark.slow
def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """A process that converts a network opens no connection and loads no telemetry."""
    script = """
import socket, sys
def refuse(*arguments):
    raise SystemExit(f"a connection to {arguments[1:]}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from featurecache.features import openvino_models
from featurecache.features.backbones import build_backbone
backbone = build_backbone("test_efficientnet", "random", input_size=32)
openvino_models.compile_backbone(backbone, 2, "f32")
assert "openvino" in sys.modules
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry.")))
"""
    home = {**os.environ, "HOME": str(tmp_path), "FEATURECACHE_MEMOS": str(tmp_path / "memos")}
    home.pop("CI", None)  # where it stays silent
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=home, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr
