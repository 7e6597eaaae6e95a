"""A crew of processes on this machine, each with its own GPUs or cores."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.connection
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from featurecache.errors import FeatureCacheError
from featurecache.executors.pool import begin_worker, worker_processes
from featurecache.executors.scheduler import (
    AHEAD,
    CallQueue,
    TaskEnded,
    WorkerJoined,
    WorkerLost,
    attempt,
)
from featurecache.interpreter import end_process
from featurecache.machine import cores
from featurecache.text import one_line

CLOSE_SECONDS = 5.0  # for processes to end by themselves before they are killed
MAX_DEATHS_IN_A_ROW = 3  # of a seat's processes, without a task that ends, before it gets no other


@dataclass
class _Seat:
    """A slot for a worker: its resources, and its current process."""

    name: str
    environment: dict[str, str]
    cores: list[int]
    worker: str = ""
    process: Any = None
    pipe: Any = None
    deaths: int = 0  # since a task last ended here
    error: str = ""  # why it has no worker and will get none


class Processes:
    """A Crew of `count` processes. Each gets an equal share of the cores, and `gpus` GPUs that no
    other process uses."""

    def __init__(
        self, start: Callable[[Any], Callable[[Any], Any]], context: Any, count: int, gpus: int = 0
    ) -> None:
        self._payload = pickle.dumps((start, context))
        self._numbers = itertools.count()
        self._seats = []
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for seat in range(count):
            environment = {}
            first, end = (i * len(available) // count for i in (seat, seat + 1))
            share = available[first:end]
            if gpus:
                numbers = range(seat * gpus, (seat + 1) * gpus)
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _visible(numbers)))
            self._seats.append(_Seat(f"process {seat + 1}", environment, share or available))
            self._fill(self._seats[-1])

    def give(self, worker: str, number: int, task: Any) -> None:
        seat = next(seat for seat in self._seats if seat.worker == worker)
        with contextlib.suppress(OSError):  # the process has ended: an event will report it
            seat.pipe.send((number, task))

    def events(self, seconds: float) -> Sequence[WorkerJoined | WorkerLost | TaskEnded]:
        seats = {seat.pipe: seat for seat in self._seats if seat.pipe is not None}
        events: list[WorkerJoined | WorkerLost | TaskEnded] = []
        for pipe in multiprocessing.connection.wait(list(seats), seconds):
            seat = seats[pipe]
            try:
                answer = seat.pipe.recv()
            except (EOFError, OSError):
                seat.process.join()
                events.append(WorkerLost(seat.worker, self._ended(seat)))
                continue
            if answer is None:
                events.append(WorkerJoined(seat.worker, seat.name))
            elif isinstance(answer, str):
                seat.error = answer  # it could not start, and neither would another
            else:
                seat.deaths = 0
                events.append(TaskEnded(seat.worker, *answer))
        return events

    @property
    def stranded(self) -> str:
        if any(seat.pipe is not None for seat in self._seats):
            return ""
        return "; ".join(dict.fromkeys(seat.error for seat in self._seats))

    def close(self) -> None:
        """End the processes, with their workers and shared memory. Those that still run a task
        after CLOSE_SECONDS are killed."""
        for seat in self._seats:
            if seat.pipe is not None:
                seat.pipe.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for seat in self._seats:
            if seat.process is not None:
                seat.process.join(max(0.0, deadline - time.monotonic()))
                seat.process.kill()
                seat.process.join()

    def _fill(self, seat: _Seat) -> None:
        context = worker_processes()
        seat.pipe, worker_end = context.Pipe()
        seat.worker = f"{seat.name}, {next(self._numbers)}"
        seat.process = context.Process(
            target=_serve, args=(worker_end, seat.environment, seat.cores)
        )
        seat.process.start()
        worker_end.close()
        # Not as an argument: multiprocessing would wait forever for a process that is killed before
        # it reads a long one.
        with contextlib.suppress(OSError):  # it has ended: an event will say so
            seat.pipe.send_bytes(self._payload)

    def _ended(self, seat: _Seat) -> str:
        """Start another process in the seat if that may help. Returns why the process ended."""
        seat.pipe.close()
        seat.pipe = None
        if not seat.error:
            seat.deaths += 1
            reason = (
                f"{seat.name} ended with code {seat.process.exitcode}: killed, or out of memory"
            )
            if seat.deaths < MAX_DEATHS_IN_A_ROW:
                self._fill(seat)
                return reason
            seat.error = reason
        return seat.error


def _visible(numbers: Sequence[int]) -> Iterator[int | str]:
    """CUDA's names for the GPUs with these numbers, among those that this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names: Sequence[str] | Mapping[int, int]
    names = visible.split(",") if visible else {n: n for n in numbers}
    for number in numbers:
        yield names[number]


def _serve(pipe: Any, environment: dict[str, str], share: list[int]) -> None:
    begin_worker()
    os.environ.update(environment)  # must be set before a GPU is used
    if share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe, or has ended
        payload = pipe.recv_bytes()
        try:
            start, context = pickle.loads(payload)
            do = start(context)
        except FeatureCacheError as error:
            pipe.send(str(error))
        except Exception as error:  # noqa: BLE001 - the parent reports it
            pipe.send(f"{type(error).__name__}: {one_line(error)}")
        else:
            pipe.send(None)
            _answer(pipe, do)
    end_process(0)  # the parent waits


def _answer(pipe: Any, do: Callable[[Any], Any]) -> None:
    """Do the tasks from the pipe, until the parent closes it."""
    sending = threading.Lock()

    def answer(number: int, task: Any) -> None:
        result, error = attempt(do, task)
        with sending:
            try:
                pipe.send((number, result, error))
            except OSError:
                raise
            except Exception as failure:  # noqa: BLE001 - the parent waits for an answer
                pipe.send((number, None, f"{type(failure).__name__}: {one_line(failure)}"))

    try:
        with ThreadPoolExecutor(AHEAD + 1) as threads:
            while True:
                threads.submit(answer, *pipe.recv())
    finally:
        if isinstance(do, CallQueue):
            do.close()
