"""Samples: one image each, and what identifies its bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurecache.executors import Progress, silent
from featurecache.regular import open_regular

MAX_FILE = 1 << 30  # bytes; decode.MAX_PIXELS pixels of 16-bit RGBA, not compressed, are 800 MB


@dataclass(frozen=True, slots=True)
class Sample:
    """One image. `label` indexes the dataset's classes; None only in the split test.

    `id` is the POSIX path relative to the dataset's root (or an index, for digits). In a name that
    is not UTF-8 the odd bytes are escaped, as in `caf\\xe9.jpg`; then `refused` says why it is not
    read.
    """

    id: str
    label: int | None
    split: str
    source: Path | bytes
    refused: str = ""

    def read(self) -> bytes:
        """The encoded bytes. Raises OSError, whose `strerror` says why they can't be had."""
        if isinstance(self.source, bytes):
            return self.source
        with self._opened(self.source) as (file, size):
            return file.read(size + 1)  # one more: a file that grew has other bytes

    def item(self) -> bytes:
        """SHA-256 of what `read` gives, without holding it. Raises OSError as `read` does."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).digest()
        digest = hashlib.sha256()
        with self._opened(self.source) as (file, size):
            left = size + 1
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
        return digest.digest()

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[tuple[BinaryIO, int]]:
        if self.refused:
            raise OSError(errno.EILSEQ, self.refused)
        with open_regular(path, MAX_FILE) as opened:
            yield opened


def sources_of(samples: Sequence[Sample], items: Sequence[bytes | None]) -> dict[bytes, Sample]:
    """item -> the first sample with these bytes, in the order of the samples."""
    found: dict[bytes, Sample] = {}
    for sample, item in zip(samples, items, strict=True):
        if item is not None:
            found.setdefault(item, sample)
    return found


def items_of(
    samples: Sequence[Sample], progress: Progress = silent, threads: int = 8
) -> tuple[list[bytes | None], dict[str, str]]:
    """The item (SHA-256 of the encoded bytes, 32 bytes) of each sample, in order.

    A sample whose bytes can't be read has None there, and its id with the reason in the dict.
    """
    reasons: dict[str, str] = {}

    def hashed(some: Sequence[Sample]) -> list[bytes | None]:
        items: list[bytes | None] = []
        for sample in some:
            try:
                items.append(sample.item())
            except OSError as error:
                items.append(None)
                reasons[sample.id] = error.strerror or str(error)
        return items

    # Slices, as a future for each of a million samples costs more than hashing a small image.
    slices = [samples[i : i + 256] for i in range(0, len(samples), 256)]
    with ThreadPoolExecutor(threads) as pool:
        items: list[bytes | None] = []
        for part in pool.map(hashed, slices):
            items += part
            progress(len(items), len(samples), "hash images")
    return items, {sample.id: reasons[sample.id] for sample in samples if sample.id in reasons}
