"""Digests of rows: a reader checks only the rows that it uses (docs/format.md, "Row digests").

A shard has the BLAKE3 digest of all its vectors, for readers of whole shards, and one of each group
of rows, for readers of a few. BLAKE3 is faster than SHA-256, even on a CPU with instructions for
SHA-256.
"""

from __future__ import annotations

import numpy as np
import pydantic
from blake3 import blake3

from featurecache.json_files import Hex64, Strict

SIZE = 16  # bytes of the digest of a group
GROUP_BYTES = 4096  # smaller rows share a digest: it is read together with them


class RowDigests(Strict):
    """What a record says of the digests of its rows."""

    group: pydantic.PositiveInt  # rows per digest; the last group may be smaller
    features: Hex64  # BLAKE3 of the array `features`
    digests: Hex64  # BLAKE3 of the array `digests`

    def shape(self, rows: int) -> tuple[int, int]:
        """The shape of the array `digests` of a shard with that many rows."""
        return -(-rows // self.group), SIZE

    def has_digests(self, digests: bytes) -> bool:
        """Whether the bytes of the array `digests` are those that were committed."""
        return blake3(digests).hexdigest() == self.digests


def digest_rows(features: np.ndarray) -> tuple[np.ndarray, RowDigests]:
    """The array `digests` (groups, 16) uint8 of vectors or maps (N, ...), and its summary."""
    data = np.ascontiguousarray(features).reshape(-1).view(np.uint8).data
    row_bytes = max(1, len(data) // max(1, len(features)))
    group = max(1, GROUP_BYTES // row_bytes)
    size = group * row_bytes
    digests = b"".join(
        blake3(data[start : start + size]).digest(SIZE) for start in range(0, len(data), size)
    )
    summary = RowDigests(
        group=group, features=blake3(data).hexdigest(), digests=blake3(digests).hexdigest()
    )
    return np.frombuffer(digests, np.uint8).reshape(-1, SIZE), summary


def reads_whole(rows: np.ndarray, total: int) -> bool:
    """Whether a reader of these rows of a shard checks all `total` rows at once, which is faster
    from about a quarter of them on."""
    return 4 * len(rows) >= total


def are_sound(
    features: np.ndarray, digests: np.ndarray, summary: RowDigests, rows: np.ndarray
) -> bool:
    """Whether these rows of the array `features` are those that were committed."""
    data = features.reshape(-1).view(np.uint8).data
    if reads_whole(rows, len(features)):
        return blake3(data).hexdigest() == summary.features
    expected = digests.tobytes()
    size = summary.group * (len(data) // len(features))
    return summary.has_digests(expected) and all(
        is_group(data[number * size : (number + 1) * size], number, expected)
        for number in np.unique(rows // summary.group).tolist()
    )


def is_group(data: bytes | memoryview, number: int, digests: bytes) -> bool:
    """Whether `data` is the group of rows with this number, by the checked array `digests`."""
    return blake3(data).digest(SIZE) == digests[number * SIZE : (number + 1) * SIZE]
