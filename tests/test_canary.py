"""The pixel canary: the same on one machine whatever runs, another where pixels are others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from featurecache.commands.cache import list_spaces
from featurecache.features.store import Cache
from featurecache.images import canary, canary_memos
from featurecache.images.canary import pixel_canary, pixel_provenance
from featurecache.images.views import find_view
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.verify import verify
from featurecache.stages.cache.why import why

pytestmark = pytest.mark.usefixtures("load_once")

OTHER = "0123456789abcdef"
# Kinds of CPU, as far as settings can make one of them out of this one; and which views notice.
MACHINES = {
    "as it is": ({}, set()),
    "two threads": ({"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}, set()),
    "OpenCV without AVX2": (
        {"OPENCV_CPU_DISABLE": "AVX2,AVX512_SKX,FP16,FMA3"},
        {"color_1", "spatial_1"},
    ),
    "OpenCV without IPP": ({"OPENCV_IPP": "disabled"}, {"spatial_1"}),
    "OpenBLAS for Nehalem": ({"OPENBLAS_CORETYPE": "Nehalem"}, {"spatial_1"}),
}
PRINT = """
import json, sys
from featurecache.images.canary import pixel_canary
from featurecache.images.views import find_view
print(json.dumps({name: pixel_canary(find_view(name)) for name in sys.argv[1:]}))
"""
VIEWS = ("none", "color_1", "spatial_1")


def canaries_under(settings: dict[str, str]) -> dict[str, str]:
    command = [sys.executable, "-c", PRINT, *VIEWS]
    out = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = json.loads(out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_other_pixels_are_another_canary(machine: str) -> None:
    settings, noticing = MACHINES[machine]
    here = {name: pixel_canary(find_view(name)) for name in VIEWS}
    there = canaries_under(settings)
    differing = {name for name in VIEWS if here[name] != there[name]}
    if "AVX2" in pixel_provenance(find_view("color_1"))["opencv_ipp"]:
        assert differing == noticing
    else:  # another kind of CPU, on which fewer of the settings may matter
        assert differing <= noticing


def test_it_is_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("none", "color_1", "color_2", "spatial_1")
    found = [pixel_canary(find_view(name)) for name in names]
    assert len(set(found)) == len(names)
    pixel_canary.cache_clear()
    assert [pixel_canary(find_view(name)) for name in reversed(names)] == found[::-1]
    pixel_canary.cache_clear()
    right = canary.decode
    monkeypatch.setattr(canary, "decode", lambda *data: right(*data) ^ 1)  # another JPEG library
    assert pixel_canary(find_view("none")) != found[0]
    pixel_canary.cache_clear()


def test_a_policy_that_fails_on_small_pictures_has_one(tmp_path: Path) -> None:
    policy = tmp_path / "large.yaml"
    policy.write_text("augmenters:\n  - Crop: {px: {choice: [60]}, keep_size: false}\n")
    assert len(pixel_canary(find_view(f"{policy}_1"))) == 16


@pytest.fixture
def cache(small_data: Path, tmp_path: Path, tiny: dict[str, Any]) -> Path:
    for view in ("none", "color_1"):
        featurize(small_data, cache=tmp_path / "c", policy=view, **tiny)
    return tmp_path / "c"


def test_shards_record_what_made_their_pixels(cache: Path) -> None:
    for space in Cache(cache).spaces():
        view = find_view(space.view)
        for record in space.records:
            assert record.provenance.items() >= pixel_provenance(view).items()
        assert space.pixel_canaries == [pixel_canary(view)]
    fields = pixel_provenance(find_view("color_1"))
    assert {"python", "h5py", "scikit-image", "numba", "libjpeg_turbo"} < fields.keys()
    assert {"opencv_cpu", "opencv_ipp", "numpy_blas"} < fields.keys()
    assert all(fields.values())


@pytest.mark.slow
def test_the_number_of_workers_is_no_part_of_it(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    shards = []
    for workers in (0, 2):
        cache = tmp_path / f"c{workers}"
        featurize(small_data, cache=cache, policy="color_1", **{**tiny, "workers": workers})
        shards.append({path.name for path in cache.glob("spaces/*/*.h5")})  # named by their bytes
    assert shards[0] == shards[1]


def here_is_another_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(canary, "pixel_canary", lambda view: OTHER)
    patch.setattr(canary_memos, "pixel_canary", lambda view: OTHER)


def test_a_fill_on_another_kind_of_machine_is_said_and_recorded(
    cache: Path,
    small_data: Path,
    tmp_path: Path,
    write_dataset: Any,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = write_dataset(tmp_path / "more", {"train/cat": 3, "train/dog": 3}, seed=5)
    own = pixel_canary(find_view("color_1"))
    here_is_another_machine(monkeypatch)
    settings = {name: tiny[name] for name in ("backbone", "input_size")}

    (row,) = why(small_data, policy="color_1", cache=cache, **settings)
    assert row.note == f"pixel canaries {own}; this machine's is {OTHER}"
    found = verify(cache, recompute=2, data=small_data, engine="torch-cpu")
    assert {drift.note[:15] for drift in found.drift} == {"pixel canaries "}

    hits = featurize(small_data, cache=cache, policy="color_1", **tiny)
    assert (hits.computed, hits.notes) == (0, [])
    result = featurize(more, cache=cache, policy="color_1", **tiny)
    assert result.computed == 6
    (note,) = result.notes
    assert note.startswith("view color_1, backbone efficientnet_lite0: its rows come from machines")
    both = sorted([own, OTHER])
    assert ", ".join(both) in note
    (listed,) = (space for space in ls(cache) if space["view"] == "color_1")
    assert listed["pixel_canaries"] == both
    printed = CliRunner().invoke(list_spaces, ["--cache", str(cache)])
    words = " ".join(printed.output.split())
    assert f"compute different pixels (canaries {both[0]}, {both[1]})" in words


def test_kept_pictures_bring_the_canary_of_their_machine(
    small_data: Path,
    tmp_path: Path,
    write_dataset: Any,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "c"
    own = pixel_canary(find_view("color_1"))
    with monkeypatch.context() as patch:
        here_is_another_machine(patch)
        augment(small_data, cache=cache, policy="color_1", workers=0)
    featurize(small_data, cache=cache, policy="color_1", **tiny)
    more = write_dataset(tmp_path / "more", {"train/cat": 3}, seed=5)
    assert {tuple(space.pixel_canaries) for space in Cache(cache).spaces()} == {(OTHER,)}
    result = featurize(more, cache=cache, policy="color_1", **tiny)
    (vectors,) = (space for space in Cache(cache).spaces() if space.backbone)
    assert vectors.pixel_canaries == sorted([own, OTHER])
    assert len(result.notes) == 1


def test_hostile_provenance_is_not_shown(cache: Path) -> None:
    record = Cache(cache).spaces()[0].records[0]
    lies = record.model_copy(update={"provenance": {"pixel_canary": "\x1b[31m x" + OTHER}})
    assert lies.pixel_canaries == set()
