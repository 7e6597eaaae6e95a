"""Vectors that stay on the disk: the same rows as those that are read, by any index."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput, DamagedCache
from featurecache.features import mapped
from featurecache.features.mapped import MappedVectors, map_columns
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache.export import vectors
from tests.space_folders import folder_of

KEY = {"format": 1, "view": None, "backbone": {"name": "b"}, "precision": "f32"}
SHARDS = (7, 1, 12, 5)
ITEMS = [hashlib.sha256(bytes([number])).digest() for number in range(sum(SHARDS))]
FEATURES = np.random.default_rng(0).normal(size=(len(ITEMS), 6)).astype(np.float32)


def made(folder: Path) -> Space:
    cache = Cache(folder)
    cache.create()
    start = 0
    for rows in SHARDS:
        part = slice(start, start + rows)
        cache.space(KEY, "none", "b").commit(
            ITEMS[part], {"features": FEATURES[part]}, {}, {"engine": "test"}, 0.1
        )
        start += rows
    return cache.space(KEY, "none", "b")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    return made(tmp_path_factory.mktemp("mapped") / "cache")


N = len(ITEMS)
INDEXES = st.one_of(
    st.integers(-N, N - 1),
    st.slices(N),
    st.lists(st.integers(-N, N - 1), max_size=40),
    st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
    st.lists(st.integers(0, N - 1), min_size=1, max_size=40).map(np.array),
)


@pytest.mark.slow
@settings(max_examples=200)
@given(index=INDEXES, order=st.permutations(range(N)), maps=st.integers(1, 5))
def test_any_index_gives_what_an_array_would(
    space: Space, index: Any, order: list[int], maps: int
) -> None:
    if isinstance(index, list) and not index:
        index = np.array(index, np.int64)  # NumPy takes an empty list for floats
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "MAX_MAPS", maps)  # fewer than shards: some are mapped again
        vectors = MappedVectors(space, [ITEMS[i] for i in order])
        found = vectors[index]
        np.testing.assert_array_equal(found, FEATURES[order][index])
        assert found.dtype == np.float32
        found += 1  # the caller's own
        np.testing.assert_array_equal(vectors[index], FEATURES[order][index])


def test_it_passes_for_an_array(space: Space) -> None:
    vectors = MappedVectors(space, ITEMS)
    assert (vectors.shape, len(vectors), vectors.dtype) == (FEATURES.shape, N, np.float32)
    np.testing.assert_array_equal(np.asarray(vectors), space.vectors(ITEMS)[0])
    assert np.array(vectors, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(vectors, copy=False)
    with pytest.raises(BadInput, match="an index with one axis"):
        vectors[np.zeros((2, 2), int)]
    with pytest.raises(IndexError):
        vectors[N]
    assert MappedVectors(space, []).shape == (0, 6)
    assert MappedVectors(space, [])[:].shape == (0, 6)


def test_an_item_that_is_not_held(space: Space) -> None:
    with pytest.raises(KeyError):
        MappedVectors(space, [bytes(32)])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(FEATURES[8].tobytes()) + 5] ^= 4
    path.write_bytes(data)


HARMS: dict[str, Callable[[Path], Any]] = {
    "flipped": _flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a link": lambda path: path.rename(path.with_suffix(".x")) and path.symlink_to("x"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_seen_before_a_row_is_used(harm: str, tmp_path: Path) -> None:
    space = made(tmp_path / "cache")
    number, _ = space.rows[ITEMS[8]]
    HARMS[harm](folder_of(space) / space.records[number].file)
    vectors = MappedVectors(space, ITEMS)
    np.testing.assert_array_equal(vectors[:8], FEATURES[:8])  # of other shards
    with pytest.raises(DamagedCache, match="verify --repair"):
        vectors[8]


def test_a_copy_in_another_process_reads_the_shards_of_the_original(tmp_path: Path) -> None:
    space = made(tmp_path / "cache")
    vectors = MappedVectors(space, ITEMS)
    np.testing.assert_array_equal(vectors[3], FEATURES[3])
    # A shard that is committed meanwhile may come first.
    more = [hashlib.sha256(b"more").digest()]
    space.commit(more, {"features": FEATURES[:1]}, {}, {}, 1.0)
    content = pickle.dumps(vectors)
    assert len(content) < 20 * N + 4500  # positions and records, no items or vectors
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy[::-1], FEATURES[::-1])
    copy.close()
    np.testing.assert_array_equal(copy[:], FEATURES)


def test_spaces_side_by_side(space: Space) -> None:
    wide = map_columns([space, space], ITEMS)
    expected = np.concatenate([FEATURES, FEATURES], 1)
    assert (wide.shape, len(wide), wide.dtype, wide.ndim) == (expected.shape, N, np.float32, 2)
    for index in (3, slice(None, None, -2), [4, 4, 1]):
        np.testing.assert_array_equal(wide[index], expected[index])
    np.testing.assert_array_equal(np.asarray(wide), expected)
    wide.close()
    assert isinstance(map_columns([space], ITEMS), MappedVectors)


def test_vectors_of_a_dataset(small_data: Path, small_cache: Path) -> None:
    X, y = vectors(small_data, "none", "efficientnet_lite0", cache=small_cache)
    on_disk, same = vectors(
        small_data, "none", "efficientnet_lite0", cache=small_cache, mapped=True
    )
    assert isinstance(on_disk, MappedVectors)
    np.testing.assert_array_equal(on_disk[::-1], X[::-1])
    np.testing.assert_array_equal(same, y)
