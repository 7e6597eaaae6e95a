"""Rows of a shard in a local file, read and checked without the rest of the shard."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
from blake3 import blake3

from featurecache.errors import CannotRead, DamagedCache, NotAFile
from featurecache.features import shards
from featurecache.features.cache_files import OTHER_BYTES, absent_shard, damaged
from featurecache.features.row_digests import RowDigests, is_group, reads_whole
from featurecache.features.shards import Array
from featurecache.features.space_files import Record
from featurecache.storage.retries import retried_on_disk
from featurecache.storage.safe_open import open_descriptor
from featurecache.storage.stored_file import StoredFile

_BLOCK = 1 << 18  # bytes read and hashed at a time: they stay in a core's own memory


def read_rows(
    file: StoredFile, record: Record, summary: RowDigests, rows: np.ndarray, out: np.ndarray
) -> None:
    """Copy the rows (n,) of a shard in a local store to `out` (n, width), C-contiguous and of the
    stored type. Raises DamagedCache, after which `out` must not be used, and CannotRead."""

    def read() -> str:
        path = file.store.local_path(file.key, record.size, record.sha256)
        with open_descriptor(path, record.size, follow=False) as (fd, size):
            if size != record.size:
                return OTHER_BYTES
            shards.check_extent(record.arrays, size)
            return _read_checked(fd, record.arrays, summary, rows, out)

    try:
        damage = retried_on_disk(read)
    except DamagedCache as error:  # of the record, which states other positions
        raise damaged(file, str(error)) from error
    except (NotAFile, FileNotFoundError) as error:
        raise absent_shard(file, record.shard, error) from error
    except OSError as error:
        raise CannotRead(file, error) from error
    if damage:
        raise damaged(file, damage)


def as_slice(indices: np.ndarray) -> slice | np.ndarray:
    """Consecutive indices as a slice, for which numpy makes one copy and not two."""
    count = len(indices)
    if not count or indices[-1] - indices[0] != count - 1 or (np.diff(indices) != 1).any():
        return indices
    return slice(int(indices[0]), int(indices[0]) + count)


def _read_checked(
    fd: int, arrays: Mapping[str, Array], summary: RowDigests, rows: np.ndarray, out: np.ndarray
) -> str:
    """Copy the rows to `out`. Returns what is wrong with them; "" if nothing is."""
    features, digests = arrays["features"], arrays["digests"]
    total = features.shape[0]
    if not len(rows):
        return ""
    if not reads_whole(rows, total):
        expected = os.pread(fd, math.prod(digests.shape), digests.offset)
        return _read_groups(fd, features, summary, expected, rows, out)
    if len(rows) == total and isinstance(as_slice(rows), slice):
        return _read_all(fd, features, summary, out)
    every = np.empty((total, out.shape[1]), out.dtype)
    damage = _read_all(fd, features, summary, every)
    out[:] = every[rows]
    return damage


def _read_all(fd: int, features: Array, summary: RowDigests, out: np.ndarray) -> str:
    numbers = out.reshape(-1)
    hasher, is_finite = blake3(), True
    step = _BLOCK // out.itemsize
    for start in range(0, len(numbers), step):
        block = numbers[start : start + step]
        data = block.view(np.uint8).data
        if os.preadv(fd, [data], features.offset + start * out.itemsize) != len(data):
            return OTHER_BYTES
        hasher.update(data)
        is_finite = is_finite and bool(np.isfinite(block).all())
    if hasher.hexdigest() != summary.features:
        return OTHER_BYTES
    return "" if is_finite else shards.NOT_FINITE


def _read_groups(
    fd: int,
    features: Array,
    summary: RowDigests,
    digests: bytes,
    rows: np.ndarray,
    out: np.ndarray,
) -> str:
    if not summary.has_digests(digests):
        return OTHER_BYTES
    data = out.reshape(-1).view(np.uint8).data
    row_bytes, size = out.shape[1] * out.itemsize, summary.group
    if hasattr(os, "posix_fadvise"):  # so that a disk reads all groups at the same time
        length = size * row_bytes
        for number in set((rows // size).tolist()):
            start = features.offset + number * length
            os.posix_fadvise(fd, start, length, os.POSIX_FADV_WILLNEED)
    number, group = -1, b""
    for index, row in enumerate(rows.tolist()):
        target = data[index * row_bytes : (index + 1) * row_bytes]
        if size == 1:  # read to where it is used, and checked there
            count = os.preadv(fd, [target], features.offset + row * row_bytes)
            if count != row_bytes or not is_group(target, row, digests):
                return OTHER_BYTES
            continue
        if row // size != number:
            number = row // size
            start = number * size
            count = min(size, features.shape[0] - start) * row_bytes
            group = os.pread(fd, count, features.offset + start * row_bytes)
            if not is_group(group, number, digests):
                return OTHER_BYTES
        first = (row - number * size) * row_bytes
        target[:] = group[first : first + row_bytes]
    return "" if shards.is_finite({"features": out}) else shards.NOT_FINITE
