"""The plan of a fill: the missing rows of each space, cut into shards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.spaces import Space
from featurecache.images.samples import Sample
from featurecache.items import Items

ImageItem = tuple[Sample, bytes]  # an image and its item

_SPARSE = 8  # times more images between the first and the last of a shard than in it


@dataclass(frozen=True)
class Shard:
    """Rows to be computed together, for every space that lacks just these."""

    name: str
    rows: tuple[ImageItem, ...]
    spaces: tuple[int, ...]  # numbers of the spaces

    @property
    def items(self) -> tuple[bytes, ...]:
        return tuple(item for _, item in self.rows)


@dataclass(frozen=True)
class Batch:
    """Rows that a worker makes at once, for some of the numbered spaces."""

    rows: tuple[ImageItem, ...]
    spaces: tuple[int, ...]


class ShardPlan:
    """A plan: shards that are missing, in dataset order. Of each it has the places of its images in
    the dataset; the images themselves are looked up as it is gone through."""

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
        for name, at, spaces in self._cuts:
            first, last = int(at[0]), int(at[-1])
            if last - first < _SPARSE * len(at):  # samples that lie together are cheaper together
                near = list(self._samples[first : last + 1])
                samples = [near[place - first] for place in at.tolist()]
            else:
                samples = [self._samples[place] for place in at.tolist()]
            items = [item.tobytes() for item in self._items.array[at]]
            yield Shard(name, tuple(zip(samples, items, strict=True)), spaces)

    @property
    def rows(self) -> int:
        """How many rows these shards are, in all their spaces."""
        return sum(len(at) * len(spaces) for _, at, spaces in self._cuts)

    @property
    def spaces(self) -> list[int]:
        """The numbers of the spaces that lack something."""
        return sorted({number for _, _, spaces in self._cuts for number in spaces})

    def of_part(self, part: tuple[int, int], rows: int) -> ShardPlan:
        """Those of the shards, cut by `rows`, that are one job's of n that know nothing of each
        other.

        A shard belongs to the place among the images of its first one, and not to its place in the
        plan, which others shorten while they work: so jobs that begin at other times divide it
        alike, and what one of them fails to do is its own again.
        """
        place, of = part
        firsts = np.array([at[0] for _, at, _ in self._cuts], np.int64)
        mine = np.searchsorted(self._items.distinct, firsts) // rows % of == place - 1
        cuts = [cut for cut, taken in zip(self._cuts, mine.tolist(), strict=True) if taken]
        return ShardPlan(self._samples, self._items, cuts)


def plan_shards(
    samples: Sequence[Sample], items: Items, spaces: Sequence[Space], rows: int
) -> ShardPlan:
    """The missing items of each space in dataset order, cut into shards of `rows` (law 3).

    Spaces that miss the same shard share it, so their images are decoded and augmented once. A
    resumed plan names the same shards as the first: whole shards were committed, so the cut falls
    in the same places.
    """
    check_shard_rows(rows)
    distinct = items.distinct
    images = items.array if len(distinct) == len(items) else items.array[distinct]
    found: dict[str, tuple[np.ndarray, list[int]]] = {}
    for number, space in enumerate(spaces):
        missing = distinct[~space.holds(images)]
        for start in range(0, len(missing), rows):
            at = missing[start : start + rows]
            name = hashlib.sha256(items.array[at].tobytes()).hexdigest()
            found.setdefault(name, (at, []))[1].append(number)
    in_order = sorted(found.items(), key=lambda pair: int(pair[1][0][0]))
    cuts = [(name, at, tuple(numbers)) for name, (at, numbers) in in_order]
    return ShardPlan(samples, items, cuts)


def check_shard_rows(rows: int) -> int:
    """Raises BadInput."""
    if rows < 1:
        raise BadInput(f"shard rows {rows}: must be 1 or more")
    return rows


def parse_part(part: str) -> tuple[int, int]:
    """(i, n) of `i/n`, a job's place in an array of n. Raises BadInput."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    place, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= place <= of:
        raise BadInput(f"part {part!r}: must be I/N with I from 1 to N, as 1/8 for the first of 8")
    return place, of
