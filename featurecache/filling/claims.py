"""Shards that this process has claimed, with the batches to compute for them.

A shard is claimed before its first image is decoded. What another process has claimed, or has
committed meanwhile, is left to it."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from featurecache.executors.pool import ordered
from featurecache.features.spaces import Space
from featurecache.filling.shard_plan import Batch, Shard
from featurecache.storage.locks import Claim

Context = TypeVar("Context")

Made = TypeVar("Made")


def claimed_shards(
    todo: Iterable[Shard | None],
    spaces: Sequence[Space],
    size: int,
    function: Callable[[Context, Batch], Made],
    context: Context,
    workers: int,
) -> Generator[tuple[Shard, Iterator[Made], int, Shard | None], None, None]:
    """Each shard, with what is to be made of it here, and `function(context, batch)` of its batches
    of `size` rows, in their order; beside it the number of rows that another process has committed
    meanwhile, and what of the shard another is at.

    Commit the shard before asking for the next, which ends the claim on it. A shard of which
    nothing is to be made here has one batch, of no rows.
    """
    claimed: collections.deque[_Claimed] = collections.deque()

    def batches() -> Iterator[Batch | None]:
        for shard in todo:
            if shard is None:
                yield None
                continue
            one = _claim(shard, spaces)
            claimed.append(one)
            rows = one.mine.rows if one.mine.spaces else ()
            for i in range(0, max(len(rows), 1), size):
                yield Batch(rows[i : i + size], one.mine.spaces)

    try:
        with contextlib.closing(ordered(function, context, batches(), workers)) as results:
            for first in results:
                one = claimed[0]
                count = -(-len(one.mine.rows) // size) if one.mine.spaces else 1
                made = itertools.chain([first], itertools.islice(results, count - 1))
                yield one.mine, made, one.found, one.left
                claimed.popleft().release()
    finally:
        for one in claimed:
            one.release()


@dataclass(frozen=True)
class _Claimed:
    mine: Shard
    claims: list[Claim]
    found: int
    left: Shard | None

    def release(self) -> None:
        for claim in self.claims:
            claim.release()


def _claim(shard: Shard, spaces: Sequence[Space]) -> _Claimed:
    """The part of a shard that is to be made here, with the claims on it."""
    mine, others, claims, found = [], [], [], 0
    for number in shard.spaces:
        claim = spaces[number].claim(shard.name)
        if claim is None:
            others.append(number)
        elif spaces[number].has(shard.name):  # asked under the claim: now nobody else can do it
            claim.release()
            found += len(shard.rows)
        else:
            claims.append(claim)
            mine.append(number)
    left = replace(shard, spaces=tuple(others)) if others else None
    return _Claimed(replace(shard, spaces=tuple(mine)), claims, found, left)
