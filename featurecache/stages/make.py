"""Make: cut what is missing into shards, and share them among the processes at one cache.

What `augment` and `featurize` have in common. The plan is pure. A shard of it is claimed before its
first image is decoded; what another process is at, or has committed meanwhile, is left to it.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from featurecache.errors import BadInput
from featurecache.executors import ordered
from featurecache.features.shards import shard_name
from featurecache.features.spaces import Space
from featurecache.images.samples import Sample
from featurecache.locks import Claim

Context = TypeVar("Context")
Made = TypeVar("Made")

_LOOK_AGAIN = 0.5  # seconds until shards that others are at are looked at again


@dataclass(frozen=True)
class Shard:
    """Rows to be computed together, for every space that lacks just these."""

    name: str
    items: tuple[bytes, ...]
    spaces: tuple[int, ...]  # numbers of the spaces


@dataclass(frozen=True)
class Batch:
    """Rows that a worker makes at once, for some of the numbered spaces."""

    rows: tuple[tuple[Sample, bytes], ...]
    spaces: tuple[int, ...]


def shards_of(items: Iterable[bytes], spaces: Sequence[Space], rows: int) -> list[Shard]:
    """The missing items of each space in dataset order, cut into shards of `rows` (law 3).

    Spaces that miss the same shard share it, so their images are decoded and augmented once. A
    resumed plan names the same shards as the first: whole shards were committed, so the cut falls
    in the same places.
    """
    if rows < 1:
        raise BadInput(f"shard rows {rows}: must be 1 or more")
    wanted = list(dict.fromkeys(items))
    found: dict[tuple[bytes, ...], list[int]] = {}
    for number, space in enumerate(spaces):
        missing = space.missing(wanted)
        for start in range(0, len(missing), rows):
            found.setdefault(tuple(missing[start : start + rows]), []).append(number)
    position = {item: i for i, item in enumerate(wanted)}
    in_order = sorted(found.items(), key=lambda pair: position[pair[0][0]])
    return [Shard(shard_name(items), items, tuple(numbers)) for items, numbers in in_order]


def rows_of(shards: Iterable[Shard]) -> int:
    """How many rows these shards are, in all their spaces."""
    return sum(len(shard.items) * len(shard.spaces) for shard in shards)


def checked_part(part: str) -> tuple[int, int]:
    """(i, n) of `i/n`, a job's place in an array of n. Raises BadInput."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    place, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= place <= of:
        raise BadInput(f"part {part!r}: must be I/N with I from 1 to N, as 1/8 for the first of 8")
    return place, of


def of_part(
    shards: Sequence[Shard], items: Iterable[bytes], rows: int, part: tuple[int, int]
) -> list[Shard]:
    """Of a plan the shards that are one job's, of n that know nothing of each other.

    A shard belongs to the place in the dataset of its first item, and not to its place in the plan,
    which others shorten while they work: so jobs that begin at other times divide it alike, and
    what one of them fails to do is its own again.
    """
    place, of = part
    position = {item: number for number, item in enumerate(dict.fromkeys(items))}
    return [s for s in shards if position[s.items[0]] // rows % of == place - 1]


def make(
    todo: Sequence[Shard],
    spaces: Sequence[Space],
    sources: Mapping[bytes, Sample],
    size: int,
    function: Callable[[Context, Batch], Made],
    context: Context,
    workers: int,
    found: Callable[[int, int], None],
) -> Iterator[tuple[Shard, Iterator[Made]]]:
    """Each shard that is to be made here, with `function(context, batch)` of its batches of `size`
    rows, in their order. Commit the shard before asking for the next, which ends the claim on it.

    When only shards are left that others are at, their end is waited for: what a killed process
    leaves is made. `found(rows, waiting)` is told of rows that another process has committed
    meanwhile, and of the number of shards that are waited for.
    """

    def once(todo: Sequence[Shard], busy: list[Shard]) -> Iterator[tuple[Shard, Iterator[Made]]]:
        claimed: collections.deque[tuple[Shard, list[Claim]]] = collections.deque()

        def batches() -> Iterator[Batch]:
            for shard in todo:
                mine, claims = _claim(shard, spaces, busy, found)
                if mine.spaces:
                    claimed.append((mine, claims))
                    rows = [(sources[item], item) for item in mine.items]
                    for i in range(0, len(rows), size):
                        yield Batch(tuple(rows[i : i + size]), mine.spaces)

        try:
            with contextlib.closing(ordered(function, context, batches(), workers)) as results:
                for first in results:
                    shard, claims = claimed[0]
                    others = -(-len(shard.items) // size) - 1
                    yield shard, itertools.chain([first], itertools.islice(results, others))
                    claimed.popleft()
                    for claim in claims:
                        claim.release()
        finally:
            for _, claims in claimed:
                for claim in claims:
                    claim.release()

    while todo:
        busy: list[Shard] = []
        yield from once(todo, busy)
        todo = busy
        if busy:
            found(0, len(busy))
            time.sleep(_LOOK_AGAIN)


def _claim(
    shard: Shard, spaces: Sequence[Space], busy: list[Shard], found: Callable[[int, int], None]
) -> tuple[Shard, list[Claim]]:
    """The part of a shard that is to be made here, with the claims on it."""
    mine, others, claims = [], [], []
    for number in shard.spaces:
        claim = spaces[number].claim(shard.name)
        if claim is None:
            others.append(number)
        elif spaces[number].has(shard.name):  # asked under the claim: now nobody else can do it
            claim.release()
            found(len(shard.items), 0)
        else:
            claims.append(claim)
            mine.append(number)
    if others:
        busy.append(replace(shard, spaces=tuple(others)))
    return replace(shard, spaces=tuple(mine)), claims
