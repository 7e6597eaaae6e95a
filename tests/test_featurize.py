"""Featurize: the same bytes whatever the workers, the interruptions, the place on disk."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import open_engine
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import decode
from featurecache.images.samples import items_of
from featurecache.images.views import find_view
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import Featurized, featurize

pytestmark = pytest.mark.usefixtures("load_once")
Write = Callable[..., Path]
VIEWS = ["none", "color_1"]


def hashes(result: Featurized) -> list[Any]:
    return [space["root_hash"] for space in result.spaces]


def shard_files(cache: Path) -> dict[str, bytes]:
    """Every data file of a cache, by its path in it."""
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in cache.rglob("*.h5")}


def rows_of(data: Path, cache: Path, view: str = "none") -> dict[str, bytes]:
    """The vector of each readable sample, by its id."""
    dataset = open_dataset(data)
    items, _ = items_of(dataset.samples)
    (space,) = (s for s in Cache(cache).spaces() if s.view == view and s.backbone)
    samples = [(s.id, i) for s, i in zip(dataset.samples, items, strict=True) if i is not None]
    vectors, _ = space.vectors([i for _, i in samples])
    return {name: row.tobytes() for (name, _), row in zip(samples, vectors, strict=True)}


def the_space(cache: Path, view: str = "none") -> Space:
    (space,) = (s for s in Cache(cache).spaces() if s.view == view and s.backbone)
    return space


@pytest.fixture
def data(tmp_path: Path, write_dataset: Write) -> Path:
    return write_dataset(tmp_path / "data", {"train/cat": 9, "train/dog": 8, "val/dog": 3})


# ---- what it says ----


def test_what_featurize_says(data: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    calls = []
    made = featurize(
        data,
        policy=VIEWS,
        cache=tmp_path / "cache",
        **tiny,
        progress=lambda done, total, what: (
            None if what == "hash images" else calls.append((done, total))
        ),
    )
    assert (made.computed, made.hits, made.failed, made.least_cosine) == (40, 0, [], {})
    assert made.images_per_second == pytest.approx(40 / made.seconds, rel=0.05)
    assert made.bound in ("decode", "augment", "network", "disk")
    assert all(value > 0 for value in made.spent.values())
    assert [(s["view"], s["backbone"], s["rows"]) for s in made.spaces] == [
        ("none", "efficientnet_lite0", 20),
        ("color_1", "efficientnet_lite0", 20),
    ]
    again = featurize(data, policy=VIEWS, cache=tmp_path / "cache", **tiny)
    assert (again.computed, again.hits) == (0, 40)
    assert again.spaces == made.spaces


def test_rows_are_what_the_engine_gives(data: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    """The uncached truth: decode, view, preprocess and network, by hand."""
    featurize(data, policy=VIEWS, cache=tmp_path / "cache", **tiny)
    backbone = load_backbone(tiny["backbone"], input_size=32)
    engine = open_engine(backbone, "torch-cpu")
    samples = open_dataset(data).samples
    items, _ = items_of(samples)
    for name in VIEWS:
        view = find_view(name)
        pixels = np.zeros((32, 32, 32, 3), np.uint8)  # 20 rows: two micro-batches of 16
        for row, (sample, item) in enumerate(zip(samples, items, strict=True)):
            assert item is not None
            pixels[row] = backbone.preprocess(view.picture(decode(sample.read()), item))
        expected = engine.start(pixels)()[:20]
        found, fine = the_space(tmp_path / "cache", name).vectors([i for i in items if i])
        assert fine.all() and found.tobytes() == expected.tobytes()
    assert len(set(rows_of(data, tmp_path / "cache").values())) == 20


# ---- the same bytes ----


@pytest.mark.slow
def test_the_number_of_workers_never_shows(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    made = {}
    for workers in (0, 1, 2, 4):
        cache = tmp_path / f"cache{workers}"
        arguments = tiny | {"workers": workers}
        result = featurize(data, policy=VIEWS, cache=cache, shard_rows=6, **arguments)
        made[workers] = hashes(result), shard_files(cache)
    assert len(made[0][1]) == 8
    assert made[1] == made[2] == made[4] == made[0]


def test_a_copy_elsewhere_has_the_same_rows(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    there = tmp_path / "else where" / "copy"
    shutil.copytree(data, there)
    for path in there.rglob("*.png"):
        os.utime(path, (1, 1))
    first = featurize(data, policy=VIEWS, cache=tmp_path / "a", **tiny)
    other = featurize(there, policy=VIEWS, cache=tmp_path / "b", **tiny)
    assert hashes(first) == hashes(other)
    assert shard_files(tmp_path / "a") == shard_files(tmp_path / "b")
    again = featurize(there, policy=VIEWS, cache=tmp_path / "a", **tiny)
    assert (again.computed, again.hits) == (0, 40)


def test_relabelling_computes_nothing(data: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    first = featurize(data, cache=tmp_path / "cache", **tiny)
    shutil.move(data / "train/cat/000.png", data / "train/dog/moved.png")
    shutil.move(data / "train/cat", data / "train/owl")
    again = featurize(data, cache=tmp_path / "cache", **tiny)
    assert (again.computed, again.hits) == (0, 20)
    assert hashes(again) == hashes(first)


@pytest.mark.slow
def test_two_backbones_and_views_at_once_are_those_one_by_one(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    names = ["efficientnet_lite0", "efficientnet_lite1"]
    rest = {k: v for k, v in tiny.items() if k != "backbone"}
    together = featurize(
        data, policy=VIEWS, backbone=names, cache=tmp_path / "a", shard_rows=9, **rest
    )
    assert together.computed == 80
    one_by_one: list[Any] = []
    for view in VIEWS:
        for name in names:
            made = featurize(
                data, policy=view, backbone=name, cache=tmp_path / "b", shard_rows=9, **rest
            )
            assert made.computed == 20
            one_by_one += hashes(made)
    assert hashes(together) == one_by_one and len(set(one_by_one)) == 4
    assert shard_files(tmp_path / "a") == shard_files(tmp_path / "b")


def test_kept_pictures_give_the_same_bytes(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    on_the_fly = featurize(data, policy=VIEWS, cache=tmp_path / "a", **tiny)
    augment(data, policy="color_1", cache=tmp_path / "b", workers=0)
    staged = featurize(data, cache=tmp_path / "b", **tiny)
    assert hashes(staged) == hashes(on_the_fly)
    vectors = set(shard_files(tmp_path / "a"))
    both = shard_files(tmp_path / "b")
    assert {name: both[name] for name in vectors} == shard_files(tmp_path / "a")
    assert len(both) == len(vectors) + 1


# ---- only what is missing ----


def test_added_images_alone_are_computed(
    data: Path, tmp_path: Path, tiny: dict[str, Any], write_dataset: Write
) -> None:
    cache = tmp_path / "cache"
    featurize(data, cache=cache, **tiny)
    before, rows = shard_files(cache), rows_of(data, cache)
    write_dataset(data, {"train/new": 3}, seed=7)
    (data / "train/cat/005.png").unlink()
    grown = featurize(data, cache=cache, **tiny)
    assert (grown.computed, grown.hits) == (3, 19)
    after = shard_files(cache)
    assert len(after) == len(before) + 1
    assert {name: after[name] for name in before} == before
    now = rows_of(data, cache)
    assert len(now) == 22
    assert all(now[name] == row for name, row in rows.items() if name in now)


def test_duplicates_are_computed_once(data: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    for number in range(5):
        shutil.copy(data / "train/cat/000.png", data / f"train/cat/copy{number}.png")
    made = featurize(data, cache=tmp_path / "cache", **tiny)
    assert (made.computed, made.hits, made.spaces[0]["rows"]) == (20, 0, 20)
    rows = rows_of(data, tmp_path / "cache")
    assert rows["train/cat/copy3.png"] == rows["train/cat/000.png"] != rows["train/cat/001.png"]


def test_another_dataset_shares_what_is_held(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    (tmp_path / "some.csv").write_text("path,label\ndata/train/cat/003.png,x\n")
    featurize(data, cache=tmp_path / "cache", **tiny)
    made = featurize(tmp_path / "some.csv", cache=tmp_path / "cache", **tiny)
    assert (made.computed, made.hits) == (0, 1)


def test_another_shard_size_goes_on_with_the_same_rows(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    stopped: list[int] = []

    def stop(done: int, total: int, what: str) -> None:
        stopped.append(done)
        if done > 8 and what != "hash images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        featurize(data, cache=cache, shard_rows=8, **tiny, progress=stop)
    assert len(the_space(cache).rows) == 8
    made = featurize(data, cache=cache, shard_rows=5, **tiny)
    assert (made.computed, made.hits) == (12, 8)
    assert sorted(len(record.item_list) for record in the_space(cache).records) == [2, 5, 5, 8]


# ---- killed ----

KILLED = """
import sys
from featurecache.stages.cache import featurize
featurize.featurize(
    sys.argv[1], policy=["none", "color_1"], cache=sys.argv[2], backbone="efficientnet_lite0",
    input_size=32, engine="torch-cpu", workers=1, shard_rows=2,
    progress=lambda done, total, what: print(done, flush=True),
)
"""


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bytes(
    tmp_path: Path, tiny: dict[str, Any], write_dataset: Write
) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 16, "train/dog": 15})
    undisturbed = featurize(data, policy=VIEWS, cache=tmp_path / "a", shard_rows=2, **tiny)
    rng = random.Random(0)
    arguments = [sys.executable, "-c", KILLED, str(data), str(tmp_path / "b")]
    held = [0]
    for _ in range(3):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            # A line for each shard, after two at the start: so after one shard or some more.
            for _ in range(rng.randint(4, 7)):
                running.stdout.readline()
            time.sleep(rng.random() * 0.03)
            running.kill()
        assert running.returncode == -9
        space = [len(s.rows) for s in Cache(tmp_path / "b").spaces()]
        held.append(sum(space))
    assert held == sorted(held) and 0 < held[-1] < 62
    resumed = featurize(data, policy=VIEWS, cache=tmp_path / "b", shard_rows=2, **tiny)
    assert (resumed.hits, resumed.computed) == (held[-1], 62 - held[-1])
    assert hashes(resumed) == hashes(undisturbed)
    named = {record.file for s in Cache(tmp_path / "b").spaces() for record in s.records}
    found = {n: b for n, b in shard_files(tmp_path / "b").items() if Path(n).name in named}
    assert found == shard_files(tmp_path / "a")


# ---- images that fail ----


def broken(data: Path) -> Path:
    """A picture cut off in its midst, in place of the fourth one of its class."""
    path = data / "train/cat/003.png"
    path.write_bytes(path.read_bytes()[:-30])
    return path


def test_a_truncated_image_is_listed_and_keeps_its_slot(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    broken(data)
    shutil.copytree(data, tmp_path / "twin")
    made = featurize(data, policy=VIEWS, cache=tmp_path / "cache", **tiny)
    (failed,) = made.failed
    assert failed["path"] == "train/cat/003.png" and "truncated" in failed["reason"]
    assert (made.computed, made.spaces[0]["rows"]) == (40, 20)
    items, _ = items_of(open_dataset(data).samples)
    for view in VIEWS:
        vectors, fine = the_space(tmp_path / "cache", view).vectors([i for i in items if i])
        assert np.flatnonzero(~fine).tolist() == [3]
        assert not vectors[3].any() and vectors[[0, 1, 2, 4, 19]].any(axis=1).all()
    again = featurize(data, policy=VIEWS, cache=tmp_path / "cache", **tiny)
    assert (again.computed, again.failed) == (0, made.failed)
    # Its neighbours in the micro-batch come out as ever: the bad one's slot is zeros.
    twin = featurize(tmp_path / "twin", policy=VIEWS, cache=tmp_path / "b", **tiny)
    assert hashes(twin) == hashes(made)


def test_the_neighbours_of_a_bad_image_come_out_right(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    featurize(data, cache=tmp_path / "good", **tiny)
    good = rows_of(data, tmp_path / "good")
    broken(data)
    featurize(data, cache=tmp_path / "bad", **tiny)
    bad = rows_of(data, tmp_path / "bad")
    for name in set(good) - {"train/cat/003.png"}:
        a, b = (np.frombuffer(rows[name], np.float32) for rows in (good, bad))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not np.frombuffer(bad["train/cat/003.png"], np.float32).any()


def test_a_disguised_image_fails_and_a_repaired_one_is_new(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    path = data / "train/dog/000.png"
    whole = path.read_bytes()
    path.write_bytes(b"GIF89a no picture at all")
    made = featurize(data, cache=tmp_path / "cache", **tiny)
    assert [row["path"] for row in made.failed] == ["train/dog/000.png"]
    path.write_bytes(whole)
    again = featurize(data, cache=tmp_path / "cache", **tiny)
    assert (again.computed, again.hits, again.failed) == (1, 19, [])


def test_all_images_bad(tmp_path: Path, tiny: dict[str, Any]) -> None:
    (tmp_path / "data/cat").mkdir(parents=True)
    for n in range(3):
        (tmp_path / f"data/cat/{n}.png").write_bytes(b"bad %d" % n)
    made = featurize(tmp_path / "data", policy=VIEWS, cache=tmp_path / "cache", **tiny)
    assert (len(made.failed), made.computed) == (3, 6)
    _, fine = the_space(tmp_path / "cache").vectors(list(the_space(tmp_path / "cache").rows))
    assert not fine.any()


def test_an_unreadable_file_is_listed(data: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    (data / "val/dog/gone.png").symlink_to(tmp_path / "gone.png")
    made = featurize(data, cache=tmp_path / "cache", **tiny)
    assert made.failed == [
        {"path": "val/dog/gone.png", "reason": "a broken link; repair or remove it"}
    ]
    assert (made.computed, made.spaces[0]["rows"]) == (20, 20)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_edited_meanwhile_is_left_to_the_next_run(
    data: Path, tmp_path: Path, tiny: dict[str, Any], workers: int
) -> None:
    path = data / "train/dog/007.png"  # in the second shard
    edited = np.zeros((12, 12, 3), np.uint8)

    def edit(done: int, total: int, what: str) -> None:
        if what.startswith("loading"):
            Image.fromarray(edited).save(path)

    arguments = tiny | {"workers": workers}
    made = featurize(data, cache=tmp_path / "cache", shard_rows=10, **arguments, progress=edit)
    assert made.failed == [
        {"path": "train/dog/007.png", "reason": "was edited since it was listed"}
    ]
    assert made.notes == ["1 image removed or edited during the work; rerun the command"]
    space = the_space(tmp_path / "cache")
    assert (made.computed, len(space.rows)) == (19, 19)
    again = featurize(data, cache=tmp_path / "cache", shard_rows=10, **tiny)
    assert (again.computed, again.hits) == (1, 19)
    fresh = featurize(data, cache=tmp_path / "fresh", shard_rows=10, **tiny)
    assert hashes(again) == hashes(fresh)


def test_a_file_removed_meanwhile_is_listed(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    path = data / "train/dog/007.png"
    made = featurize(
        data,
        cache=tmp_path / "cache",
        **tiny,
        progress=lambda *_: path.unlink(missing_ok=True),
    )
    (row,) = made.failed
    assert row["path"] == "train/dog/007.png" and "no longer be read (No such file" in row["reason"]
    assert made.computed == 19


# ---- said before any work ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "colour_1"}, "unknown policy 'colour'; nearest: color"),
        ({"policy": "color_0"}, "draws are counted from 1"),
        ({"backbone": "efficientnet_lite9"}, "nearest: .*efficientnet_lite0"),
        ({"engine": "openvin"}, "unknown engine 'openvin'; nearest: openvino"),
        ({"precision": "f16"}, "unknown precision 'f16'; nearest: .*fp16"),
        ({"workers": -1}, "workers -1"),
        ({"seed": -1}, "seed -1"),
        ({"shard_rows": 0}, "shard rows 0"),
        ({"input_size": 0}, "input"),
        ({"crop": 1.2}, "crop"),
        ({"interpolation": "bicubi"}, "nearest: bicubic"),
    ],
)
def test_bad_arguments_touch_nothing(
    data: Path, tmp_path: Path, tiny: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        featurize(data, cache=tmp_path / "cache", **(tiny | change))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("stage", ["featurize", "augment"])
@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_cache_that_goes_away_meanwhile_is_not_made_again(
    small_data: Path, tmp_path: Path, tiny: dict[str, Any], stage: str, how: str
) -> None:
    cache = tmp_path / "cache"

    def progress(done: int, _total: int, _what: str) -> None:
        if done >= 24 and cache.exists():
            if how == "renamed":
                cache.rename(tmp_path / "elsewhere")
            else:
                shutil.rmtree(cache)

    with pytest.raises(FeatureCacheError, match=r"is no longer a cache: it was removed or renamed"):
        if stage == "featurize":
            featurize(small_data, cache=cache, shard_rows=8, progress=progress, **tiny)
        else:
            augment(
                small_data, policy="color_1", cache=cache, shard_rows=8, workers=0,
                progress=progress,
            )  # fmt: skip
    assert not cache.exists()
    if how == "renamed":
        assert sum(space.count for space in Cache(tmp_path / "elsewhere").spaces()) >= 16


def test_a_reason_that_all_views_share_is_listed_once(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    (data / "train/cat/003.png").write_bytes(b"<html>404 Not Found")
    (failed,) = featurize(data, policy=VIEWS, cache=tmp_path / "cache", **tiny).failed
    assert (
        failed["reason"].startswith("HTML page; expected") and failed["reason"].count("HTML") == 1
    )


# ---- an image that fails in one view ----


def test_an_image_that_is_too_long_in_one_view_fails_there_alone(
    data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    policy = tmp_path / "narrow.yaml"
    policy.write_text("augmenters:\n  - CropToFixedSize: {width: 2, height: 4000}\n")
    strip = data / "train/cat/strip.png"
    Image.new("RGB", (12, 1200), (9, 90, 30)).save(strip)
    views = ["none", f"{policy}"]
    reason = "view narrow_1: 2x1200 is longer than 256 times its width"
    fly, kept = tmp_path / "fly", tmp_path / "kept"
    made = featurize(data, policy=views, cache=fly, shard_rows=64, **tiny)
    assert made.failed == [{"path": "train/cat/strip.png", "reason": reason}]
    assert made.computed == 42
    pictures = augment(data, policy=views, cache=kept, workers=0)
    assert pictures.failed == made.failed
    again = featurize(data, policy=views, cache=kept, **tiny)
    assert again.failed == made.failed and hashes(again) == hashes(made)
    failed = {space.view: len(space.failed) for space in Cache(fly).spaces()}
    assert failed == {"none": 0, "narrow_1": 1}
