"""Samples: single images, and the hashes that identify their bytes."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from featurecache.executors import Progress, silent
from featurecache.images.item_memos import ItemMemo, Part
from featurecache.items import Items
from featurecache.storage.safe_open import open_regular
from featurecache.storage.stored_file import StoredFile, open_file
from featurecache.text import reason_of

_MAX_SHARD = 1 << 50  # bytes of a file that contains many images
MAX_FILE = 1 << 30  # bytes; MAX_PIXELS pixels of uncompressed 16-bit RGBA are 800 MB
_MAX_GAP = 1 << 16  # bytes between images that are read together: labels, heads of members
_MAX_SPAN = 1 << 25  # bytes that are read together
_MAX_SHARED = 1 << 20  # bytes of an image that is read with others; they stay in memory together
_SPARSE = 8  # samples are sparse if their span in the dataset is this many times their number

SPLITS = ("train", "val", "test")
Named = TypeVar("Named")


class Span:
    """Bytes of an object that are requested once, when the first of them are needed. Threads may
    share it."""

    def __init__(self, file: StoredFile, start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end
        self._content: bytes | OSError | None = None
        self._lock = threading.Lock()

    def load(self) -> bytes | OSError:
        """All the bytes, or why they can't be read."""
        with self._lock:
            if self._content is None:
                try:
                    self._content = self._file.read_range(self._start, self._end)
                except OSError as error:
                    self._content = error
            return self._content

    def part(self, start: int, end: int) -> bytes | OSError:
        """Some of the bytes, or why they can't be read."""
        content = self.load()
        if isinstance(content, OSError):
            return OSError(content.errno, content.strerror)
        return content[start - self._start : end - self._start]


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes inside a larger file: an image of a tar shard."""

    path: Path | StoredFile
    start: int
    size: int
    # The bytes, why they can't be read, or a request for them: see `read_together`.
    content: Span | bytes | OSError | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[Member], tuple[object, ...]]:  # faster than a dataclass's
        return Member, (self.path, self.start, self.size, self._content())  # of a span, its part

    def _content(self) -> bytes | OSError | None:
        if isinstance(self.content, Span):
            return self.content.part(self.start, self.start + self.size)
        return self.content

    def read(self) -> bytes:
        """The bytes. Raises OSError."""
        content = self._content()
        if isinstance(content, OSError):
            raise content
        if content is not None:
            return content
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

    def __reduce__(self) -> tuple[type[Sample], tuple[object, ...]]:  # faster than a dataclass's
        named = (self.id, self.label, self.split, self.source)
        return Sample, (*named, self.refused, self.group, self.origin)

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


def samples_at(samples: Sequence[Named], positions: np.ndarray) -> list[Named]:
    """The samples at these positions (n,)."""
    if is_sparse(positions):
        return [samples[position] for position in positions.tolist()]
    first, last = int(positions.min()), int(positions.max())
    span = list(samples[first : last + 1])  # faster than single reads of an index
    return [span[position - first] for position in positions.tolist()]


def is_sparse(positions: np.ndarray) -> bool:
    """Whether many samples lie between those at these positions (n,)."""
    return not len(positions) or int(np.ptp(positions)) >= _SPARSE * len(positions)


def read_together(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, of which small ones that lie beside each other in a tar shard of an object
    store, in any order, are read in one request."""
    by_object: dict[StoredFile, list[tuple[int, int, int]]] = {}
    for index, sample in enumerate(samples):
        member = sample.source
        if not isinstance(member, Member) or member.size > _MAX_SHARED:
            continue
        if isinstance(member.path, StoredFile):
            extent = (member.start, member.start + member.size, index)
            by_object.setdefault(member.path, []).append(extent)
    together = list(samples)
    for file, extents in by_object.items():
        for run in _runs(sorted(extents)):
            span = Span(file, run[0][0], max(end for _, end, _ in run))
            for start, end, index in run if len(run) > 1 else ():
                source = Member(file, start, end - start, span)
                together[index] = replace(samples[index], source=source)
    return together


def _runs(extents: Iterable[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """The extents (start, end, index) in an object, divided where too many bytes are between two,
    or too many bytes are together."""
    runs: list[list[tuple[int, int, int]]] = []
    for start, end, index in extents:
        is_beside = runs and start - runs[-1][-1][1] <= _MAX_GAP
        if is_beside and end - runs[-1][0][0] <= _MAX_SPAN:
            runs[-1].append((start, end, index))
        else:
            runs.append([(start, end, index)])
    return runs


def spans_of(samples: Iterable[Sample]) -> set[Span]:
    """What `read_together` reads for these samples."""
    members = (sample.source for sample in samples if isinstance(sample.source, Member))
    return {member.content for member in members if isinstance(member.content, Span)}


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
                reasons[sample.id] = reason_of(error)
        return items

    memo = ItemMemo([_part_of(sample) if use_memos else None for sample in samples])
    items = memo.items()
    unknown = [index for index, item in enumerate(items) if item is None]
    # Slices, because a future per sample costs more than hashing a small image.
    slices = [unknown[i : i + 256] for i in range(0, len(unknown), 256)]
    done = len(items) - len(unknown)
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(
            lambda indices: hashed(read_together([samples[i] for i in indices])), slices
        )
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
