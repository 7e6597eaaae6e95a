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
            return _read_checked(opened.fileno(), record.arrays, summary, rows, out)

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


def _read_checked(
    fd: int, arrays: Mapping[str, Array], summary: RowDigests, rows: np.ndarray, out: np.ndarray
) -> bool:
    """Copy the rows to `out`; False if the bytes are not those that were committed."""
    features, digests = arrays["features"], arrays["digests"]
    total = features.shape[0]
    if not reads_whole(rows, total):
        expected = os.pread(fd, math.prod(digests.shape), digests.offset)
        return _read_groups(fd, features, summary, expected, rows, out)
    if len(rows) == total and bool((np.diff(rows) == 1).all()):
        return _read_all(fd, features, summary, out)
    every = np.empty((total, out.shape[1]), out.dtype)
    is_sound = _read_all(fd, features, summary, every)
    out[:] = every[rows]
    return is_sound


def _read_all(fd: int, features: Array, summary: RowDigests, out: np.ndarray) -> bool:
    data = out.reshape(-1).view(np.uint8).data
    hasher = blake3()
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        if os.preadv(fd, [block], features.offset + start) != len(block):
            return False
        hasher.update(block)
    return hasher.hexdigest() == summary.features


def _read_groups(
    fd: int,
    features: Array,
    summary: RowDigests,
    digests: bytes,
    rows: np.ndarray,
    out: np.ndarray,
) -> bool:
    if not summary.has_digests(digests):
        return False
    row_bytes, size = out.shape[1] * out.itemsize, summary.group
    number, group = -1, out[:0]
    for index, row in enumerate(rows.tolist()):
        if row // size != number:
            number = row // size
            count = min(size, features.shape[0] - number * size)
            start = features.offset + number * size * row_bytes
            data = os.pread(fd, count * row_bytes, start)
            if not is_group(data, number, digests):
                return False
            group = np.frombuffer(data, out.dtype).reshape(count, -1)
        out[index] = group[row - number * size]
    return True
