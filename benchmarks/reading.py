"""Rows of reading vectors from the disk cache, once they are in the page cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from benchmarks.harness import OURS, Case, Check, Setting, compare, shares, timed
from featurecache.features.mapped import MappedVectors
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from tests.keys import vector_key

DIM = 1280
SHARD = 512
KEY = vector_key()  # of a network that need not be there


@dataclass(frozen=True)
class Stored:
    """The same vectors in every layout, and their items."""

    truth: np.ndarray  # (N, DIM) float32
    items: list[bytes]
    cache: Path
    chunked: Path  # HDF5, (1, DIM) chunks: what appending row by row makes
    contiguous: Path  # HDF5, one block
    raw: Path  # .npy

    def space(self) -> Space:
        """The space, just opened as by a new process: none of its records has been read."""
        return Cache(self.cache).space(KEY, "none", "made")


def read_space(setting: Setting) -> list[Case]:
    """A whole space of float32 vectors of 1,280 (512 rows a shard), in the order of the dataset,
    into one array in memory. Read first: `Space.vectors` in a space just opened, with its records
    to read and every byte to hash. Read again: `MappedVectors[:]`, whose shards were hashed before.
    Peers: the same rows in HDF5 with one row a chunk (what appending to a file makes), in
    contiguous HDF5 (h5py, `dataset[:]`), and a copy of np.memmap of an .npy file; they check
    nothing. All files are in the page cache."""
    stored = _store(setting)
    mapped = MappedVectors(stored.space(), stored.items)
    peers: dict[str, Callable[[], np.ndarray]] = {
        "HDF5, one row a chunk": lambda: _whole(stored.chunked),
        "HDF5, contiguous": lambda: _whole(stored.contiguous),
        "np.memmap": lambda: np.array(np.load(stored.raw, mmap_mode="r")),
    }
    seconds, results = compare({OURS: lambda: mapped[:]} | peers, setting.repeats)
    again = _case("read again", seconds, results, stored.truth)
    ours = {OURS: lambda: stored.space().vectors(stored.items)[0]}
    seconds, results = compare(ours | peers, setting.repeats)
    first = _case("read first", seconds, results, stored.truth)
    first.profile = _first_read(stored.space(), stored.items)
    return [again, first]


def random_rows(setting: Setting) -> list[Case]:
    """1,024 rows at random places of the same files, each file opened already, in the order asked
    for. Read again: every row was checked before; twenty times over, other rows each time. Read
    first: a space just opened, with its records to read and every row that is used to check. Peers:
    h5py's fancy index (sorted, as it demands, and put back in order) on contiguous HDF5 and on one
    row a chunk, and np.memmap's."""
    stored = _store(setting)
    count = setting.size(1024, 16)
    draws = 20  # in one timed run: one takes a millisecond
    rng = np.random.default_rng(1)
    drawn = [rng.permutation(len(stored.items))[:count] for _ in range(draws)]
    ours, mapped = MappedVectors(stored.space(), stored.items), np.load(stored.raw, mmap_mode="r")
    for file in (ours, mapped):
        file[:]  # every page is known to this process, as after the first epoch
    with h5py.File(stored.chunked) as chunked, h5py.File(stored.contiguous) as contiguous:
        sides: dict[str, Callable[[], np.ndarray]] = {
            OURS: lambda: [ours[rows] for rows in drawn][-1],
            "h5py fancy index": lambda: [_fancy(contiguous["x"], rows) for rows in drawn][-1],
            "h5py fancy index, one row a chunk": lambda: [
                _fancy(chunked["x"], rows) for rows in drawn
            ][-1],
            "np.memmap": lambda: [np.asarray(mapped[rows]) for rows in drawn][-1],
        }
        seconds, results = compare(sides, setting.repeats)
        again = _case("read again", seconds, results, stored.truth[drawn[-1]])
        again.amount = draws * count
        rows = drawn[0]
        some = [stored.items[row] for row in rows]
        sides = {
            OURS: lambda: stored.space().vectors(some)[0],
            "h5py fancy index": lambda: _fancy(contiguous["x"], rows),
            "h5py fancy index, one row a chunk": lambda: _fancy(chunked["x"], rows),
            "np.memmap": lambda: np.asarray(mapped[rows]),
        }
        seconds, results = compare(sides, setting.repeats)
    first = _case("read first", seconds, results, stored.truth[rows])
    first.profile = _first_read(stored.space(), some)
    return [again, first]


def _case(
    name: str, seconds: dict[str, list[float]], results: dict[str, np.ndarray], truth: np.ndarray
) -> Case:
    checks = [
        Check(f"{side}: {(rows == truth).all(axis=1).sum():,} of {len(truth):,} rows are those "
              "that were written", np.array_equal(rows, truth))
        for side, rows in results.items()
    ]  # fmt: skip
    return Case(name, seconds, len(truth), "rows/s", checks)


def _first_read(space: Space, items: list[bytes]) -> list[str]:
    """Where the time of `space.vectors(items)` goes, in a space that was just opened."""
    records = timed(lambda: space.records)
    index = timed(lambda: space.lookup)
    positions = timed(lambda: space.positions(items))
    vectors = timed(lambda: space.vectors(items))  # looks the items up once more
    parts = {
        "reading records": records,
        "finding the rows": index + positions,
        "reading and checking them": vectors - positions,
    }
    return shares(parts, sum(parts.values()))[1:-1]


def _store(setting: Setting) -> Stored:
    rows = setting.size(40_000, 1100)
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((rows, DIM), np.float32)
    items = [rng.bytes(32) for _ in range(rows)]
    folder = setting.folder
    cache = Cache(folder / "cache")
    cache.create()
    space = cache.space(KEY, "none", "made")
    for start in range(0, rows, SHARD):
        part = slice(start, start + SHARD)
        space.commit(items[part], {"features": truth[part]}, {}, {}, 0.0)
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset("x", data=truth, chunks=(1, DIM))
    with h5py.File(folder / "contiguous.h5", "w") as file:
        file.create_dataset("x", data=truth)
    np.save(folder / "raw.npy", truth)
    return Stored(truth, items, cache.root, folder / "chunked.h5", folder / "contiguous.h5",
                  folder / "raw.npy")  # fmt: skip


def _whole(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["x"][:]


def _fancy(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    order = np.argsort(rows)
    out = np.empty((len(rows), DIM), np.float32)
    out[order] = dataset[rows[order]]
    return out
