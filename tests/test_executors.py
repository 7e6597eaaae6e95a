"""Executors: where work runs never shows in what comes out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import pool
from featurecache.executors.pool import checked_workers, ordered
from featurecache.executors.processes import Processes
from featurecache.executors.scheduler import CallQueue


class Context:
    """Counts how often it is sent to a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(state)
        (self.folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()


def slow_for_even(add: int, task: int) -> int:
    time.sleep(0.02 * (task % 2 == 0))
    return task + add


def arrays(scale: int, task: int) -> dict[str, object]:
    """Arrays of changing sizes: none, small ones, large ones, larger than the first."""
    rows = [100, 0, 7, 300, 100][task % 5] * scale
    made = np.arange(rows * 50, dtype=np.float64).reshape(rows, 50) + task
    return {
        "made": made,
        "turned": made[:, ::2].T,
        "task": task,
        "text": np.array(["ä", str(task)]),
    }


def process(_: object, task: int) -> int:
    return os.getpid()


def picky(_: None, task: int) -> int:
    if task == 3:
        raise ValueError(f"not {task}")
    return task


def deadly(_: None, task: int) -> int:
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def cut_off(_: None, task: int) -> bytes:
    """The worker of task 2 is killed after it sent half of a result."""
    if task == 2:

        def half(pipe: Connection, message: Any, write: object = None) -> None:
            os.write(pipe.fileno(), bytes(message[: len(message) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send = half  # type: ignore[attr-defined]
    return bytes(30_000)


def endless_after_one(_: None, task: int) -> int:
    time.sleep(600 * (task > 0))
    return task


class Deadly:
    """A large context whose reader is killed."""

    def __init__(self) -> None:
        self.data = bytes(1 << 20)

    def __setstate__(self, state: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Unreadable:
    def __setstate__(self, state: object) -> None:
        raise ValueError("can't be read here")

    def __getstate__(self) -> object:
        return 1


class Odd(Exception):
    """It can be pickled, and not be read again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


def odd(_: None, task: int) -> int:
    raise Odd(task, task)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    found = list(ordered(slow_for_even, 100, iter(range(20)), workers))
    assert found == list(range(100, 120))


def test_no_tasks_give_no_results() -> None:
    assert list(ordered(slow_for_even, 1, [], 0)) == []
    assert list(ordered(slow_for_even, 1, [], 2)) == []


def test_no_workers_means_this_process() -> None:
    assert set(ordered(process, None, range(3), 0)) == {os.getpid()}


@pytest.mark.slow
def test_local_tasks_are_done_by_this_process_while_the_workers_start() -> None:
    processes = list(ordered(process, None, range(9), 1, local=1))
    assert processes[0] == os.getpid() and os.getpid() not in processes[1:]


@pytest.mark.slow
def test_the_context_is_sent_to_a_worker_once(tmp_path: Path) -> None:
    pids = set(ordered(process, Context(tmp_path), range(40), 2))
    assert os.getpid() not in pids
    sent = [int(path.name.partition("-")[0]) for path in tmp_path.iterdir()]
    assert len(sent) == len(set(sent)) <= 2
    assert pids <= set(sent)


@pytest.mark.parametrize("workers", [0, 2])
def test_tasks_are_taken_as_they_are_needed(workers: int) -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for task in range(100):
            taken += 1
            yield task

    results = ordered(slow_for_even, 0, tasks(), workers)
    for n in range(5):
        assert next(results) == n
    assert taken <= 5 + 2 * workers + 2
    results.close()  # type: ignore[attr-defined]
    assert taken <= 5 + 2 * workers + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_of_a_task_is_raised_here_in_its_turn(workers: int) -> None:
    results = ordered(picky, None, range(8), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="not 3"):
        next(results)


def test_a_killed_worker_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(FeatureCacheError, match=r"worker process died.*fewer --workers"):
        list(ordered(deadly, None, range(6), 2))


@pytest.mark.slow
def test_a_worker_that_is_killed_within_a_message_is_not_waited_for() -> None:
    script = (
        "from tests.test_executors import cut_off, ordered\n"
        "list(ordered(cut_off, None, range(9), 2))"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert child.returncode == 1 and "a worker process died" in child.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_context_that_can_not_be_read_is_an_error() -> None:
    with pytest.raises(FeatureCacheError, match="worker process died"):
        list(ordered(picky, Deadly(), range(6), 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can't be read here"):
        list(ordered(picky, Unreadable(), range(6), 2))  # type: ignore[arg-type]


def test_a_worker_that_is_killed_as_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pool._Worker.start

    def start(process: Any) -> None:
        real(process)
        process.kill()
        process.join()

    monkeypatch.setattr(pool._Worker, "start", start)
    with pytest.raises(FeatureCacheError, match="worker process died"):
        list(ordered(len, bytes(1 << 20), range(6), 2))  # type: ignore[arg-type]
    with contextlib.closing(Processes(pooled, bytes(1 << 20), 1)) as crew:
        assert "ended with code -9" in str([crew.events(10), crew.stranded])


def test_an_exception_that_can_not_be_sent_comes_as_its_text() -> None:
    with pytest.raises(FeatureCacheError, match="Odd: odd 0 0"):
        list(ordered(odd, None, range(2), 1))


def test_an_exception_has_the_traceback_of_its_worker() -> None:
    with pytest.raises(ValueError, match="not 3") as caught:
        list(ordered(picky, None, range(8), 1))
    assert "in picky" in caught.value.__notes__[0]


def test_a_task_at_work_is_not_waited_for_when_the_results_are_closed() -> None:
    results = ordered(endless_after_one, None, range(4), 2)
    assert next(results) == 0
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 30


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_executors as t
from featurecache.executors.pool import ordered
if __name__ == "__main__":
    pids = []
    for pid in ordered(t.process, None, range(100000), 2):
        if pid not in pids:
            pids.append(pid)
        if len(pids) == 2:
            print(*pids, flush=True)
            time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Is it running? A zombie is not: nobody may be there to collect it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    arguments = [sys.executable, str(script), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        parent.kill()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


POOL = """
from featurecache.executors.pool import ordered
print(list(ordered(max, 3, range(6), 2)))
"""
CREW = """
import contextlib, operator
from featurecache.executors.scheduler import schedule
from featurecache.executors.processes import Processes
with contextlib.closing(Processes(operator.itemgetter, 0, 2)) as crew:
    print(sorted(result for result, _ in schedule(crew, [(task,) for task in range(3)])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "printed"), [(POOL, "[3, 3, 3, 3, 4, 5]"), (CREW, "[0, 1, 2]")], ids=["pool", "crew"]
)
@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_script_needs_no_guard_and_runs_once(
    tmp_path: Path, body: str, printed: str, how: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"print('begun')\n{body}")
    arguments = [sys.executable, str(script)] if how == "file" else [sys.executable, "-"]
    child = subprocess.run(
        arguments, input=script.read_text(), capture_output=True, text=True, timeout=30
    )
    assert child.stdout.splitlines() == ["begun", printed], child.stderr


def test_checked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked_workers(0) == 0
    assert checked_workers(7) == 7
    with pytest.raises(BadInput, match="workers -1"):
        checked_workers(-1)
    for cores, workers in ((1, 0), (2, 1), (8, 7), (64, 16)):
        mine = set(range(cores))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, mine=mine: mine, raising=False)
        assert checked_workers(None) == workers
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert checked_workers(None) == 0


def shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("psm_*")}  # as Python names its blocks


@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("scale", [1, 10])
def test_arrays_arrive_as_they_were_made(
    scale: int, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not room:  # a container has 64 MB by default
        monkeypatch.setattr(pool.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    before = shared_memory()
    found = list(ordered(arrays, scale, range(30), 2))  # all kept, while blocks are used again
    for task, one in enumerate(found):
        wanted = arrays(scale, task)
        assert one.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(one[name], value)
        one["made"] += 1  # the caller's own
    assert shared_memory() <= before


def faulty(scale: int, task: int) -> dict[str, object]:
    if task == 12:
        raise ValueError("not 12")
    if task == 22:
        os.kill(os.getpid(), signal.SIGKILL)
    return arrays(scale, 0)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["exception", "killed", "closed"])
def test_shared_memory_is_given_back_however_it_ends(end: str) -> None:
    before = shared_memory()
    first = {"exception": 0, "killed": 13, "closed": 23}[end]
    results = ordered(faulty, 10, range(first, first + 40), 2)
    if end == "closed":
        for _ in range(10):
            next(results)
        results.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(ValueError if end == "exception" else FeatureCacheError):
            list(results)
    assert shared_memory() <= before


@pytest.mark.slow
@pytest.mark.parametrize("made", [0, 3])
def test_where_shared_memory_can_not_be_made_pipes_will_do(
    made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = pool.SharedMemory, 0

    def scarce(*given: object, **named: object) -> object:
        nonlocal count
        if named.get("create"):
            count += 1
            if count > made:
                raise OSError(28, "No space left on device")
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pool, "SharedMemory", scarce)
    before = shared_memory()
    found = list(ordered(arrays, 10, range(12), 2))
    np.testing.assert_array_equal(found[11]["made"], arrays(10, 11)["made"])
    assert count == made + 1  # it is tried once
    assert shared_memory() <= before


@pytest.mark.slow
def test_shared_memory_goes_with_a_killed_parent() -> None:
    before = shared_memory()
    code = """
from tests.test_executors import arrays
from featurecache.executors.pool import ordered
if __name__ == "__main__":
    for number, _ in enumerate(ordered(arrays, 10, range(10**6), 2)):
        if number == 20:
            print("at work", flush=True)
"""
    script = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"at work\n"
        child.kill()
    deadline = time.monotonic() + 20
    while shared_memory() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shared_memory() <= before


def pooled(context: int) -> CallQueue:
    """A worker that has workers of its own, with shared memory."""
    return CallQueue(lambda tasks: (len(made) for made in ordered(arrays, context, tasks, 1)))


PROCESSES = """
import contextlib
from featurecache.executors.scheduler import schedule
from featurecache.executors.processes import Processes
from tests.test_executors import pooled
with contextlib.closing(Processes(pooled, 10, 1)) as crew:
    print([result for result, _ in schedule(crew, range(8))])
"""


@pytest.mark.slow
def test_processes_with_workers_of_their_own_end_without_a_word(tmp_path: Path) -> None:
    """Killed, they left semaphores and shared memory, of which Python warned."""
    before = shared_memory()
    child = subprocess.run(
        [sys.executable, "-c", PROCESSES], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (child.stdout, child.stderr) == ("[4, 4, 4, 4, 4, 4, 4, 4]\n", "")
    assert shared_memory() <= before
