"""A scheduler: shares tasks among equal workers, any of which may be lost.

Tasks must be idempotent. A task goes to another worker if its worker is lost. It also goes to a
second worker, while the first still works on it, if it takes too long. Results are small: workers
store what they make.
"""

from __future__ import annotations

import collections
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.text import one_line

AHEAD = 2  # tasks per worker: it makes pictures for one task while it computes another
MAX_TRIES = 3  # runs of a task that raises, on different workers if there are several
MAX_DEATHS = 5  # workers that end while running a task before the task fails
SLOW_FACTOR = 4.0  # a task is slow after this many times the median duration
MIN_SLOW_SECONDS = 5.0  # no task is slow before this
RETRY_DELAY = 0.5  # seconds before a deferred task is tried again
MAX_WAIT = 0.5  # seconds to wait for events


class Deferred(NamedTuple):
    """The return value of a task that cannot finish now: the partial `result`, and the remaining
    `task`."""

    result: Any
    task: Any


class WorkerJoined(NamedTuple):
    """A worker is ready. `machine` is its name for display."""

    worker: str
    machine: str


class WorkerLost(NamedTuple):
    """A worker has ended, without finishing its tasks."""

    worker: str
    reason: str


class TaskEnded(NamedTuple):
    """A worker has ended a task, with a result or with an `error`."""

    worker: str
    number: int
    result: Any
    error: str = ""


class Crew(Protocol):
    """Starts workers, and replaces those that are lost."""

    def give(self, worker: str, number: int, task: Any) -> None:
        """Start a task on a worker. Its outcome is reported as an event."""
        ...

    def events(self, seconds: float) -> Sequence[WorkerJoined | WorkerLost | TaskEnded]:
        """The events since the last call; waits up to `seconds` for one."""
        ...

    @property
    def stranded(self) -> str:
        """Why there are no workers and will be none; "" while there are or may be some."""
        ...


class TasksFailed(FeatureCacheError):
    """Some tasks could not be done: `failed` has each with its reason. All others are done."""

    def __init__(self, failed: list[tuple[Any, str]]) -> None:
        super().__init__("; ".join(reason for _, reason in failed))
        self.failed = failed


def schedule(
    crew: Crew, tasks: Iterable[Any], on_loss: Callable[[str], None] = lambda reason: None
) -> Generator[tuple[Any, str], None, None]:
    """Run every task on a worker; yields (result, machine) as tasks end, in any order.

    Tasks are read as they are needed. For each worker that ends, `on_loss` is called with the
    reason. If some tasks can't be done, raises TasksFailed after all others are done.
    """
    return Scheduler(crew, tasks, on_loss).results()


@dataclass
class _Task:
    task: Any
    started: dict[str, float] = field(default_factory=dict)  # worker -> when it got the task
    failed_on: set[str] = field(default_factory=set)  # workers
    tries: int = 0
    deaths: int = 0


class Scheduler:
    """The tasks of a crew and their states.

    A task is *unread* until a worker needs it, then *waiting*, *running* (on one worker, or on two
    if the first is slow), *deferred* for RETRY_DELAY, and in the end *done* or *failed*.
    """

    def __init__(self, crew: Crew, tasks: Iterable[Any], on_loss: Callable[[str], None]) -> None:
        self._crew = crew
        self._unread: Iterator[Any] | None = iter(tasks)  # None once all are read
        self._on_loss = on_loss
        self._open: dict[int, _Task] = {}  # read, and neither done nor failed
        self._read_count = 0
        self._waiting: collections.deque[int] = collections.deque()
        self._deferred: list[tuple[float, int]] = []  # (when it waits again, number)
        self._failed: list[tuple[Any, str]] = []
        self._machines: dict[str, str] = {}  # worker -> its machine, for all that ever joined
        self._queues: dict[str, list[int]] = {}  # worker -> its tasks, oldest first
        self._durations: collections.deque[float] = collections.deque(maxlen=99)

    def results(self) -> Generator[tuple[Any, str], None, None]:
        """(result, machine) for each task as it ends, and for each partial result."""
        while True:
            self._resume_deferred()
            self._hand_out()
            if not self._open and self._unread is None:
                break
            self._check_workers()
            for event in self._crew.events(0.05 if self._deferred else MAX_WAIT):
                yield from self._handle(event)
        if self._failed:
            raise TasksFailed(self._failed)

    def _resume_deferred(self) -> None:
        now = time.monotonic()
        self._waiting.extend(number for due, number in self._deferred if due <= now)
        self._deferred = [(due, number) for due, number in self._deferred if due > now]

    def _hand_out(self) -> None:
        for depth in range(1, AHEAD + 1):  # every worker gets one task before any gets two
            for worker, queue in self._queues.items():
                number = self._next_task(worker) if len(queue) < depth else None
                if number is not None:
                    queue.append(number)
                    self._open[number].started[worker] = time.monotonic()
                    self._crew.give(worker, number, self._open[number].task)

    def _next_task(self, worker: str) -> int | None:
        for number in self._waiting:
            failed_on = self._open[number].failed_on
            if worker not in failed_on or not self._queues.keys() - failed_on:
                self._waiting.remove(number)
                return number
        unread = self._read_task()
        if unread is None and not self._queues[worker]:
            return self._task_to_duplicate(worker)
        return unread

    def _read_task(self) -> int | None:
        if self._unread is None:
            return None
        try:
            task = next(self._unread)
        except StopIteration:
            self._unread = None
            return None
        self._read_count += 1
        self._open[self._read_count] = _Task(task)
        return self._read_count

    def _task_to_duplicate(self, worker: str) -> int | None:
        """A task of another worker that this idle one should run too: one that has not started, or
        that started so long ago that something may be wrong with its worker."""
        now = time.monotonic()
        limit = float("inf")
        if self._durations:
            limit = max(SLOW_FACTOR * statistics.median(self._durations), MIN_SLOW_SECONDS)
        for number, task in self._open.items():
            if len(task.started) == 1 and worker not in task.started.keys() | task.failed_on:
                ((holder, start),) = task.started.items()
                if self._queues[holder][0] != number or now - start > limit:
                    return number
        return None

    def _check_workers(self) -> None:
        """Raise if no worker is left and there will be none."""
        if self._queues:
            return
        reason = self._crew.stranded
        if reason and not self._machines:  # nothing was started
            raise BadInput(reason)
        if reason:
            raise FeatureCacheError(
                f"no worker is left ({reason}). Committed shards are safe; rerun the command to "
                "continue"
            )

    def _handle(
        self, event: WorkerJoined | WorkerLost | TaskEnded
    ) -> Generator[tuple[Any, str], None, None]:
        if isinstance(event, WorkerJoined):
            self._machines[event.worker] = event.machine
            self._queues[event.worker] = []
        elif isinstance(event, WorkerLost):
            self._lose_worker(event)
        elif event.number not in self._open or self._is_partial_copy(event):
            self._release(event.worker, event.number)
        elif event.error:
            self._record_error(event)
        else:
            yield self._accept(event), self._machines[event.worker]

    def _is_partial_copy(self, event: TaskEnded) -> bool:
        """Whether another worker runs the whole task too: its result will include this part."""
        others = self._open[event.number].started.keys() - {event.worker}
        return isinstance(event.result, Deferred) and bool(others)

    def _lose_worker(self, event: WorkerLost) -> None:
        self._on_loss(event.reason)
        for position, number in enumerate(self._queues.pop(event.worker, [])):
            task = self._open.get(number)
            if task is None:
                continue
            task.started.pop(event.worker, None)
            task.deaths += position == 0  # the worker had not started the others
            if task.deaths == MAX_DEATHS:
                self._fail(number, f"{MAX_DEATHS} workers ended while running it ({event.reason})")
            else:
                self._requeue(number)

    def _record_error(self, event: TaskEnded) -> None:
        task = self._open[event.number]
        self._release(event.worker, event.number)
        task.failed_on.add(event.worker)
        task.tries += 1
        if task.tries == MAX_TRIES:
            self._fail(event.number, f"{event.error} (on {self._machines[event.worker]})")
        else:
            self._requeue(event.number)

    def _accept(self, event: TaskEnded) -> Any:
        """Record that a task is done or deferred, and return its result."""
        task = self._open[event.number]
        start = task.started.get(event.worker)
        is_oldest = self._queues.get(event.worker, [])[:1] == [event.number]
        self._release(event.worker, event.number)
        if isinstance(event.result, Deferred):
            task.task = event.result.task
            self._deferred.append((time.monotonic() + RETRY_DELAY, event.number))
            return event.result.result
        if is_oldest and start is not None:  # the time of the others includes waiting for it
            self._durations.append(time.monotonic() - start)
        del self._open[event.number]
        return event.result

    def _release(self, worker: str, number: int) -> None:
        """Record that the worker no longer has the task."""
        if number in self._queues.get(worker, ()):
            self._queues[worker].remove(number)
        if number in self._open:
            self._open[number].started.pop(worker, None)

    def _requeue(self, number: int) -> None:
        """Make the task wait, unless another worker also runs it."""
        if not self._open[number].started:
            self._waiting.append(number)

    def _fail(self, number: int, reason: str) -> None:
        self._failed.append((self._open.pop(number).task, reason))


class CallQueue:
    """Turns a function of a stream of tasks into a function of one task.

    Several threads may call it at once, so that the stream sees the next task before the previous
    one is done. `work(tasks)` yields one result per task, in their order; a None in `tasks` means
    that there is no task now.
    """

    def __init__(self, work: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        self._work = work
        self._calls: collections.deque[tuple[Any, Future[Any]]] = collections.deque()
        self._taken: collections.deque[tuple[Any, Future[Any]]] = collections.deque()
        self._some = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, task: Any) -> Any:
        future: Future[Any] = Future()
        with self._some:
            self._calls.append((task, future))
            self._some.notify()
        return future.result()

    def close(self) -> None:
        """Wait until the last task is done, and end the stream. No more calls are allowed."""
        with self._some:
            self._closed = True
            self._some.notify_all()
        self._thread.join()

    def _tasks(self) -> Generator[Any, None, None]:
        while True:
            with self._some:
                if not self._calls:
                    self._some.wait(0.01 if self._taken else 1.0)
                call = self._calls.popleft() if self._calls else None
            if call is None and self._closed:
                return
            if call is None:
                yield None
            else:
                self._taken.append(call)
                yield call[0]

    def _run(self) -> None:
        while True:
            with self._some:
                self._some.wait_for(lambda: self._calls or self._closed)
                if not self._calls:
                    return
            try:
                for result in self._work(self._tasks()):
                    self._taken.popleft()[1].set_result(result)
            except BaseException as error:  # noqa: BLE001 - its caller raises it
                if not self._taken:  # no task caused the error: all waiting callers get it
                    with self._some:
                        self._taken.extend(self._calls)
                        self._calls.clear()
                    while self._taken:
                        self._taken.popleft()[1].set_exception(error)
                    continue
                self._taken.popleft()[1].set_exception(error)
                with self._some:  # the tasks after it go to the next stream
                    self._calls.extendleft(reversed(self._taken))
                    self._taken.clear()


def attempt(do: Callable[[Any], Any], task: Any) -> tuple[Any, str]:
    """(result, "") of `do(task)`, or (None, error text): the answer of a worker."""
    try:
        return do(task), ""
    except FeatureCacheError as error:
        return None, str(error)
    except BaseException as error:  # noqa: BLE001 - the driver reports it, with the task
        return None, f"{type(error).__name__}: {one_line(error)}"
