"""Crews: whatever happens to workers, every task ends once, or is named with a reason."""

from __future__ import annotations

import collections
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import scheduler as module
from featurecache.executors.processes import Processes
from featurecache.executors.scheduler import (
    AHEAD,
    MAX_DEATHS,
    MAX_TRIES,
    CallQueue,
    Crew,
    Deferred,
    TaskEnded,
    TasksFailed,
    WorkerJoined,
    WorkerLost,
    attempt,
    schedule,
)

# ---- schedule, on a simulated crew ----


class Played:
    """A Crew without processes: what happens to its workers is drawn from `chance`."""

    def __init__(self, chance: random.Random, workers: int, kill: float, fail: float) -> None:
        self.chance, self.kill, self.fail = chance, kill, fail
        self.has: dict[str, list[tuple[int, Any]]] = {}
        self.count = 0
        self.coming = workers
        self.done: collections.Counter[Any] = collections.Counter()
        self.most = 0

    def give(self, worker: str, number: int, task: Any) -> None:
        self.has[worker].append((number, task))
        self.most = max(self.most, len(self.has[worker]))

    def events(self, seconds: float) -> list[WorkerJoined | WorkerLost | TaskEnded]:
        if self.coming:  # they come one by one, and late
            self.coming -= 1
            self.count += 1
            self.has[str(self.count)] = []
            return [WorkerJoined(str(self.count), f"place {self.count}")]
        worker = self.chance.choice(sorted(self.has))
        if self.chance.random() < self.kill:
            del self.has[worker]
            self.coming += 1
            return [WorkerLost(worker, "as if killed")]
        if not self.has[worker]:
            return []
        number, task = self.has[worker].pop(0)
        if self.chance.random() < self.fail:
            return [TaskEnded(worker, number, None, "as if the disk were full")]
        if isinstance(task, int) and task % 7 == 0 and self.chance.random() < 0.5:
            return [TaskEnded(worker, number, Deferred("", task))]
        self.done[task] += 1
        return [TaskEnded(worker, number, task)]

    @property
    def stranded(self) -> str:
        return ""


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(1, 5),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.1]),
)
def test_every_task_ends_once_or_is_named(
    seed: int, workers: int, tasks: int, kill: float, fail: float
) -> None:
    played = Played(random.Random(seed), workers, kill, fail)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RETRY_DELAY", 0.0)
        patch.setattr(module, "MIN_SLOW_SECONDS", 0.0)
        ended = []
        failed = []
        try:
            for result, machine in schedule(played, iter(range(tasks))):
                ended += [result] if result != "" else []
                assert machine.startswith("place ")
        except TasksFailed as error:
            failed = [task for task, why in error.failed if why]
    assert sorted(ended + failed) == list(range(tasks))
    assert not failed or kill or fail
    assert set(ended) <= set(played.done)
    assert played.most <= AHEAD
    if not kill and workers == 1:
        assert max(played.done.values(), default=1) == 1


class Claiming(Played):
    """Workers that claim the parts of a task, as those of a fill claim a shard in each of its
    spaces. A result is the parts that the worker has computed, and those that others have."""

    def __init__(self, chance: random.Random, workers: int, kill: float) -> None:
        super().__init__(chance, workers, kill, 0.0)
        self.holders: dict[int, str] = {}  # part -> the worker that computes it, or "done"
        self.working: dict[str, tuple[list[int], list[int], list[int]]] = {}

    def events(self, seconds: float) -> list[WorkerJoined | WorkerLost | TaskEnded]:
        if self.coming:
            return super().events(seconds)
        worker = self.chance.choice(sorted(self.has))
        if self.chance.random() < self.kill:
            self.working.pop(worker, None)
            self.holders = {part: by for part, by in self.holders.items() if by != worker}
            del self.has[worker]
            self.coming += 1
            return [WorkerLost(worker, "as if killed")]
        if worker in self.working:
            claimed, done, busy = self.working[worker]
            for part in claimed:
                if self.holders[part] == worker:  # it commits one after the other
                    self.holders[part] = "done"
                    return []
            del self.working[worker]
            number, _ = self.has[worker].pop(0)
            result = claimed + done
            return [TaskEnded(worker, number, Deferred(result, tuple(busy)) if busy else result)]
        if self.has[worker]:
            _, task = self.has[worker][0]
            done = [part for part in task if self.holders.get(part) == "done"]
            claimed = [part for part in task if part not in self.holders]
            busy = [part for part in task if part not in (*done, *claimed)]
            self.working[worker] = claimed, done, busy
            self.holders |= dict.fromkeys(claimed, worker)
        return []


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=12),
    st.sampled_from([0.0, 0.05]),
)
def test_each_part_is_counted_once_though_two_workers_had_its_task(
    seed: int, workers: int, sizes: list[int], kill: float
) -> None:
    tasks = [tuple(10 * n + part for part in range(size)) for n, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RETRY_DELAY", 0.0)
        patch.setattr(module, "MIN_SLOW_SECONDS", 0.0)
        patch.setattr(module, "MAX_DEATHS", 1000)
        crew = Claiming(random.Random(seed), workers, kill)
        counted = [part for result, _ in schedule(crew, iter(tasks)) for part in result]
    assert sorted(counted) == sorted(part for task in tasks for part in task)


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_given_up() -> None:
    played = Played(random.Random(1), 2, 0.0, 0.0)
    real = played.events

    def events(seconds: float) -> Any:
        for worker, has in played.has.items():
            if has and has[0][1] == 3:
                del played.has[worker]
                played.coming += 1
                return [WorkerLost(worker, "out of memory")]
        return real(seconds)

    played.events = events  # type: ignore[method-assign]
    lost: list[str] = []
    ended = []
    with pytest.raises(TasksFailed) as raised:
        for result, _ in schedule(played, iter(range(8)), lost.append):
            ended.append(result)
    assert sorted(r for r in ended if r != "") == [0, 1, 2, 4, 5, 6, 7]
    ((task, why),) = raised.value.failed
    assert task == 3 and "out of memory" in why
    assert len(lost) == MAX_DEATHS


def test_tasks_are_taken_as_they_are_needed() -> None:
    played = Played(random.Random(1), 3, 0.0, 0.0)
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for task in range(1, 1000):
            taken += 1
            yield task

    results = schedule(played, tasks())
    for _ in range(20):
        next(results)
    assert taken <= 20 + 3 * AHEAD + 10  # some of them were put off


@pytest.mark.parametrize("began", [False, True])
def test_a_crew_that_is_gone_is_an_error(began: bool) -> None:
    class Gone(Played):
        @property
        def stranded(self) -> str:
            return "" if self.has or self.coming else "place 1 burnt down"

        def events(self, seconds: float) -> Any:
            if self.has:
                self.has.clear()
                return [WorkerLost("1", "burnt")]
            return super().events(seconds)

    gone = Gone(random.Random(1), 1 if began else 0, 0.0, 0.0)
    with pytest.raises(FeatureCacheError, match="place 1 burnt down") as raised:
        list(schedule(gone, range(3)))
    assert isinstance(raised.value, BadInput) == (not began)


def test_a_task_of_a_slow_worker_is_done_by_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow one has two: the second is taken over at once, the first when it takes too long."""
    monkeypatch.setattr(module, "MIN_SLOW_SECONDS", 0.2)

    class Slow(Played):
        def events(self, seconds: float) -> Any:
            if self.coming:
                return super().events(seconds)
            if self.has["2"]:
                return [TaskEnded("2", *self.has["2"].pop(0))]
            time.sleep(0.01)
            return []

    slow = Slow(random.Random(1), 2, 0.0, 0.0)
    begun = time.monotonic()
    assert sorted(r for r, _ in schedule(slow, range(1, 7))) == [1, 2, 3, 4, 5, 6]
    assert time.monotonic() - begun >= 0.2
    assert len(slow.has["1"]) == 2


# ---- the call queue ----


def in_threads(call: Callable[[int], Any], tasks: Iterable[int]) -> dict[int, Any]:
    found: dict[int, Any] = {}

    def one(task: int) -> None:
        found[task] = attempt(call, task)

    threads = [threading.Thread(target=one, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
        time.sleep(0.002)
    for thread in threads:
        thread.join(10)
    return found


def test_a_line_sees_the_next_task_before_the_last_is_done() -> None:
    seen: list[int] = []
    ahead: list[int] = []

    def work(tasks: Iterable[Any]) -> Iterator[int]:
        waiting: list[int] = []
        for task in tasks:
            if task is not None:
                seen.append(task)
                waiting.append(task)
            if len(waiting) == 2 or (task is None and waiting):
                ahead.append(len(waiting))
                yield 10 * waiting.pop(0)

    line = CallQueue(work)
    assert in_threads(line, range(6)) == {n: (10 * n, "") for n in range(6)}
    assert sorted(seen) == list(range(6)) and 2 in ahead


def test_a_task_that_raises_in_a_line_does_not_touch_those_behind_it() -> None:
    streams = 0

    def work(tasks: Iterable[Any]) -> Iterator[int]:
        nonlocal streams
        streams += 1
        waiting: list[int] = []
        for task in tasks:
            waiting += [] if task is None else [task]
            if len(waiting) == 3 or (task is None and waiting):
                one = waiting.pop(0)
                if one == 2:
                    raise BadInput("not 2")
                yield one

    found = in_threads(CallQueue(work), range(5))
    assert found == {0: (0, ""), 1: (1, ""), 2: (None, "not 2"), 3: (3, ""), 4: (4, "")}
    assert streams == 2


def test_a_line_that_can_not_begin_tells_all_who_wait() -> None:
    def work(tasks: Iterable[Any]) -> Iterator[int]:
        raise ValueError("no\nnetwork")

    found = in_threads(CallQueue(work), range(3))
    assert set(found.values()) == {(None, "ValueError: no network")}


# ---- every crew ----


def start(context: Any) -> Callable[[Any], Any]:
    """Workers of the tests: they note each task in a folder, and do what it says."""
    folder, refuse = context
    if refuse:
        raise BadInput(refuse)

    def do(task: tuple[str, int]) -> Any:
        what, number = task
        first = not list(folder.glob(f"{number} *"))
        (folder / f"{number} {os.getpid()} {time.monotonic_ns()}").touch()
        if what == "die once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            raise SystemExit(number)
        if what == "unsendable":
            return threading.Lock()
        if what == "raise":
            raise FeatureCacheError(f"no {number} today")
        time.sleep(0.02)
        return number, os.getpid()

    return do


class CrewContract:
    """What `schedule` needs of every Crew."""

    def crew(self, context: Any) -> Any:
        raise NotImplementedError

    def run(self, tasks: Iterable[tuple[str, int]], folder: Path) -> list[tuple[int, int]]:
        crew: Crew = self.crew((folder, ""))
        try:
            return [result for result, _ in schedule(crew, tasks)]
        finally:
            crew.close()  # type: ignore[attr-defined]

    @pytest.mark.slow
    def test_all_tasks_are_done_by_all_workers(self, tmp_path: Path) -> None:
        deadline = time.monotonic() + 60

        def tasks() -> Iterator[tuple[str, int]]:  # until both have begun
            for n in itertools.count():
                pids = {path.name.split()[1] for path in tmp_path.iterdir()}
                if n >= 60 and (len(pids) == 2 or time.monotonic() > deadline):
                    return
                yield "do", n

        found = self.run(tasks(), tmp_path)
        assert sorted(number for number, _ in found) == list(range(len(found)))
        assert len(found) >= 60 and len({pid for _, pid in found}) == 2
        assert os.getpid() not in {pid for _, pid in found}

    @pytest.mark.slow
    def test_a_lost_worker_is_replaced(self, tmp_path: Path) -> None:
        tasks = [("die once" if n in (3, 17) else "do", n) for n in range(30)]
        found = self.run(tasks, tmp_path)
        assert sorted(number for number, _ in found) == list(range(30))
        assert len({path.name.split()[1] for path in tmp_path.iterdir()}) >= 3

    def test_what_can_not_be_done_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TasksFailed) as raised:
            self.run([("raise" if n == 5 else "do", n) for n in range(12)], tmp_path)
        ((task, why),) = raised.value.failed
        assert task == ("raise", 5) and why.startswith("no 5 today (on ")
        assert len(list(tmp_path.glob("5 *"))) == MAX_TRIES
        assert {path.name.split()[0] for path in tmp_path.iterdir()} == set(map(str, range(12)))

    @pytest.mark.slow
    def test_workers_that_all_die_strand_the_crew(self, tmp_path: Path) -> None:
        with pytest.raises(FeatureCacheError, match=r"no worker is left|workers ended during"):
            self.run([("die", n) for n in range(12)], tmp_path)

    def test_a_worker_that_can_not_start_says_why(self, tmp_path: Path) -> None:
        crew = self.crew((tmp_path, "the dataset is not here"))
        try:
            with pytest.raises(BadInput, match="the dataset is not here"):
                list(schedule(crew, [("do", 1)]))
        finally:
            crew.close()


class TestProcesses(CrewContract):
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("what", "why"), [("exit", "SystemExit: 5"), ("unsendable", "TypeError: cannot pickle")]
    )
    def test_every_task_is_answered(self, what: str, why: str, tmp_path: Path) -> None:
        with pytest.raises(TasksFailed) as raised:
            self.run([(what if n == 5 else "do", n) for n in range(8)], tmp_path)
        (failed,) = raised.value.failed
        assert failed[0] == (what, 5) and failed[1].startswith(why)

    def crew(self, context: Any) -> Any:
        return Processes(start, context, 2)

    @pytest.mark.slow
    def test_each_has_its_own_gpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert self.seen(Processes(gpus_of, None, 2, gpus=2)) == {"0,1", "2,3"}
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
        assert self.seen(Processes(gpus_of, None, 2, gpus=1)) == {"GPU-a", "GPU-b"}

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux's affinity")
    def test_each_has_its_own_cores(self) -> None:
        mine = os.sched_getaffinity(0)
        if len(mine) < 2:
            pytest.skip("one core can't be shared out")
        shares = self.seen(Processes(cores_of, None, 2))
        assert len(shares) == 2
        assert set().union(*shares) == mine and not frozenset.intersection(*shares)

    def seen(self, crew: Processes) -> set[Any]:
        found: set[Any] = set()
        deadline = time.monotonic() + 60

        def tasks() -> Iterator[int]:  # until both have begun
            while len(found) < 2 and time.monotonic() < deadline:
                yield 0

        try:
            found.update(result for result, _ in schedule(crew, tasks()))
        finally:
            crew.close()
        return found


def gpus_of(context: None) -> Callable[[int], str]:
    def do(task: int) -> str:
        time.sleep(0.02)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    return do


def cores_of(context: None) -> Callable[[int], frozenset[int]]:
    def do(task: int) -> frozenset[int]:
        time.sleep(0.02)
        return frozenset(os.sched_getaffinity(0))

    return do
