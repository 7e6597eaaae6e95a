"""Row digests: readers check the rows that they use, each of them, and read no others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache import keys
from featurecache.errors import DamagedCache
from featurecache.features import row_digests, shards, spaces
from featurecache.features.mapped import MappedVectors
from featurecache.features.row_digests import digest_rows
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify
from tests.keys import vector_key
from tests.space_folders import folder_of

ROWS = 40
ITEMS = [hashlib.sha256(bytes([number])).digest() for number in range(ROWS)]
Reader = Callable[[Space, list[bytes]], np.ndarray]
READERS: dict[str, Reader] = {
    "Space": lambda space, items: space.vectors(items)[0],
    "MappedVectors": lambda space, items: MappedVectors(space, items)[:],
    "MappedVectors, one by one": lambda space, items: np.stack(list(MappedVectors(space, items))),
}


def made(folder: Path, width: int, rows: int = ROWS) -> tuple[Space, np.ndarray]:
    """A space of one shard of these rows."""
    cache = Cache(folder)
    cache.create()
    features = np.random.default_rng(width).normal(size=(rows, width)).astype(np.float32)
    space = cache.space(vector_key(), "none", "made")
    space.commit(ITEMS[:rows], {"features": features}, {}, {}, 0.1)
    return cache.space(vector_key(), "none", "made"), features


def data_file(space: Space) -> Path:
    return folder_of(space) / space.records[0].file


@pytest.mark.parametrize(("width", "group"), [(7, 146), (600, 1), (1280, 1)])
def test_a_group_is_about_four_kilobytes(width: int, group: int) -> None:
    digests, summary = digest_rows(np.zeros((ROWS, width), np.float32))
    assert summary.group == group
    assert digests.shape == summary.shape(ROWS)


@pytest.mark.parametrize("shape", [(0, 5), (3, 2, 4, 4), (3, 0)])
def test_digests_of_odd_shapes(shape: tuple[int, ...]) -> None:
    digests, summary = digest_rows(np.ones(shape, np.float16))
    assert digests.shape[1] == row_digests.SIZE and summary.group >= 1


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("width", "group"), [(600, 1), (200, 5), (32, 32)])
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS // 2),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flip_in_a_group_that_is_read_is_found_and_no_other_matters(
    tmp_path_factory: pytest.TempPathFactory, reader: str, width: int, group: int,
    rows: list[int], place: float, bit: int,
) -> None:  # fmt: skip
    space, features = made(tmp_path_factory.mktemp("cache") / "cache", width)
    assert space.records[0].row_digests and space.records[0].row_digests.group == group
    harmed = int(place * features.nbytes)
    content = bytearray(data_file(space).read_bytes())
    content[space.records[0].arrays["features"].offset + harmed] ^= 1 << bit
    data_file(space).write_bytes(content)
    wanted = [ITEMS[row] for row in rows]
    if harmed // (4 * width * group) in {row // group for row in rows}:
        with pytest.raises(DamagedCache, match="not the ones that were committed"):
            READERS[reader](space, wanted)
    elif len(rows) < ROWS / 4:  # of more rows, all are read
        np.testing.assert_array_equal(READERS[reader](space, wanted), features[rows])
    assert len(verify(space.store.root).bad) == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rows", [[3], [5, 5, 2], list(range(ROWS)), list(range(ROWS))[::-2]])
@pytest.mark.parametrize("width", [3, 200, 1500])
def test_rows_in_any_number_and_order(
    tmp_path: Path, reader: str, rows: list[int], width: int
) -> None:
    space, features = made(tmp_path / "cache", width)
    found = READERS[reader](space, [ITEMS[row] for row in rows])
    np.testing.assert_array_equal(found, features[rows])


@pytest.mark.parametrize("reader", READERS)
def test_a_changed_digest_is_not_trusted(tmp_path: Path, reader: str) -> None:
    space, _ = made(tmp_path / "cache", 1500)
    content = bytearray(data_file(space).read_bytes())
    content[space.records[0].arrays["digests"].offset + 3] ^= 1
    data_file(space).write_bytes(content)
    with pytest.raises(DamagedCache, match="not the ones that were committed"):
        READERS[reader](space, ITEMS[:2])


@pytest.mark.parametrize(("width", "group"), [(1500, 1), (200, 5)])
def test_few_rows_do_not_read_a_whole_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, group: int
) -> None:
    space, features = made(tmp_path / "cache", width)
    assert space.records  # whose bytes do not count
    sizes: list[int] = []
    advised: list[tuple[int, int]] = []
    pread, preadv, advise = os.pread, os.preadv, os.posix_fadvise

    def counted(fd: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(fd, size, offset)

    def counted_into(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        sizes.append(sum(len(buffer) for buffer in buffers))
        return preadv(fd, buffers, offset)

    def listed(fd: int, start: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        advised.append((start, size))
        advise(fd, start, size, advice)

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(os, "preadv", counted_into)
    monkeypatch.setattr(os, "posix_fadvise", listed)
    rows = [9, 9, 3]
    np.testing.assert_array_equal(space.vectors([ITEMS[row] for row in rows])[0], features[rows])
    groups = sorted({row // group for row in rows})
    size = 4 * width * group
    assert sum(sizes) == size * (3 if group == 1 else 2) + ROWS // group * row_digests.SIZE
    # All groups are announced to the operating system before the first is read.
    start = space.records[0].arrays["features"].offset
    assert sorted(advised) == [(start + size * number, size) for number in groups]


def refuse(*_: object) -> None:
    raise AssertionError("threads were started")


def test_few_rows_are_read_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, features = made(tmp_path / "cache", 1500)
    monkeypatch.setattr(spaces.ThreadPoolExecutor, "map", refuse)
    np.testing.assert_array_equal(space.vectors(ITEMS[2:5])[0], features[2:5])
    monkeypatch.setattr(spaces, "_FEW_BYTES", 3 * 6000)  # the bytes of these rows
    with pytest.raises(AssertionError, match="threads"):
        space.vectors(ITEMS[2:5])
    # A shard without digests of rows is hashed as a whole, which takes a thread per core.
    archive = Path(__file__).parent / "archives" / "format-1" / "cache"
    old = next(s for s in Cache(archive).spaces() if s.backbone)
    with pytest.raises(AssertionError, match="threads"):
        old.vectors(list(old.rows)[:1])


def test_vectors_that_are_not_finite_are_refused_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards, "is_finite", lambda arrays: True)  # a writer without our check
        cache = Cache(tmp_path / "cache")
        cache.create()
        features = np.ones((ROWS, 1500), np.float32)
        features[4, 2] = np.nan
        space = cache.space(vector_key(), "none", "made")
        space.commit(ITEMS, {"features": features}, {}, {}, 0.1)
    for read in READERS.values():
        np.testing.assert_array_equal(read(space, ITEMS[:2]), features[:2])
        with pytest.raises(DamagedCache, match="NaN or infinity"):
            read(space, ITEMS[3:5])


def test_a_space_of_both_formats(tmp_path: Path) -> None:
    archive = Path(__file__).parent / "archives" / "format-1" / "cache"
    folder = Path(shutil.copytree(archive, tmp_path / "cache"))
    old = next(s for s in Cache(folder).spaces() if s.view == "color_1" and s.backbone)
    items = list(old.rows)
    vectors, decodable = old.vectors(items)
    assert {record.format for record in old.records} == {1}

    # The same rows have the same root hash in format 2.
    cache = Cache(tmp_path / "new")
    cache.create()
    cache.space(old.key, old.view, old.backbone).commit(
        items, {"features": vectors}, old.failures(items), {}, 0.1
    )
    new = cache.space(old.key, old.view, old.backbone)
    assert {record.format for record in new.records} == {2}
    assert new.root_hash == old.root_hash
    found, fine = new.vectors(items)
    assert found.tobytes() == vectors.tobytes() and fine.tolist() == decodable.tolist()

    # And a space holds shards of both.
    old.commit(ITEMS[:2], {"features": vectors[:2] + 1}, {}, {}, 0.1)
    mixed = Cache(folder).space(old.key, old.view, old.backbone)
    assert {record.format for record in mixed.records} == {1, 2}
    for read in READERS.values():
        expected = np.concatenate([vectors, vectors[:2] + 1])[::-1]
        np.testing.assert_array_equal(read(mixed, [*items, *ITEMS[:2]][::-1]), expected)
    assert verify(folder).bad == []


@pytest.mark.parametrize("change", ["format", "no digests"])
def test_a_record_between_the_formats_is_damaged(tmp_path: Path, change: str) -> None:
    space, _ = made(tmp_path / "cache", 8)
    path = folder_of(space) / f"{space.records[0].shard}.json"
    record = json.loads(path.read_bytes())
    del record["checksum"]
    if change == "format":
        record["format"] = 1
    else:
        del record["row_digests"]
    path.write_text(json.dumps(record | {"checksum": keys.digest(record)}) + "\n")
    fresh = Cache(tmp_path / "cache").space(vector_key(), "none", "made")
    with pytest.raises(DamagedCache, match="row_digests"):
        fresh.vectors(ITEMS[:1])
