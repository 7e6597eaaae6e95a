"""Diff: missing, extra and drifted rows of two caches, counted row by row."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import BadInput, DamagedCache
from featurecache.features.store import Cache
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.diff import diff
from featurecache.stages.cache.featurize import featurize
from tests.space_folders import turn_to_format_1

pytestmark = pytest.mark.usefixtures("load_once")


def test_a_cache_and_its_copy_are_the_same(small_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(small_cache, tmp_path / "copy")
    found = diff(small_cache, tmp_path / "copy")
    assert [(d.view, d.rows_a, d.rows_b, d.same) for d in found] == [
        ("color_1", 48, 48, True),
        ("none", 48, 48, True),
    ]


def test_the_cut_and_the_order_do_not_matter(
    small_cache: Path, small_data: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """Micro-batches of 16 in shards of 32 are the same micro-batches as in shards of 16."""
    featurize(small_data, policy="none", cache=tmp_path, shard_rows=32, **tiny)
    found = {d.view: d for d in diff(small_cache, tmp_path)}
    assert found["none"].same
    assert (found["color_1"].rows_b, found["color_1"].missing) == (0, 48)
    turned = {d.view: d for d in diff(tmp_path, small_cache)}
    assert (turned["color_1"].rows_a, turned["color_1"].extra) == (0, 48)


def test_rows_that_drift_are_counted_and_measured(small_cache: Path, tmp_path: Path) -> None:
    good = next(s for s in Cache(small_cache).spaces() if s.view == "none")
    items = list(good.rows)
    vectors = good.vectors(items)[0].copy()
    vectors[5] *= np.float32(1.5)
    other = Cache(tmp_path)
    other.create()
    space = other.space(good.key, "none", good.backbone)
    space.commit(items[:20], {"features": vectors[:20]}, {items[7]: "broken"}, {}, 0)
    extra = bytes(32)
    space.commit([extra], {"features": vectors[:1]}, {}, {}, 0)
    found = next(d for d in diff(small_cache, tmp_path) if d.view == "none")
    assert (found.missing, found.extra, found.drifted) == (28, 1, 2)
    assert 0 < found.relative <= 0.5


def test_pictures_are_compared_too(small_data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        augment(small_data, policy="color_1", cache=tmp_path / name, workers=0, shard_rows=16)
    (found,) = diff(tmp_path / "a", tmp_path / "b")
    assert found.same and found.backbone is None
    (space,) = Cache(tmp_path / "a").spaces()
    items = list(space.rows)[:16]
    blob = b"".join(space.picture(item) or b"" for item in items)
    lengths = [len(space.picture(item) or b"") for item in items]
    arrays = {
        "pictures": np.frombuffer(blob[:-1] + b"\0", np.uint8),
        "offsets": np.cumsum([0, *lengths], dtype=np.uint64),
    }
    other = Cache(tmp_path / "c")
    other.create()
    other.space(space.key, space.view).commit(items, arrays, {}, {}, 0)
    (found,) = diff(tmp_path / "a", tmp_path / "c")
    assert (found.missing, found.drifted, found.relative) == (32, 1, 0.0)


def test_bytes_that_are_not_the_record_s_stop_it(small_cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_cache, tmp_path / "copy"))
    good = next(s for s in Cache(small_cache).spaces() if s.view == "none")
    items = list(good.rows)
    other = Cache(tmp_path / "other")
    other.create()
    vectors = good.vectors(items)[0] * np.float32(2)
    other.space(good.key, "none", good.backbone).commit(items, {"features": vectors}, {}, {}, 0)
    path = copy / "spaces" / good.name / good.records[0].file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCache, match=path.name):
        diff(copy, tmp_path / "other")
    with pytest.raises(BadInput, match="no cache at"):
        diff(tmp_path / "none", copy)


@pytest.mark.parametrize("old", [range(3), [1]], ids=["format 1", "both formats"])
def test_formats_are_compared_by_their_rows(
    small_cache: Path, tmp_path: Path, old: Sequence[int]
) -> None:
    copy = Path(shutil.copytree(small_cache, tmp_path / "copy"))
    space = next(s for s in Cache(copy).spaces() if s.view == "none")
    for number in old:
        turn_to_format_1(space, number)
    opened = Cache(copy).space(space.key, space.view, space.backbone)
    formats = [record.format for record in opened.records]
    assert formats == [1 if number in old else 2 for number in range(3)]
    for a, b in ((small_cache, copy), (copy, small_cache)):
        assert [(d.rows_a, d.rows_b, d.same) for d in diff(a, b)] == 2 * [(48, 48, True)]
    # Rows of one format that differ from those of the other, in a shard of each.
    vectors = opened.vectors(list(opened.rows))[0]
    vectors[[3, 20]] += 1
    other = Cache(tmp_path / "other")
    other.create()
    other.space(space.key, "none", space.backbone).commit(
        list(opened.rows), {"features": vectors}, {}, {}, 0
    )
    for a, b in ((copy, tmp_path / "other"), (tmp_path / "other", copy)):
        found = next(d for d in diff(a, b) if d.view == "none")
        assert (found.missing, found.extra, found.drifted) == (0, 0, 2)


def test_archives_of_both_formats_hold_the_same_rows() -> None:
    archives = Path(__file__).parent / "archives"
    found = diff(archives / "format-1/cache", archives / "format-2/cache")
    assert [(d.rows_a, d.rows_b, d.same) for d in found] == 3 * [(6, 6, True)]
