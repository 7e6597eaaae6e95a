"""A crew: equals that share tasks, each able to do all of one, and any of which may be lost.

Tasks must be idempotent: one whose worker is lost is given to another, and so is one that takes too
long, while the first is still at it. Results are small; what a task makes, its worker stores.
"""

from __future__ import annotations

import collections
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.text import one_line

AHEAD = 2  # tasks that a worker has at a time: it makes pictures of one while it computes another
TRIES = 3  # of a task that raises, by other workers if there are
DEATHS = 5  # of workers at one task, before it is taken for their cause
SLOW = 4.0  # times the median a task may take before an idle worker does it too
LEAST_SLOW = 5.0  # seconds that any task may take
LATER = 0.5  # seconds until a task that is somebody else's is asked for again


class Deferred(NamedTuple):
    """What a task gives that can't be ended now: `result` so far, and the `task` that is left."""

    result: Any
    task: Any


class WorkerJoined(NamedTuple):
    """A worker is ready; `place` is the name of its machine."""

    worker: str
    place: str


class WorkerLost(NamedTuple):
    """A worker has ended, and with it what it was at."""

    worker: str
    why: str


class TaskEnded(NamedTuple):
    """A worker has ended a task: with a result, or (`why`) without."""

    worker: str
    number: int
    result: Any
    why: str = ""


class Crew(Protocol):
    """Workers, which the crew starts, and starts anew where they are lost."""

    def give(self, worker: str, number: int, task: Any) -> None:
        """Begin on a task; what becomes of it is an event."""
        ...

    def events(self, seconds: float) -> Sequence[WorkerJoined | WorkerLost | TaskEnded]:
        """What has happened, waited for at most so long."""
        ...

    @property
    def stranded(self) -> str:
        """Why there are no workers and none will come; "" as long as some are or may."""
        ...


class TasksFailed(FeatureCacheError):
    """`failed`: each task that could not be done, and why. All others are done."""

    def __init__(self, failed: list[tuple[Any, str]]) -> None:
        super().__init__("; ".join(why for _, why in failed))
        self.failed = failed


@dataclass
class _Task:
    task: Any
    began: dict[str, float] = field(default_factory=dict)  # worker that is at it -> when given
    failed: set[str] = field(default_factory=set)  # workers that could not do it
    tries: int = 0
    deaths: int = 0


def schedule(
    crew: Crew, tasks: Iterable[Any], lost: Callable[[str], None] = lambda why: None
) -> Generator[tuple[Any, str], None, None]:
    """Every task done by some worker: (result, place) as they end, in no order. Tasks are taken as
    they are needed. `lost` is told of each worker that ends, and why.

    When all that can be done is done, raises TasksFailed for those that can't.
    """
    source = iter(tasks)
    numbers = iter(range(1 << 62))
    open_tasks: dict[int, _Task] = {}
    waiting: collections.deque[int] = collections.deque()  # to be given again
    later: list[tuple[float, int]] = []
    places: dict[str, str] = {}  # worker -> its place
    given: dict[str, list[int]] = {}  # worker -> the tasks it has, oldest first
    failed: list[tuple[Any, str]] = []
    took: collections.deque[float] = collections.deque(maxlen=99)
    more = True

    def next_for(worker: str) -> int | None:
        nonlocal more
        for number in waiting:
            failed_at = open_tasks[number].failed
            if worker not in failed_at or not given.keys() - failed_at:
                waiting.remove(number)
                return number
        if more:
            try:
                task = next(source)
            except StopIteration:
                more = False
            else:
                number = next(numbers)
                open_tasks[number] = _Task(task)
                return number
        return None if given[worker] else _taken_over(worker, open_tasks, given, took)

    def gone(worker: str, number: int) -> None:
        if number in given.get(worker, ()):
            given[worker].remove(number)
        if number in open_tasks:
            open_tasks[number].began.pop(worker, None)

    def give_up(number: int, why: str) -> None:
        failed.append((open_tasks.pop(number).task, why))

    def again(number: int) -> None:
        """It is nobody's now, unless another worker is at it too."""
        if not open_tasks[number].began:
            waiting.append(number)

    while True:
        now = time.monotonic()
        waiting.extend(number for when, number in later if when <= now)
        later = [(when, number) for when, number in later if when > now]
        for most in range(1, AHEAD + 1):  # everybody has one before anybody has two
            for worker, has in given.items():
                number = next_for(worker) if len(has) < most else None
                if number is not None:
                    has.append(number)
                    open_tasks[number].began[worker] = now
                    crew.give(worker, number, open_tasks[number].task)
        if not open_tasks and not more:
            break
        if not given and crew.stranded:
            if not places:  # nothing was begun
                raise BadInput(crew.stranded)
            raise FeatureCacheError(
                f"no worker is left ({crew.stranded}). What was committed stays: run again"
            )
        for event in crew.events(0.05 if later else LATER):
            if isinstance(event, WorkerJoined):
                places[event.worker] = event.place
                given[event.worker] = []
            elif isinstance(event, WorkerLost):
                lost(event.why)
                for place, number in enumerate(given.pop(event.worker, [])):
                    if number in open_tasks:
                        open_tasks[number].began.pop(event.worker, None)
                        open_tasks[number].deaths += place == 0  # the others were not begun
                        if open_tasks[number].deaths == DEATHS:
                            give_up(number, f"{DEATHS} workers ended while at it ({event.why})")
                        else:
                            again(number)
            elif event.number not in open_tasks:  # another worker was faster
                gone(event.worker, event.number)
            else:
                one = open_tasks[event.number]
                began = one.began.get(event.worker, now)
                first = (given.get(event.worker) or [event.number])[0] == event.number
                gone(event.worker, event.number)
                if event.why:
                    one.failed.add(event.worker)
                    one.tries += 1
                    if one.tries == TRIES:
                        give_up(event.number, f"{event.why} (on {places[event.worker]})")
                    else:
                        again(event.number)
                    continue
                result = event.result
                if isinstance(result, Deferred):
                    yield result.result, places[event.worker]
                    one.task = result.task
                    if not one.began:
                        later.append((time.monotonic() + LATER, event.number))
                    continue
                if first:
                    took.append(time.monotonic() - began)
                del open_tasks[event.number]
                yield result, places[event.worker]
    if failed:
        raise TasksFailed(failed)


def _taken_over(
    worker: str,
    open_tasks: dict[int, _Task],
    given: dict[str, list[int]],
    took: Sequence[float],
) -> int | None:
    """A task for a worker with nothing to do, that one other has: not begun yet, or begun so long
    ago that something may be wrong with its worker."""
    now = time.monotonic()
    slow = max(SLOW * statistics.median(took), LEAST_SLOW) if took else float("inf")
    for number, one in open_tasks.items():
        if len(one.began) == 1 and worker not in one.began and worker not in one.failed:
            ((other, began),) = one.began.items()
            if given[other][0] != number or now - began > slow:
                return number
    return None


class CallQueue:
    """Makes of a function that works through a stream of tasks one that does a task when it is
    called, from several threads at once: the stream sees the next task before the last is done.

    `work(tasks)` gives one result for each task, in their order; a task that is None says that
    there is none now.
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
        """End the stream when the last task is done, and wait for that. No task may follow."""
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
                if not self._taken:  # of no task: all that wait are told
                    with self._some:
                        self._taken.extend(self._calls)
                        self._calls.clear()
                    while self._taken:
                        self._taken.popleft()[1].set_exception(error)
                    continue
                self._taken.popleft()[1].set_exception(error)
                with self._some:  # those behind it are done in the next stream
                    self._calls.extendleft(reversed(self._taken))
                    self._taken.clear()


def attempt(do: Callable[[Any], Any], task: Any) -> tuple[Any, str]:
    """(result, "") of `do(task)`, or (None, why not): what a worker sends."""
    try:
        return do(task), ""
    except FeatureCacheError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - the driver says it, with the task
        return None, f"{type(error).__name__}: {one_line(error)}"
