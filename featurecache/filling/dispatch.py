"""Computing the shards of a plan: in this process, or by the workers of an executor."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

from featurecache.errors import BadInput, FeatureCacheError, UnknownName
from featurecache.executors.scheduler import CallQueue, Deferred, TasksFailed, schedule
from featurecache.filling.shard_plan import Shard, ShardPlan
from featurecache.filling.tally import ShardResult, Tally
from featurecache.images.samples import Member
from featurecache.machine import cores
from featurecache.storage.retries import retried_on_disk
from featurecache.storage.store import Store
from featurecache.storage.stored_file import StoredFile
from featurecache.text import counted

EXECUTORS = ("local", "processes", "ray")

_POLL_SECONDS = 0.5  # between checks of shards that other processes have claimed

_CORES = 8  # per worker of `processes` without GPUs: one network keeps that many busy


class ExecutorSetting(TypedDict, total=False):
    """The fields of Where, as keywords of a stage."""

    executor: str
    address: str | None
    gpus_per_worker: float | None
    max_workers: int | None


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where shards are computed. `executor` is one of EXECUTORS; the rest are its settings."""

    executor: str = "local"
    address: str | None = None
    gpus_per_worker: float | None = None
    max_workers: int | None = None

    def check(self) -> None:
        """Raise BadInput for settings that are wrong or belong to another executor."""
        gpus, workers = self.gpus_per_worker, self.max_workers
        if self.executor not in EXECUTORS:
            raise UnknownName("executor", self.executor, EXECUTORS)
        if self.address is not None and self.executor != "ray":
            raise BadInput("--address belongs to --executor ray")
        if self.executor == "local" and (gpus, workers) != (None, None):
            raise BadInput(
                "--gpus-per-worker and --max-workers belong to --executor processes or ray"
            )
        if gpus is not None and not 0 <= gpus < math.inf:
            raise BadInput(f"gpus per worker {gpus:g}: must be 0 or more")
        if workers is not None and workers < 1:
            raise BadInput(f"max workers {workers}: must be 1 or more")


class Maker(Protocol):
    """Computes the shards of one job. What they share, such as networks, is opened once."""

    def work(
        self, shards: Iterable[Shard | None], report_rows: Callable[[int], None]
    ) -> Generator[ShardResult, None, None]:
        """Compute and commit each shard, and yield the results in order. A None in `shards` means
        that there is no shard yet. Calls `report_rows` with the number of rows of each batch."""
        ...


def dispatch(
    maker: Callable[[Any], Maker],
    job: Any,
    todo: ShardPlan,
    where: Where,
    store: Store,
    gpus: int,
    tally: Tally,
) -> None:
    """Compute all shards of `todo` with `maker(job)`, in this process or in an executor's workers.

    Each worker opens a maker of its own. `gpus` is the number of GPUs of this machine that `job`
    would use. If some shards can't be computed, raises FeatureCacheError after all others are done;
    it names each, with the reason.
    """
    if where.executor == "local":
        local_maker = maker(job)
        shards: Iterable[Shard] = todo
        while True:
            busy = []
            for result in local_maker.work(shards, tally.add_rows):
                tally.add_shard(result)
                busy += [result.busy] if result.busy else []
            if not busy:
                return
            shards = busy
            tally.show(f"waiting for {counted(len(busy), 'shard')} of other processes")
            time.sleep(_POLL_SECONDS)
    source = next(iter(todo)).rows[0][0].source
    if isinstance(source, Member):
        source = source.path
    files = () if isinstance(source, bytes) else (source,)
    index = todo.index
    with store.probe() as probe:
        context = (maker, job, StoredFile(store, probe), files + ((index,) if index else ()))
        tally.show("starting workers")
        with contextlib.closing(open_crew(where, _begin, context, gpus)) as crew:
            shards = todo if index else (replace(s, rows=tuple(s.rows)) for s in todo)
            results = schedule(crew, shards, tally.add_lost_worker)
            try:
                for result, machine in results:
                    tally.add_rows(result.rows, machine)
                    tally.add_shard(result)
            except TasksFailed as error:
                raise _not_made(error, len(todo)) from error


def open_crew(
    where: Where, start: Callable[[Any], Callable[[Any], Any]], context: Any, gpus: int
) -> Any:
    """The workers of an executor. Each gets the function `start(context)`, which does a task.
    `gpus` is the number of GPUs of this machine that they share."""
    if where.executor == "ray":
        from featurecache.executors.ray_cluster import Cluster

        return Cluster(start, context, where.address, where.gpus_per_worker, where.max_workers)
    from featurecache.executors.processes import Processes

    per_worker = 1.0 if where.gpus_per_worker is None else where.gpus_per_worker
    if per_worker != int(per_worker):
        raise BadInput(f"gpus per worker {per_worker:g}: --executor processes needs an integer")
    if not gpus or not per_worker:
        return Processes(start, context, where.max_workers or max(1, cores() // _CORES))
    if gpus < per_worker:
        raise BadInput(f"gpus per worker {per_worker:g}: this machine has {gpus}")
    count = min(gpus // int(per_worker), where.max_workers or gpus)
    return Processes(start, context, count, int(per_worker))


def _begin(
    context: tuple[Callable[[Any], Maker], Any, StoredFile, tuple[Path | StoredFile, ...]],
) -> Any:
    """Start a worker. Returns the function that computes a shard."""
    maker, job, probe, files = context
    if not probe.exists():
        raise BadInput(
            f"does not see the cache {probe.store.root}: it must be the same folder, at the same "
            "path, on every machine"
        )
    for file in files:
        if not retried_on_disk(file.exists):
            raise BadInput(
                f"does not see the dataset ({file}): it must be at the same path on every machine"
            )
    worker_maker = maker(job)

    def work(shards: Iterable[Shard | None]) -> Iterator[ShardResult | Deferred]:
        for result in worker_maker.work(shards, lambda rows: None):
            yield Deferred(replace(result, busy=None), result.busy) if result.busy else result

    return CallQueue(work)


def _not_made(error: TasksFailed, total: int) -> FeatureCacheError:
    lines = [
        f"{shard.name[:12]} ({shard.rows[0][0].id} and {len(shard.rows) - 1} more): {reason}"
        for shard, reason in error.failed
    ]
    return FeatureCacheError(
        f"{len(lines)} of {total} shards could not be computed; the others are committed. Rerun "
        "the command to retry these: " + "; ".join(lines)
    )
