"""Mapped vectors: rows of a space that stay on the disk, and are copied out of memory maps."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from featurecache.errors import BadInput, CannotRead, NotAFile
from featurecache.features import shards
from featurecache.features.cache_files import OTHER_BYTES, absent_shard, damaged
from featurecache.features.spaces import Space
from featurecache.storage.safe_open import open_regular

MOST_MAPS = 256  # open at once: each holds a file descriptor, of which a process may have 1024


class MappedVectors:
    """The vectors of some items of a space, (N, D) float32, in the order of the items.

    Index it with a number, a slice, or an array of numbers (in any order, repeated or not); what
    comes back is an array of your own. A shard's bytes are hashed when a row of it is first
    touched, and taken from a memory map from then on: nothing may cut the cache's files meanwhile.
    Rows in random order are slower where they lie in more than MOST_MAPS shards (131,072 rows, as
    `featurize` cuts them). Not for many threads at once.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, space: Space, items: Sequence[bytes]) -> None:
        """Raises KeyError for an item that is not held, DamagedCache where shards disagree."""
        self._space = space
        places = np.array([space.rows[item] for item in items], np.int64).reshape(-1, 2)
        self._numbers, self._rows = places.T
        self._sound: set[int] = set()  # numbers of the shards whose bytes were hashed
        self._maps: dict[int, memoryview] = {}  # number of a shard -> its vectors, oldest first
        self.shape = (len(items), space.dim)
        for number in np.unique(self._numbers).tolist():
            record = space.records[number]
            if record.arrays["features"].shape[1] != space.dim:
                raise damaged(space.file(record.file), "its vectors have another length")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """(D,) of a number, (n, D) of a slice, an array of numbers or of N truths."""
        numbers, rows = self._numbers[index], self._rows[index]
        if numbers.ndim > 1:
            raise BadInput(f"mapped vectors take one index of rows, not one of {numbers.ndim} axes")
        if numbers.ndim == 0:
            one: np.ndarray = self[np.array([index])][0]
            return one
        wide = 4 * self.shape[1]
        # Where rows that lie behind each other in one shard end: they are copied together.
        ends = np.flatnonzero((np.diff(numbers) != 0) | (np.diff(rows) != 1)) + 1
        touched = np.unique(numbers).tolist() if 2 * len(ends) > len(rows) else []
        if 0 < len(touched) <= MOST_MAPS:  # scattered rows, looked up without a line of Python each
            maps = {number: self._shard(number) for number in touched}
            spans = map(slice, (wide * rows).tolist(), (wide * (rows + 1)).tolist())
            found: Any = map(operator.getitem, map(maps.__getitem__, numbers.tolist()), spans)
            return np.frombuffer(bytearray().join(found), np.float32).reshape(len(rows), -1)
        out = np.empty((len(rows), self.shape[1]), np.float32)
        for first, end in itertools.pairwise([0, *ends.tolist(), len(rows)] if len(rows) else []):
            start = wide * int(rows[first])
            piece = self._shard(int(numbers[first]))[start : start + wide * (end - first)]
            out[first:end] = np.frombuffer(piece, np.float32).reshape(end - first, -1)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("mapped vectors can't be an array without being copied")
        return self[:].astype(dtype or np.float32, copy=False)

    def _shard(self, number: int) -> memoryview:
        """The bytes of the vectors of one shard, in its map."""
        if number in self._maps:
            return self._maps[number]
        record = self._space.records[number]
        file = self._space.file(record.file)
        try:
            path = file.store.local_path(file.key, record.size, record.sha256)
            with open_regular(path, record.size, follow=False) as (opened, size):
                data = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ)
        except (NotAFile, FileNotFoundError) as error:
            raise absent_shard(file, record.shard, error) from error
        except OSError as error:
            raise CannotRead(file, error) from error
        except ValueError as error:  # an empty file can't be mapped
            raise damaged(file, OTHER_BYTES) from error
        if size != record.size or (
            number not in self._sound and hashlib.sha256(data).hexdigest() != record.sha256
        ):
            raise damaged(file, OTHER_BYTES)
        arrays = shards.unpack(data, record.arrays)
        if number not in self._sound and not shards.is_finite(arrays):
            raise damaged(file, shards.NOT_FINITE)
        self._sound.add(number)
        if len(self._maps) == MOST_MAPS:
            del self._maps[next(iter(self._maps))]
        self._maps[number] = arrays["features"].reshape(-1).view(np.uint8).data
        return self._maps[number]
