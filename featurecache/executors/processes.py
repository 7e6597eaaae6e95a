"""A crew of processes on this machine, each with GPUs or cores of its own."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from featurecache.errors import FeatureCacheError
from featurecache.executors.pool import cores, follow_parent, worker_processes
from featurecache.executors.scheduler import (
    AHEAD,
    CallQueue,
    TaskEnded,
    WorkerJoined,
    WorkerLost,
    attempt,
)
from featurecache.text import one_line

CLOSING = 5.0  # seconds that processes have to end by themselves
RESTARTS = 3  # of a process that ends again and again without having ended a task


@dataclass
class _Seat:
    """A place for a worker: what is its own, and who sits there."""

    name: str
    environment: dict[str, str]
    cores: list[int]
    worker: str = ""
    process: Any = None
    pipe: Any = None
    deaths: int = 0  # since a task was ended here
    why: str = ""  # it is empty, and stays so


class Processes:
    """A Crew of `count` processes, each with its share of the cores, and with `gpus` GPUs that no
    other has."""

    def __init__(
        self, start: Callable[[Any], Callable[[Any], Any]], context: Any, count: int, gpus: int = 0
    ) -> None:
        self._payload = pickle.dumps((start, context))
        self._numbers = itertools.count()
        self._seats = []
        mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for seat in range(count):
            environment = {}
            share = mine[seat * len(mine) // count : (seat + 1) * len(mine) // count]
            if gpus:
                each = range(seat * gpus, (seat + 1) * gpus)
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _visible(each)))
            self._seats.append(_Seat(f"process {seat + 1}", environment, share or mine))
        for one in self._seats:
            self._fill(one)

    def give(self, worker: str, number: int, task: Any) -> None:
        seat = next(seat for seat in self._seats if seat.worker == worker)
        with contextlib.suppress(OSError):  # it has ended: the next events say so
            seat.pipe.send((number, task))

    def events(self, seconds: float) -> Sequence[WorkerJoined | WorkerLost | TaskEnded]:
        of_pipe = {seat.pipe: seat for seat in self._seats if seat.pipe is not None}
        found: list[WorkerJoined | WorkerLost | TaskEnded] = []
        for pipe in multiprocessing.connection.wait(list(of_pipe), seconds):
            seat = of_pipe[pipe]
            try:
                said = seat.pipe.recv()
            except (EOFError, OSError):
                seat.process.join()
                found.append(WorkerLost(seat.worker, self._ended(seat)))
                continue
            if said is None:
                found.append(WorkerJoined(seat.worker, seat.name))
            elif isinstance(said, str):
                seat.why = said  # it could not start, and another would not either
            else:
                seat.deaths = 0
                found.append(TaskEnded(seat.worker, *said))
        return found

    @property
    def stranded(self) -> str:
        if any(seat.pipe is not None for seat in self._seats):
            return ""
        return "; ".join(dict.fromkeys(seat.why for seat in self._seats))

    def close(self) -> None:
        """Let the processes end, and with them the workers and the shared memory of each; those
        that are still at a task are killed."""
        for seat in self._seats:
            if seat.pipe is not None:
                seat.pipe.close()
        until = time.monotonic() + CLOSING
        for seat in self._seats:
            if seat.process is not None:
                seat.process.join(max(0.0, until - time.monotonic()))
                seat.process.kill()
                seat.process.join()

    def _fill(self, seat: _Seat) -> None:
        context = worker_processes()
        seat.pipe, theirs = context.Pipe()
        seat.worker = f"{seat.name}, {next(self._numbers)}"
        seat.process = context.Process(
            target=_serve, args=(theirs, seat.environment, seat.cores, self._payload)
        )
        seat.process.start()
        theirs.close()

    def _ended(self, seat: _Seat) -> str:
        """Why its process has ended; another one sits there now, if that may help."""
        seat.pipe.close()
        seat.pipe = None
        if not seat.why:
            seat.deaths += 1
            why = f"{seat.name} ended with code {seat.process.exitcode}: killed, or out of memory"
            if seat.deaths < RESTARTS:
                self._fill(seat)
                return why
            seat.why = why
        return seat.why


def _visible(numbers: Sequence[int]) -> Iterator[int | str]:
    """What CUDA calls these ones of the GPUs that this process may see."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    names: Sequence[str] | Mapping[int, int] = mine.split(",") if mine else {n: n for n in numbers}
    for number in numbers:
        yield names[number]


def _serve(pipe: Any, environment: dict[str, str], own: list[int], payload: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers it
    threading.Thread(target=follow_parent, daemon=True).start()
    os.environ.update(environment)  # before anything asks for a GPU
    if own and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    try:
        start, context = pickle.loads(payload)
        do = start(context)
    except FeatureCacheError as error:
        pipe.send(str(error))
        return
    except Exception as error:  # noqa: BLE001 - the parent says it
        pipe.send(f"{type(error).__name__}: {one_line(error)}")
        return
    sending = threading.Lock()

    def answer(number: int, task: Any) -> None:
        result = attempt(do, task)
        with sending:
            pipe.send((number, *result))

    pipe.send(None)
    # EOFError: the parent wants no more.
    with ThreadPoolExecutor(AHEAD + 1) as threads, contextlib.suppress(EOFError):
        while True:
            threads.submit(answer, *pipe.recv())
    if isinstance(do, CallQueue):
        do.close()
