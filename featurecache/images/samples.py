"""Samples: single images, and the hashes that identify their bytes."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurecache.executors import Progress, silent
from featurecache.images.item_memos import ItemMemo, Part
from featurecache.items import Items
from featurecache.storage.safe_open import open_regular
from featurecache.storage.stored_file import StoredFile, open_file

_MAX_SHARD = 1 << 50  # bytes of a file that contains many images
MAX_FILE = 1 << 30  # bytes; MAX_PIXELS pixels of uncompressed 16-bit RGBA are 800 MB


SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes inside a larger file: an image of a tar shard."""

    path: Path | StoredFile
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes. Raises OSError."""
        if isinstance(self.path, StoredFile):
            return self.path.read_range(self.start, self.start + self.size)
        with open_regular(self.path, _MAX_SHARD) as (file, _):
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image. `label` is its index in the dataset's classes; it is None only in the split test.

    `id` is the POSIX path relative to the dataset's root (or an index, for digits). Bytes of a name
    that are not UTF-8 are escaped, as in `caf\\xe9.jpg`; such a sample is not read, and `refused`
    gives the reason.
    """

    id: str
    label: int | None
    split: str
    source: Path | StoredFile | bytes | Member
    refused: str = ""
    group: str = ""  # a patient, a camera, a slide: whatever must not be on two sides of a split
    origin: str = ""  # the folder of the dataset of generated images that it is of

    def __repr__(self) -> str:
        where = "in memory" if isinstance(self.source, bytes) else str(self.source)
        return f"<Sample {self.id!r}: split {self.split}, label {self.label}, {where}>"

    def read(self) -> bytes:
        """The encoded bytes. Raises OSError; its `strerror` says why they can't be read."""
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, Member):
            return self.source.read()
        with self._open(self.source) as (file, size):
            return file.read(size + 1)  # one byte more, so that a file that grew has another hash

    def item(self) -> bytes:
        """SHA-256 of the encoded bytes, read in pieces. Raises OSError as `read` does."""
        if isinstance(self.source, bytes | Member):
            return hashlib.sha256(self.read()).digest()
        digest = hashlib.sha256()
        with self._open(self.source) as (file, size):
            left = size + 1
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
        return digest.digest()

    def _open(self, file: Path | StoredFile) -> AbstractContextManager[tuple[BinaryIO, int]]:
        if self.refused:
            raise OSError(errno.EILSEQ, self.refused)
        return open_file(file, MAX_FILE)


def sources_of(samples: Sequence[Sample], items: Sequence[bytes | None]) -> dict[bytes, Sample]:
    """The first sample with the bytes of each item, in the order of the samples."""
    sources: dict[bytes, Sample] = {}
    for sample, item in zip(samples, items, strict=True):
        if item is not None:
            sources.setdefault(item, sample)
    return sources


def items_of(
    samples: Sequence[Sample],
    progress: Progress = silent,
    threads: int = 8,
    *,
    use_memos: bool = True,
) -> tuple[Items, dict[str, str]]:
    """The item (SHA-256 of the encoded bytes, 32 bytes) of each sample, in order, and what could
    not be read.

    An index already contains the items; they are checked when an image is read. Files that have not
    changed since they were hashed are not read again (item_memos.py), unless `use_memos` is false.
    For a sample whose bytes can't be read, the item is None and the dict has the reason by the
    sample's id.
    """
    known_items = getattr(samples, "items", None)
    if known_items is not None:
        return known_items, {}
    reasons: dict[str, str] = {}

    def hashed(part: Sequence[Sample]) -> list[bytes | None]:
        items: list[bytes | None] = []
        for sample in part:
            try:
                items.append(sample.item())
            except OSError as error:
                items.append(None)
                reasons[sample.id] = error.strerror or str(error)
        return items

    memo = ItemMemo([_part_of(sample) if use_memos else None for sample in samples])
    items = memo.items()
    unknown = [index for index, item in enumerate(items) if item is None]
    # Slices, because a future per sample costs more than hashing a small image.
    slices = [unknown[i : i + 256] for i in range(0, len(unknown), 256)]
    done = len(items) - len(unknown)
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(lambda indices: hashed([samples[i] for i in indices]), slices)
        for indices, part in zip(slices, work, strict=True):
            for index, item in zip(indices, part, strict=True):
                items[index] = item
            done += len(part)
            progress(done, len(items), "hash images")
    memo.write(items, len(unknown) - len(reasons))
    return Items.pack(items), {
        sample.id: reasons[sample.id] for sample in samples if sample.id in reasons
    }


def _part_of(sample: Sample) -> Part | None:
    """The file of this machine that has the sample's bytes, and which of its bytes they are."""
    source = sample.source
    if isinstance(source, Path):
        return None if sample.refused else (source, "")
    if isinstance(source, Member) and isinstance(source.path, Path):
        return source.path, f"{source.start}+{source.size}"
    return None
