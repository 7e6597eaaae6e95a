"""The plan of a fill: the missing rows of each space, cut into shards."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.spaces import Space
from featurecache.images.layouts.indexes import Indexed
from featurecache.images.samples import Sample, is_sparse, read_together, samples_at
from featurecache.items import Items
from featurecache.storage.stored_file import StoredFile

ImageItem = tuple[Sample, bytes]  # an image and its item


class IndexedRows(Sequence[ImageItem]):
    """Images of an index. Another process gets their positions alone, and reads their names from
    the index."""

    def __init__(self, samples: Indexed, offsets: np.ndarray, items: np.ndarray) -> None:
        """`samples` begin and end with the images; `offsets` (n,) are positions in them."""
        self._samples, self._offsets, self._items = samples, offsets, items

    def __getstate__(self) -> dict[str, object]:
        names = ("_samples", "_offsets", "_items")
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return len(self._offsets)

    @cached_property
    def _rows(self) -> tuple[ImageItem, ...]:
        samples = samples_at(self._samples, self._offsets)
        return tuple(zip(samples, (item.tobytes() for item in self._items), strict=True))

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ImageItem, ...]: ...
    def __getitem__(self, index: int | slice) -> ImageItem | tuple[ImageItem, ...]:
        return self._rows[index]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Rows to be computed together, for every space that lacks exactly these."""

    name: str
    rows: Sequence[ImageItem]
    spaces: tuple[int, ...]  # indexes of the spaces

    @property
    def items(self) -> tuple[bytes, ...]:
        return tuple(item for _, item in self.rows)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that a worker computes in one call, for the spaces with these indexes."""

    rows: Sequence[ImageItem]
    spaces: tuple[int, ...]


def batches_of(
    rows: Sequence[ImageItem], spaces: tuple[int, ...], batch_rows: int
) -> Iterator[Batch]:
    """The batches of some rows, whose images are read with few requests. Of no rows, an empty
    one."""
    # Only samples that are not handed out yet, since they keep the bytes that were read.
    samples = deque(read_together([sample for sample, _ in rows]))
    for start in range(0, max(len(rows), 1), batch_rows):
        items = [item for _, item in rows[start : start + batch_rows]]
        yield Batch(rows=tuple((samples.popleft(), item) for item in items), spaces=spaces)


class ShardPlan:
    """The missing shards, in dataset order. It stores only the positions of each shard's images in
    the dataset, and reads the samples as it is iterated."""

    def __init__(
        self,
        samples: Sequence[Sample],
        items: Items,
        cuts: Sequence[tuple[str, np.ndarray, tuple[int, ...]]],
    ) -> None:
        self._samples, self._items, self._cuts = samples, items, cuts

    def __len__(self) -> int:
        return len(self._cuts)

    def __iter__(self) -> Iterator[Shard]:
        for name, positions, spaces in self._cuts:
            array = self._items.array[positions]
            rows: Sequence[ImageItem]
            first, last = int(positions[0]), int(positions[-1])
            if isinstance(self._samples, Indexed) and not is_sparse(positions):
                span = self._samples.between(first, last + 1)
                rows = IndexedRows(span, positions - first, array)
            else:
                samples = samples_at(self._samples, positions)
                items = [item.tobytes() for item in array]
                rows = tuple(zip(samples, items, strict=True))
            yield Shard(name=name, rows=rows, spaces=spaces)

    @property
    def index(self) -> Path | StoredFile | None:
        """The index file that other processes read the names of images from, which then are not
        sent to them; None if they may not see it."""
        return self._samples.file if isinstance(self._samples, Indexed) else None

    @property
    def rows(self) -> int:
        """The total number of rows of these shards in all their spaces."""
        return sum(len(positions) * len(spaces) for _, positions, spaces in self._cuts)

    @property
    def spaces(self) -> list[int]:
        """The indexes of the spaces that lack rows."""
        return sorted({number for _, _, spaces in self._cuts for number in spaces})

    def of_part(self, part: tuple[int, int], rows: int) -> ShardPlan:
        """The shards of job i of n; `part` is (i, n), and `rows` the rows per shard. The jobs need
        not know of each other.

        The position of a shard's first image among all images decides, not the shard's position in
        the plan, which gets shorter as jobs work. Jobs that start at different times therefore
        divide the work in the same way, and a job that is rerun gets the shards that it failed to
        compute.
        """
        number, count = part
        firsts = np.array([positions[0] for _, positions, _ in self._cuts], np.int64)
        chosen = np.searchsorted(self._items.distinct, firsts) // rows % count == number - 1
        cuts = [
            cut for cut, is_chosen in zip(self._cuts, chosen.tolist(), strict=True) if is_chosen
        ]
        return ShardPlan(self._samples, self._items, cuts)


def plan_shards(
    samples: Sequence[Sample], items: Items, spaces: Sequence[Space], rows: int
) -> ShardPlan:
    """The missing items of each space in dataset order, cut into shards of `rows` rows. Law 3,
    "Rows are addressed by item".

    Spaces that lack the same shard share it, so that its images are decoded and augmented once. A
    resumed plan has the same shards as the first plan: only complete shards were committed, so it
    is cut at the same images.
    """
    check_shard_rows(rows)
    distinct, images = items.distinct, items.distinct_array
    shards: dict[str, tuple[np.ndarray, list[int]]] = {}
    for number, space in enumerate(spaces):
        missing = distinct[~space.holds(images)]
        for start in range(0, len(missing), rows):
            positions = missing[start : start + rows]
            name = hashlib.sha256(items.array[positions].tobytes()).hexdigest()
            shards.setdefault(name, (positions, []))[1].append(number)
    in_order = sorted(shards.items(), key=lambda pair: int(pair[1][0][0]))
    cuts = [(name, positions, tuple(numbers)) for name, (positions, numbers) in in_order]
    return ShardPlan(samples, items, cuts)


def check_shard_rows(rows: int) -> int:
    """The rows per shard. Raises BadInput if there are fewer than 1."""
    if rows < 1:
        raise BadInput(f"shard rows {rows}: must be 1 or more")
    return rows


def parse_part(part: str) -> tuple[int, int]:
    """(i, n) of `i/n`: job i of n. Raises BadInput."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise BadInput(
            f"part {part!r}: must be I/N with I from 1 to N, such as 1/8, the first of 8"
        )
    return number, count
