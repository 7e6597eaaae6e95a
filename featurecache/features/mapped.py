"""Mapped vectors: rows of a space that stay on disk and are copied out of memory maps."""

from __future__ import annotations

import hashlib
import itertools
import math
import mmap
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from featurecache.errors import BadInput, CannotRead, NotAFile
from featurecache.features import shards
from featurecache.features.cache_files import OTHER_BYTES, absent_shard, damaged
from featurecache.features.row_digests import RowDigests, are_sound, reads_whole
from featurecache.features.spaces import Space
from featurecache.items import ItemArray
from featurecache.storage.safe_open import open_descriptor
from featurecache.storage.stored_file import StoredFile


def _max_maps() -> int:
    """The number of shards that are mapped at once. Each takes a file descriptor."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 256
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 14 if limit == resource.RLIM_INFINITY else min(limit // 4, 1 << 14)


MAX_MAPS = _max_maps()


class _Shard(NamedTuple):
    name: str
    file: StoredFile
    size: int
    sha256: str
    arrays: dict[str, shards.Array]
    row_digests: RowDigests | None


def _shard_of(space: Space, record_index: int) -> _Shard:
    record = space.records[record_index]
    file = space.file(record.file)
    return _Shard(record.shard, file, record.size, record.sha256, record.arrays, record.row_digests)


class MappedVectors:
    """The vectors of some items of a space, (N, D) float32, in the order of the items. Maps are
    flattened, and have the type that they are stored in.

    Index it with a number, a slice, or an array of numbers (in any order, repeated or not); the
    result is a new array. The bytes of a row are checked at the first access to it (in shards
    without digests of rows: to any row of its shard), and then read from a memory map, so the
    cache's files must not be truncated meanwhile. Rows in random order are slower if they are in
    more than MAX_MAPS shards (a quarter of the process's file descriptors; `ulimit -n`). Not
    thread-safe. A copy in another process opens its own memory maps, of the same shards.
    """

    ndim = 2

    def __init__(self, space: Space, items: ItemArray) -> None:
        """Raises KeyError for an item that the space lacks, DamagedCache if the lengths of vectors
        differ between shards."""
        self._record_indices, self._rows = space.positions(items)
        self._checked = np.zeros(len(items), bool)  # the rows that were checked
        self._is_sound = np.zeros(len(space.records), bool)  # by record index: if all rows were
        # By record index, oldest first: the data file, and the bytes of its vectors.
        self._maps: dict[int, tuple[mmap.mmap, np.ndarray]] = {}
        # By record index: the place of these bytes in memory; 0 for a shard that is not mapped.
        self._starts = np.zeros(len(space.records), np.int64)
        self._span: tuple[int, np.ndarray] | None = None  # see `_gathered`
        self.shape = (len(items), space.dim)
        stored = space.records[0].arrays["features"].dtype if space.records else "<f4"
        self.dtype = np.dtype(stored)
        self._shards: dict[int, _Shard] = {}  # what a copy in another process needs of a record
        for record_index in np.unique(self._record_indices).tolist():
            record = space.records[record_index]
            file = space.file(record.file)
            features = record.arrays["features"]
            if (math.prod(features.shape[1:]), features.dtype) != (space.dim, stored):
                raise damaged(file, "its vectors have another length")
            self._shards[record_index] = _shard_of(space, record_index)

    def __getstate__(self) -> dict[str, Any]:
        starts = np.zeros_like(self._starts)
        return {**vars(self), "_maps": {}, "_starts": starts, "_span": None}

    def close(self) -> None:
        """Close the memory maps; the next access opens them again."""
        self._maps.clear()
        self._starts[:] = 0
        self._span = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """(D,) for a number, (n, D) for a slice, an array of numbers or N bools."""
        record_indices, rows = self._record_indices[index], self._rows[index]
        if record_indices.ndim > 1:
            raise BadInput(
                f"mapped vectors take an index with one axis, not with {record_indices.ndim}"
            )
        if record_indices.ndim == 0:
            vector: np.ndarray = self[np.array([index])][0]
            return vector
        is_sound = self._is_sound[record_indices]
        if not is_sound.all():
            pending = ~(is_sound | self._checked[index])
            if pending.any():
                self._check(rows[pending], record_indices[pending])
                self._checked[index] = True
        row_bytes = self.dtype.itemsize * self.shape[1]
        if not isinstance(index, slice) and len(rows) and row_bytes:
            return self._gathered(rows, record_indices)
        # The ends of runs of rows that are adjacent in one shard: a run is copied in one piece.
        ends = np.flatnonzero((np.diff(record_indices) != 0) | (np.diff(rows) != 1)) + 1
        vectors = np.empty((len(rows), self.shape[1]), self.dtype)
        for first, end in itertools.pairwise([0, *ends.tolist(), len(rows)] if len(rows) else []):
            start = row_bytes * int(rows[first])
            _, features = self._mapped(int(record_indices[first]))
            piece = features[start : start + row_bytes * (end - first)]
            vectors[first:end] = piece.view(self.dtype).reshape(end - first, -1)
        return vectors

    def _gathered(self, rows: np.ndarray, record_indices: np.ndarray) -> np.ndarray:
        """Scattered rows (n,), n > 0, of the shards of these records: (n, D)."""
        addresses = self._starts[record_indices]
        if not addresses.all():
            touched = np.unique(record_indices)
            if len(touched) > MAX_MAPS:  # some shards at a time, so that each is mapped once
                vectors = np.empty((len(rows), self.shape[1]), self.dtype)
                for start in range(0, len(touched), MAX_MAPS):
                    part = np.isin(record_indices, touched[start : start + MAX_MAPS])
                    vectors[part] = self._gathered(rows[part], record_indices[part])
                return vectors
            needed = set(touched.tolist())
            for record_index in needed:
                self._mapped(record_index, needed)
            addresses = self._starts[record_indices]
        # One call of NumPy copies all rows, in whatever maps they are. NumPy picks rows out of a
        # single array, and the maps are many. So `span` pretends to be one array, with an element
        # the size of a row at each byte from the map with the lowest address to the end of the one
        # with the highest, and the distances between addresses are the indices. What lies between
        # the maps is never read. Plainer ways take longer for 1,024 rows of 79 shards: joining a
        # memoryview per row 1.3 times as long, one call per map 2.2 times.
        lowest, span = self._span = self._span or self._span_of_maps()
        addresses += span.itemsize * rows
        addresses -= lowest
        gathered: np.ndarray = span[addresses].view(self.dtype).reshape(len(rows), -1)
        return gathered

    def _span_of_maps(self) -> tuple[int, np.ndarray]:
        """The lowest address of the vectors in all maps, and the array that begins there."""
        by_start = sorted(self._maps, key=self._starts.__getitem__)
        lowest, highest = (int(self._starts[by_start[end]]) for end in (0, -1))
        row_bytes = self.dtype.itemsize * self.shape[1]
        first = self._maps[by_start[0]][1][:row_bytes].view(f"V{row_bytes}")
        length = highest - lowest + len(self._maps[by_start[-1]][1]) - row_bytes + 1
        return lowest, np.lib.stride_tricks.as_strided(first, (length,), (1,))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("mapped vectors can't become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _check(self, rows: np.ndarray, record_indices: np.ndarray) -> None:
        """Raise DamagedCache unless these rows of these records are those that were committed."""
        by_record = np.argsort(record_indices, kind="stable")
        ends = np.flatnonzero(np.diff(record_indices[by_record])) + 1
        for part in np.split(by_record, ends):
            record_index = int(record_indices[part[0]])
            data, _ = self._mapped(record_index)
            shard = self._shards[record_index]
            self._is_sound[record_index] = _check_rows(shard, data, np.unique(rows[part]))

    def _mapped(
        self, record_index: int, needed: Collection[int] = ()
    ) -> tuple[mmap.mmap, np.ndarray]:
        """The data file of a shard in a memory map, and the bytes of its vectors. The shards that
        are `needed`, no more than MAX_MAPS, stay mapped."""
        if record_index not in self._maps:
            shard = self._shards[record_index]
            data = _map(shard)
            features = shards.unpack(data, shard.arrays)["features"].reshape(-1).view(np.uint8)
            if len(self._maps) >= MAX_MAPS:
                oldest = next(number for number in self._maps if number not in needed)
                del self._maps[oldest]
                self._starts[oldest] = 0
            self._span = None
            self._maps[record_index] = data, features
            self._starts[record_index] = features.ctypes.data
        return self._maps[record_index]


class MappedPictures:
    """The encoded pictures of a space, read from memory maps of its shards. Not thread-safe."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._maps: dict[int, dict[str, np.ndarray]] = {}  # by record index, oldest first
        self._sound: set[int] = set()

    def picture(self, item: bytes) -> bytes | None:
        """As Space.picture returns it."""
        if item not in self._space.rows:
            return None
        index, row = self._space.rows[item]
        if index not in self._maps:
            if len(self._maps) == MAX_MAPS:
                del self._maps[next(iter(self._maps))]
            shard = _shard_of(self._space, index)
            data = _map(shard)
            if index not in self._sound:
                _check_shard(shard, data)
                self._sound.add(index)
            self._maps[index] = shards.unpack(data, shard.arrays)
        return shards.row_bytes(self._maps[index], row)


def _map(shard: _Shard) -> mmap.mmap:
    """The data file of a shard in a memory map. Its bytes are not checked, only their number."""
    try:
        path = shard.file.store.local_path(shard.file.key, shard.size, shard.sha256)
        with open_descriptor(path, shard.size, follow=False) as (fd, size):
            data = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    except (NotAFile, FileNotFoundError) as error:
        raise absent_shard(shard.file, shard.name, error) from error
    except OSError as error:
        raise CannotRead(shard.file, error) from error
    except ValueError as error:  # an empty file can't be mapped
        raise damaged(shard.file, OTHER_BYTES) from error
    if size != shard.size:
        raise damaged(shard.file, OTHER_BYTES)
    return data


def _check_shard(shard: _Shard, data: mmap.mmap) -> None:
    """Raise DamagedCache unless all bytes of a shard are those that were committed."""
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise damaged(shard.file, OTHER_BYTES)
    if not shards.is_finite(shards.unpack(data, shard.arrays)):
        raise damaged(shard.file, shards.NOT_FINITE)


def _check_rows(shard: _Shard, data: mmap.mmap, rows: np.ndarray) -> bool:
    """Raise DamagedCache unless these distinct rows are those that were committed. Returns whether
    all rows of the shard were checked with them."""
    if shard.row_digests is None:
        _check_shard(shard, data)
        return True
    arrays = shards.unpack(data, shard.arrays)
    features = arrays["features"]
    if not are_sound(features, arrays["digests"], shard.row_digests, rows):
        raise damaged(shard.file, OTHER_BYTES)
    is_whole = reads_whole(rows, len(features))
    if not shards.is_finite({"features": features if is_whole else features[rows]}):
        raise damaged(shard.file, shards.NOT_FINITE)
    return is_whole


class MappedColumns:
    """The mapped vectors of several backbones side by side, (N, D), for the same items."""

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, parts: Sequence[MappedVectors]) -> None:
        self._parts = parts
        self.shape = (len(parts[0]), sum(part.shape[1] for part in parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.concatenate([part[index] for part in self._parts], axis=-1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.asarray(part, dtype, copy=copy) for part in self._parts], axis=1)

    def close(self) -> None:
        """Close the memory maps; the next access opens them again."""
        for part in self._parts:
            part.close()


def map_columns(spaces: Sequence[Space], items: ItemArray) -> MappedVectors | MappedColumns:
    """The mapped vectors of the items in these spaces, side by side."""
    parts = [MappedVectors(space, items) for space in spaces]
    return parts[0] if len(parts) == 1 else MappedColumns(parts)
