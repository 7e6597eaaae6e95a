"""Rows of a shard in a local file, read and checked without the rest of the shard."""

from __future__ import annotations

import math
import os

import numpy as np
from blake3 import blake3

from featurecache.errors import CannotRead, DamagedCache, NotAFile
from featurecache.features import shards
from featurecache.features.cache_files import OTHER_BYTES, absent_shard, damaged
from featurecache.features.row_digests import SIZE, RowDigests, reads_whole
from featurecache.features.shards import Array
from featurecache.features.space_files import Record
from featurecache.storage.retries import retried_on_disk
from featurecache.storage.safe_open import open_regular
from featurecache.storage.stored_file import StoredFile

_BLOCK = 1 << 18  # bytes read and hashed at a time: they stay in a core's own memory


def read_rows(
    file: StoredFile, record: Record, summary: RowDigests, rows: np.ndarray, out: np.ndarray
) -> None:
    """Copy the rows (n,) of a shard in a local store to `out` (n, width), C-contiguous and of the
    stored type. Raises DamagedCache, after which `out` must not be used, and CannotRead."""

    def read() -> bool:
        path = file.store.local_path(file.key, record.size, record.sha256)
        with open_regular(path, record.size, follow=False) as (opened, size):
            if size != record.size:
                return False
            shards.check_extent(record.arrays, size)
            features, digests = record.arrays["features"], record.arrays["digests"]
            reader = _RowReader(opened.fileno(), features, digests, summary)
            return reader.read_into(out, rows)

    try:
        is_sound = retried_on_disk(read)
    except DamagedCache as error:  # of the record, which states other positions
        raise damaged(file, str(error)) from error
    except (NotAFile, FileNotFoundError) as error:
        raise absent_shard(file, record.shard, error) from error
    except OSError as error:
        raise CannotRead(file, error) from error
    if not is_sound:
        raise damaged(file, OTHER_BYTES)


class _RowReader:
    """Rows of one shard, read from its open file and checked before they are used."""

    def __init__(self, fd: int, features: Array, digests: Array, summary: RowDigests) -> None:
        """`features` and `digests` are the positions of the two arrays in the file."""
        self._fd = fd
        self._features = features
        self._digests = digests
        self._summary = summary
        self._total = features.shape[0]
        self.dtype = np.dtype(features.dtype)
        self.width = math.prod(features.shape[1:])

    def read_into(self, out: np.ndarray, rows: np.ndarray) -> bool:
        """Copy the rows with these numbers to `out` (n, width), which is C-contiguous. False if the
        bytes are not those that were committed; then `out` must not be used."""
        if not reads_whole(rows, self._total):
            return self._read_groups(out, rows)
        if len(rows) == self._total and bool((np.diff(rows) == 1).all()):
            return self._read_all(out)
        every = np.empty((self._total, self.width), self.dtype)
        is_sound = self._read_all(every)
        out[:] = every[rows]
        return is_sound

    def _read_all(self, out: np.ndarray) -> bool:
        data = out.reshape(-1).view(np.uint8).data
        hasher = blake3()
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            if os.preadv(self._fd, [block], self._features.offset + start) != len(block):
                return False
            hasher.update(block)
        return hasher.hexdigest() == self._summary.features

    def _read_groups(self, out: np.ndarray, rows: np.ndarray) -> bool:
        digests = os.pread(self._fd, math.prod(self._digests.shape), self._digests.offset)
        if blake3(digests).hexdigest() != self._summary.digests:
            return False
        row_bytes, size = self.width * self.dtype.itemsize, self._summary.group
        number, group = -1, out[:0]
        for index, row in enumerate(rows.tolist()):
            if row // size != number:
                number = row // size
                count = min(size, self._total - number * size)
                start = self._features.offset + number * size * row_bytes
                data = os.pread(self._fd, count * row_bytes, start)
                if blake3(data).digest(SIZE) != digests[number * SIZE : (number + 1) * SIZE]:
                    return False
                group = np.frombuffer(data, self.dtype).reshape(count, self.width)
            out[index] = group[row - number * size]
        return True
