"""Where the shards of a plan are made: in this process, or by the workers of an executor."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from featurecache.errors import BadInput, FeatureCacheError, UnknownName
from featurecache.executors.pool import cores
from featurecache.executors.scheduler import CallQueue, Deferred, TasksFailed, schedule
from featurecache.filling.shard_plan import Shard, ShardPlan
from featurecache.filling.tally import ShardResult, Tally
from featurecache.images.samples import Member
from featurecache.storage import durable, object_store

EXECUTORS = ("local", "processes", "ray")

_LOOK_AGAIN = 0.5  # seconds until shards that others are at are looked at again

_CORES = 8  # for each worker of `processes`, where there are no GPUs: one feeds that many


@dataclass(frozen=True)
class Where:
    """Where shards are made: `executor` is one of EXECUTORS, the others are its settings."""

    executor: str = "local"
    address: str | None = None
    gpus_per_worker: float | None = None
    max_workers: int | None = None


def check_where(
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


class Maker(Protocol):
    """Makes the shards of one job, whatever has to be opened once for all of them open."""

    def work(
        self, shards: Iterable[Shard | None], told: Callable[[int], None]
    ) -> Generator[ShardResult, None, None]:
        """Make and commit each shard; what became of them, in their order. None stands for one that
        is not there yet. `told` of the rows of each batch."""
        ...


def dispatch(
    maker: Callable[[Any], Maker],
    job: Any,
    todo: ShardPlan,
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
            results = schedule(crew, todo, tally.lost)
            try:
                for done, machine in results:
                    tally.rows(done.rows, machine)
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
    if not object_store.has(probe):
        raise BadInput(
            f"does not see the cache {probe.parent}: it must be one folder, at one path, on every "
            "machine"
        )
    if source is not None and not object_store.has(source):
        raise BadInput(
            f"does not see the dataset ({source}): it must be at the same path on every machine"
        )
    made = maker(job)

    def work(shards: Iterable[Shard | None]) -> Iterator[ShardResult | Deferred]:
        for done in made.work(shards, lambda rows: None):
            yield Deferred(replace(done, left=None), done.left) if done.left else done

    return CallQueue(work)


@contextlib.contextmanager
def _probe(cache: Path) -> Iterator[Path]:
    """A file in the cache, by which workers see that it is the same one."""
    probe = cache.absolute() / "probe"
    if not object_store.is_remote(cache):
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
