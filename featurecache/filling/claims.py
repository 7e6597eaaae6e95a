"""Shards that this process has claimed, with the batches to compute for them.

A shard is claimed before its first image is decoded. This process skips what another process has
claimed, or has committed in the meantime.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Generic, TypeVar

from featurecache.executors.pool import ordered
from featurecache.features.space_locks import claim_shard
from featurecache.features.spaces import Space
from featurecache.filling.shard_plan import Batch, Shard, batches_of
from featurecache.images.samples import spans_of
from featurecache.storage.locks import Claim

_REQUESTS = 8  # at once: a few hundred MB/s, which is what a GPU needs
Context = TypeVar("Context")

Made = TypeVar("Made")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ShardWork(Generic[Made]):
    """The part of a shard that this process has to compute."""

    shard: Shard  # only with the spaces that this process has claimed
    batches: Iterator[Made]  # the function's results, in the order of the rows
    committed: int  # rows that another process has committed in the meantime
    busy: Shard | None  # the part that another process has claimed


@dataclass(frozen=True, kw_only=True)
class ClaimedShard(Generic[Made]):
    """A claimed shard. `with claimed_shard as work:` gives its work. Commit the shard inside the
    block; the end of the block releases the claims."""

    work: ShardWork[Made]
    claims: Sequence[Claim] = field(repr=False)

    def __enter__(self) -> ShardWork[Made]:
        return self.work

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _release(self.claims)


def shard_results(
    shards: Generator[ClaimedShard[Made], None, None],
    make: Callable[[ShardWork[Made]], Result],
) -> Generator[Result, None, None]:
    """Yield `make(work)` of each claimed shard, once its claims are released."""
    with contextlib.closing(shards):
        for claimed_shard in shards:
            with claimed_shard as work:
                result = make(work)
            yield result


def claimed_shards(
    todo: Iterable[Shard | None],
    spaces: Sequence[Space],
    batch_rows: int,
    function: Callable[[Context, Batch], Made],
    context: Context,
    workers: int,
) -> Generator[ClaimedShard[Made], None, None]:
    """Yield each shard of `todo` as a context manager, with `function(context, batch)` of each of
    its batches.

    Shards are claimed a few ahead, as the workers need batches. A None in `todo` means that there
    is no shard yet. A shard with nothing to compute has one empty batch. Closing the generator
    releases the claims on shards that it has not handed out.
    """
    claimed: collections.deque[_Claimed] = collections.deque()
    requests = ThreadPoolExecutor(_REQUESTS)  # for images in object stores

    def batches() -> Iterator[Batch | None]:
        for shard in todo:
            if shard is None:
                yield None
                continue
            claim = _claim(shard, spaces)
            claimed.append(claim)
            rows = claim.shard.rows if claim.shard.spaces else ()
            for batch in batches_of(rows, claim.shard.spaces, batch_rows):
                for span in spans_of(sample for sample, _ in batch.rows):
                    requests.submit(span.load)  # while earlier batches are computed
                yield batch

    with contextlib.closing(ordered(function, context, batches(), workers)) as results:
        try:
            for first in results:
                claim = claimed.popleft()
                count = -(-len(claim.shard.rows) // batch_rows) if claim.shard.spaces else 1
                work = ShardWork(
                    shard=claim.shard,
                    batches=itertools.chain([first], itertools.islice(results, count - 1)),
                    committed=claim.committed,
                    busy=claim.busy,
                )
                yield ClaimedShard(work=work, claims=claim.claims)
        finally:
            for claim in claimed:
                _release(claim.claims)
            requests.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class _Claimed:
    shard: Shard
    claims: list[Claim]
    committed: int
    busy: Shard | None


def _claim(shard: Shard, spaces: Sequence[Space]) -> _Claimed:
    """Claim a shard in those of its spaces where it is missing and free."""
    claimed, busy, claims, committed = [], [], [], 0
    for number in shard.spaces:
        claim = claim_shard(spaces[number], shard.name)
        if claim is None:
            busy.append(number)
        elif spaces[number].has(shard.name):  # checked under the claim, so nobody can commit it now
            claim.release()
            committed += len(shard.rows)
        else:
            claims.append(claim)
            claimed.append(number)
    return _Claimed(
        shard=replace(shard, spaces=tuple(claimed)),
        claims=claims,
        committed=committed,
        busy=replace(shard, spaces=tuple(busy)) if busy else None,
    )


def _release(claims: Iterable[Claim]) -> None:
    for claim in claims:
        claim.release()
