"""Make: cut what is missing into shards, and share them among those who work at one cache.

What `augment` and `featurize` have in common. The plan is pure. A shard of it is claimed before its
first image is decoded; what another process is at, or has committed meanwhile, is left to it. The
work is done in this process, or by the crew of an executor: shard by shard, each committed by the
worker that made it.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import math
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from featurecache import durable, places
from featurecache.errors import BadInput, FeatureCacheError, UnknownName
from featurecache.executors import Progress
from featurecache.executors.crew import Later, Line, TasksFailed, spread
from featurecache.executors.pool import cores, ordered
from featurecache.features.spaces import Space
from featurecache.images.datasets import Dataset
from featurecache.images.samples import Member, Sample
from featurecache.items import Items
from featurecache.locks import Claim

Context = TypeVar("Context")
Made = TypeVar("Made")
Row = tuple[Sample, bytes]  # an image and its item

EXECUTORS = ("local", "processes", "ray")
_LOOK_AGAIN = 0.5  # seconds until shards that others are at are looked at again
_CORES = 8  # for each worker of `processes`, where there are no GPUs: one feeds that many
_SPARSE = 8  # times more images between the first and the last of a shard than in it
_SHOWN = 3  # machines whose share progress shows, and failed shards that an error does


@dataclass(frozen=True)
class Shard:
    """Rows to be computed together, for every space that lacks just these."""

    name: str
    rows: tuple[Row, ...]
    spaces: tuple[int, ...]  # numbers of the spaces

    @property
    def items(self) -> tuple[bytes, ...]:
        return tuple(item for _, item in self.rows)


@dataclass(frozen=True)
class Batch:
    """Rows that a worker makes at once, for some of the numbered spaces."""

    rows: tuple[Row, ...]
    spaces: tuple[int, ...]


class Todo:
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

    def of_part(self, part: tuple[int, int], rows: int) -> Todo:
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
        return Todo(self._samples, self._items, cuts)


def shards_of(samples: Sequence[Sample], items: Items, spaces: Sequence[Space], rows: int) -> Todo:
    """The missing items of each space in dataset order, cut into shards of `rows` (law 3).

    Spaces that miss the same shard share it, so their images are decoded and augmented once. A
    resumed plan names the same shards as the first: whole shards were committed, so the cut falls
    in the same places.
    """
    checked_shard_rows(rows)
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
    return Todo(samples, items, cuts)


def checked_shard_rows(rows: int) -> int:
    """Raises BadInput."""
    if rows < 1:
        raise BadInput(f"shard rows {rows}: must be 1 or more")
    return rows


def checked_part(part: str) -> tuple[int, int]:
    """(i, n) of `i/n`, a job's place in an array of n. Raises BadInput."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    place, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= place <= of:
        raise BadInput(f"part {part!r}: must be I/N with I from 1 to N, as 1/8 for the first of 8")
    return place, of


@dataclass(frozen=True)
class Where:
    """Where shards are made: `executor` is one of EXECUTORS, the others are its settings."""

    executor: str = "local"
    address: str | None = None
    gpus_per_worker: float | None = None
    max_workers: int | None = None


def checked_where(
    executor: str, address: str | None, gpus_per_worker: float | None, max_workers: int | None
) -> Where:
    """These as a Where. Raises BadInput."""
    if executor not in EXECUTORS:
        raise UnknownName("executor", executor, EXECUTORS)
    if address is not None and executor != "ray":
        raise BadInput("--address belongs to --executor ray")
    if executor == "local" and (gpus_per_worker, max_workers) != (None, None):
        raise BadInput("--gpus-per-worker and --max-workers belong to --executor processes or ray")
    if gpus_per_worker is not None and not 0 <= gpus_per_worker < math.inf:
        raise BadInput(f"gpus per worker {gpus_per_worker:g}: must be 0 or more")
    if max_workers is not None and max_workers < 1:
        raise BadInput(f"max workers {max_workers}: must be 1 or more")
    return Where(executor, address, gpus_per_worker, max_workers)


@dataclass(frozen=True)
class Done:
    """What became of a shard. Small, since it may come from another machine."""

    rows: int  # computed here, and committed
    found: int  # committed by others meanwhile
    left: Shard | None  # what others are at
    spent: dict[str, float]  # seconds by part
    least_cosine: dict[str, float] = field(default_factory=dict)  # featurize's
    changed: dict[str, str] = field(default_factory=dict)  # sample id -> why its rows can't be made


class Maker(Protocol):
    """Makes the shards of one job, whatever has to be opened once for all of them open."""

    def work(
        self, shards: Iterable[Shard | None], told: Callable[[int], None]
    ) -> Generator[Done, None, None]:
        """Make and commit each shard; what became of them, in their order. None stands for one that
        is not there yet. `told` of the rows of each batch."""
        ...


class Tally:
    """What a run has done so far, and its progress."""

    def __init__(self, what: str, total: int, hits: int, progress: Progress) -> None:
        self.computed = 0
        self.hits = hits
        self.spent: collections.Counter[str] = collections.Counter()
        self.least_cosine: dict[str, float] = {}
        self.changed: dict[str, str] = {}
        self._what = what
        self._total = total
        self._progress = progress
        self._shares: collections.Counter[str] = collections.Counter()  # rows made by each place
        self._lost = 0

    def rows(self, count: int, place: str = "") -> None:
        self.computed += count
        self._shares[place] += count
        self.show()

    def done(self, done: Done) -> None:
        self.hits += done.found
        self._total -= done.found
        self.spent.update(done.spent)
        self.least_cosine = {**done.least_cosine, **self.least_cosine}
        self.changed |= done.changed
        self.show()

    def lost(self, why: str) -> None:
        self._lost += 1
        self.show(why)

    def show(self, note: str = "") -> None:
        said = [f"{self.hits:,} hits"]
        said += [f"bound by {self.bound}"] if self.spent and self.computed else []
        if any(self._shares.keys()):
            first = self._shares.most_common(_SHOWN)
            shares = [f"{place} {count / max(self.computed, 1):.0%}" for place, count in first]
            more = len(self._shares) - len(first)
            said.append(", ".join(shares) + (f" and {more} more" if more else ""))
        if self._lost:
            said.append(f"{self._lost} workers lost")
        said += [note] if note else []
        self._progress(self.computed, self._total, f"{self._what} ({'; '.join(said)})")

    def failures(self) -> list[dict[str, str]]:
        """`{path, reason}` of the images that were removed or edited since they were listed. Their
        bytes are unknown, so nothing of them is committed: a later run takes them up."""
        return [{"path": path, "reason": why} for path, why in sorted(self.changed.items())]

    def notes(self, dataset: Dataset) -> list[str]:
        """What to do about them."""
        if not self.changed:
            return []
        if dataset.layout == "index":
            return [
                f"the index {dataset.root} is older than {len(self.changed):,} of its images; run "
                "`featurecache index` again"
            ]
        return [
            f"{len(self.changed):,} images were removed or edited while the work ran; run again"
        ]

    @property
    def bound(self) -> str:
        """What was waited for most; of pictures, what takes the most of making them."""
        part = max(("network", "disk", "pictures"), key=lambda part: self.spent[part])
        if part == "pictures":
            return max(("decode", "augment"), key=lambda part: self.spent[part])
        return part


def share(
    maker: Callable[[Any], Maker],
    job: Any,
    todo: Todo,
    where: Where,
    cache: Path,
    gpus: int,
    tally: Tally,
) -> None:
    """Make all of `todo` with `maker(job)`, here or by an executor's workers, each of which opens
    one of its own. `gpus` are those of this machine that `job` would use.

    Raises FeatureCacheError, with the shards that could not be made and why, when all others are.
    """
    if where.executor == "local":
        here = maker(job)
        shards: Iterable[Shard] = todo
        while True:
            left = []
            for done in here.work(shards, tally.rows):
                tally.done(done)
                left += [done.left] if done.left else []
            if not left:
                return
            shards = left
            tally.show(f"waiting for {len(left)} shards of other processes")
            time.sleep(_LOOK_AGAIN)
    source = next(iter(todo)).rows[0][0].source
    if isinstance(source, Member):
        source = source.path
    with _probe(cache) as probe:
        context = (maker, job, probe, None if isinstance(source, bytes) else source)
        tally.show("starting workers")
        with contextlib.closing(_crew(where, context, gpus)) as crew:
            results = spread(crew, todo, tally.lost)
            try:
                for done, place in results:
                    tally.rows(done.rows, place)
                    tally.done(done)
            except TasksFailed as error:
                raise _not_made(error, len(todo)) from error


def _crew(where: Where, context: Any, gpus: int) -> Any:
    if where.executor == "ray":
        from featurecache.executors.cluster import Cluster

        return Cluster(_begin, context, where.address, where.gpus_per_worker, where.max_workers)
    from featurecache.executors.processes import Processes

    each = 1.0 if where.gpus_per_worker is None else where.gpus_per_worker
    if each != int(each):
        raise BadInput(f"gpus per worker {each:g}: --executor processes gives whole ones")
    if not gpus or not each:
        return Processes(_begin, context, where.max_workers or max(1, cores() // _CORES))
    if gpus < each:
        raise BadInput(f"gpus per worker {each:g}: there are {gpus} here")
    count = min(gpus // int(each), where.max_workers or gpus)
    return Processes(_begin, context, count, int(each))


def _begin(context: tuple[Callable[[Any], Maker], Any, Path, Path | None]) -> Any:
    """A worker's beginning: what does a shard when it is called."""
    maker, job, probe, source = context
    if not places.has(probe):
        raise BadInput(
            f"does not see the cache {probe.parent}: it must be one folder, at one path, on every "
            "machine"
        )
    if source is not None and not places.has(source):
        raise BadInput(
            f"does not see the dataset ({source}): it must be at the same path on every machine"
        )
    made = maker(job)

    def work(shards: Iterable[Shard | None]) -> Iterator[Done | Later]:
        for done in made.work(shards, lambda rows: None):
            yield Later(replace(done, left=None), done.left) if done.left else done

    return Line(work)


@contextlib.contextmanager
def _probe(cache: Path) -> Iterator[Path]:
    """A file in the cache, by which workers see that it is the same one."""
    probe = cache.absolute() / "probe"
    if not places.is_remote(cache):
        with durable.temporary_file(probe) as temporary:
            yield temporary
        return
    probe = durable.temporary_name(probe)
    durable.replace(probe, b"")
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _not_made(error: TasksFailed, total: int) -> FeatureCacheError:
    lines = [
        f"{shard.name[:12]} ({shard.rows[0][0].id} and {len(shard.rows) - 1} more): {why}"
        for shard, why in error.failed
    ]
    return FeatureCacheError(
        f"{len(lines)} of {total} shards could not be made; the others are committed, and the same "
        "command tries these again: " + "; ".join(lines)
    )


def make(
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
