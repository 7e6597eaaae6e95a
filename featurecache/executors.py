"""Where work runs: in this process, or in worker processes beside it.

An executor knows nothing of features: it calls a function on tasks and gives the results in the
order of the tasks, so that what is computed never depends on who computed it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

from featurecache.errors import BadInput, FeatureCacheError

Context = TypeVar("Context")
Task = TypeVar("Task")
Result = TypeVar("Result")


class Progress(Protocol):
    """How a stage shows its progress (law 10): `done` of `total`, and what is being done."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """The Progress that shows nothing."""


def checked_workers(workers: int | None) -> int:
    """The number of workers asked for, or by default one for each core but one, at most 16: the
    last core is left to the network. Raises BadInput for a negative number."""
    if workers is None:
        return min((os.cpu_count() or 1) - 1, 16)
    if workers < 0:
        raise BadInput(f"workers {workers}: must be 0 (in this process) or more")
    return workers


def ordered(
    function: Callable[[Context, Task], Result],
    context: Context,
    tasks: Iterable[Task],
    workers: int,
) -> Generator[Result, None, None]:
    """`function(context, task)` of each task, in the order of the tasks; `workers` 0 means in this
    process.

    The context is sent to a worker once. Tasks are taken as they are needed, at most a few for each
    worker ahead of the results. `function` must be importable by name, since workers are started
    afresh ("spawn"). An exception of `function` is raised here. Raises FeatureCacheError if a
    worker process dies.
    """
    if workers == 0:
        yield from (function(context, task) for task in tasks)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(function, context),
    )
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_run, task))
            if len(waiting) > 2 * workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise FeatureCacheError(
            "a worker process died (out of memory, or killed). What was committed stays; run "
            "again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}  # of a worker process: its function and its context


def _start_worker(function: Any, context: Any) -> None:
    _worker.update(function=function, context=context)
    # Ctrl-C reaches the whole group: only the parent answers it, and takes the workers along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _run(task: Any) -> Any:
    return _worker["function"](_worker["context"], task)


def _follow_parent() -> None:
    """End this worker when its parent does, however it ends: a killed parent says no goodbye."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
