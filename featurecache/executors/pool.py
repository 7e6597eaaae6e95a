"""A pool of worker processes, which may be empty.

It calls a function on tasks and yields the results in the order of the tasks. Results never depend
on which worker computed them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import gc
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from functools import partial
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.interpreter import GARBAGE_THRESHOLD, end_process
from featurecache.machine import cores
from featurecache.text import one_line

Context = TypeVar("Context")
Task = TypeVar("Task")
Result = TypeVar("Result")

CLOSE_SECONDS = 5.0  # for idle workers to end by themselves before they are killed
_MIN_SHARED = 64 << 10  # bytes of arrays in a result; for fewer a pipe is as fast
_SHARED = Path("/dev/shm")  # where Linux has shared memory; containers may have little of it


def checked_workers(workers: int | None) -> int:
    """The number of workers. By default it is one fewer than the cores, which leaves one core for
    the network, and at most 16. Raises BadInput for a negative number."""
    if workers is None:
        return min(cores() - 1, 16)
    if workers < 0:
        raise BadInput(f"workers {workers}: must be 0 (in this process) or more")
    return workers


def ordered(
    function: Callable[[Context, Task], Result],
    context: Context,
    tasks: Iterable[Task | None],
    workers: int,
    local: int = 0,
) -> Generator[Result, None, None]:
    """Yield `function(context, task)` for each task, in the order of the tasks.

    With 0 `workers` this process does the work, otherwise that of the first `local` tasks, while
    the workers start. A None in `tasks` means that there is no task yet: it makes this wait for the
    tasks that have started. The context is sent to each worker once. Tasks are read as they are
    needed, a few per worker ahead of the results. `function` must be importable by name, and not
    from the caller's script, which the worker processes do not run. Arrays in results are passed in
    shared memory if there is enough. An exception of `function` is raised here. Raises
    FeatureCacheError if a worker process dies.
    """
    if workers == 0:
        yield from (function(context, task) for task in tasks if task is not None)
        return
    crew = _Crew(function, context)
    threads = concurrent.futures.ThreadPoolExecutor(workers)  # each waits for one worker
    max_waiting = 2 * workers + 1
    blocks = _Blocks(max_waiting + 1)
    waiting: collections.deque[Callable[[], Result]] = collections.deque()

    def result_of(task: Task) -> Callable[[], Result]:
        block = blocks.take()
        future = threads.submit(crew.call, task, block.name if block else None)
        return lambda: blocks.unpacked(future.result(), block)

    try:
        for number, task in enumerate(tasks):
            if task is not None:
                is_local = number < local
                waiting.append(partial(function, context, task) if is_local else result_of(task))
            if len(waiting) > (max_waiting if task is not None else 0):
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    except BaseException:
        crew.kill()  # the results of running tasks are not needed
        raise
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        crew.close()
        blocks.unlink()


class _Crew:
    """Worker processes, started as they are needed.

    Each has its own pipe, which closes if the worker is killed while it sends a result. If the
    workers shared a pipe, as in concurrent.futures, the reader would wait forever for the rest of
    the message.
    """

    def __init__(self, function: Any, context: Any) -> None:
        self._work = pickle.dumps((function, context))
        self._idle: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._made: list[tuple[Any, Any]] = []  # process, pipe
        self._lock = threading.Lock()
        self._killed = False

    def call(self, task: Any, block: str | None) -> _Packed:
        """The result of a task, from an idle worker or a new one. Raises what the task raised.
        Several threads may call this at once."""
        try:
            worker, is_new = self._idle.get_nowait(), False
        except queue.Empty:
            worker, is_new = self._start(), True
        _, pipe = worker
        try:
            if is_new:
                # Not as an argument: multiprocessing would wait forever for a process that is
                # killed before it reads long ones.
                pipe.send_bytes(self._work)
            pipe.send((task, block))
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise FeatureCacheError(
                "a worker process died (out of memory, or killed). Committed shards are safe; "
                "rerun the command to continue, with fewer --workers if memory is short"
            ) from error
        self._idle.put(worker)
        if isinstance(answer, BaseException):
            raise answer
        packed: _Packed = answer
        return packed

    def kill(self) -> None:
        """Kill all workers. This ends the calls that wait for them."""
        with self._lock:
            self._killed = True
            for process, _ in self._made:
                process.kill()

    def close(self) -> None:
        """End the workers. No call may be waiting, and no more calls are allowed."""
        for _, pipe in self._made:
            pipe.close()
        for process, _ in self._made:
            process.join(CLOSE_SECONDS)
            process.kill()
            process.join()

    def _start(self) -> tuple[Any, Any]:
        context = worker_processes()
        with self._lock:
            if self._killed:
                raise FeatureCacheError("the worker processes have been killed")
            pipe, worker_end = context.Pipe()
            # When Python exits, it ends daemons, but waits for other processes.
            process = context.Process(target=_serve, args=(worker_end,), daemon=True)
            process.start()
            worker_end.close()
            worker = (process, pipe)
            self._made.append(worker)
        return worker


_starting = threading.Lock()  # of the process, since it guards the functions of a module


class _Worker(SpawnProcess):
    """A fresh process that does not run the caller's script.

    A spawned process normally runs the main script again, for the functions defined there. Our
    functions come from this package, and a script that calls it without
    `if __name__ == "__main__":` would start workers in every worker. The start data therefore
    leaves out the script.
    """

    @staticmethod
    def _Popen(process: Any) -> Any:
        original = spawn.get_preparation_data

        def without_script(name: str) -> dict[str, Any]:
            data = original(name)
            return {key: data[key] for key in data if not key.startswith("init_main_from_")}

        with _starting:  # all threads share the module `spawn`
            spawn.get_preparation_data = without_script
            try:
                return SpawnProcess._Popen(process)
            finally:
                spawn.get_preparation_data = original


class _WorkerContext(SpawnContext):
    Process = _Worker


def worker_processes() -> SpawnContext:
    """The multiprocessing context that starts the worker processes of this package."""
    return _WorkerContext()


class _Packed(NamedTuple):
    """A result in transit: its pickle, and the arrays outside the pickle. The arrays are
    concatenated in a block of shared memory (then `arrays` is None), or listed in `arrays`."""

    body: bytes
    sizes: list[int]
    arrays: list[bytes] | None


class _Blocks:
    """Blocks of shared memory for results. The first result sets their size."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._made: list[SharedMemory] = []
        self._free: list[SharedMemory] = []

    def take(self) -> SharedMemory | None:
        return self._free.pop() if self._free else None

    def unpacked(self, packed: _Packed, block: SharedMemory | None) -> Any:
        """The result. Its arrays are copied, and the block is free again."""
        size = sum(packed.sizes)
        if packed.arrays is not None:
            arrays: list[Any] = [bytearray(array) for array in packed.arrays]
            if self._count and size >= _MIN_SHARED:
                self._make(size)
        else:
            assert block is not None
            ends = list(itertools.accumulate(packed.sizes, initial=0))
            shared: Any = block.buf
            arrays = [bytearray(shared[a:b]) for a, b in itertools.pairwise(ends)]
        if block is not None:
            self._free.append(block)
        return pickle.loads(packed.body, buffers=arrays)

    def _make(self, size: int) -> None:
        """Make all blocks, once, or none if there is no room. Results then go through pipes."""
        count, self._count = self._count, 0
        try:
            while _room_for(count * size) and len(self._made) < count:
                self._made.append(SharedMemory(create=True, size=size))
        except OSError:
            self.unlink()
        self._free = list(self._made)

    def unlink(self) -> None:
        while self._made:
            block = self._made.pop()
            block.close()
            block.unlink()


def _room_for(size: int) -> bool:
    """Whether there is shared memory for twice this size. Writing beyond what is available kills
    the process."""
    return not _SHARED.is_dir() or shutil.disk_usage(_SHARED).free > 2 * size


def _serve(pipe: Any) -> None:
    """Run in a worker process: read a function and its context, and call the function on each task,
    until the pipe closes."""
    begin_worker()
    blocks: dict[str, SharedMemory] = {}
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe
        work = pipe.recv_bytes()
        function: Any = None
        while True:
            task, block = pipe.recv()
            answer: _Packed | BaseException
            try:
                if function is None:
                    function, context = pickle.loads(work)
                answer = _pack(function(context, task), block, blocks)
            except BaseException as error:  # noqa: BLE001 - the parent raises it
                answer = _portable(error)
            pipe.send(answer)
    end_process(0)  # the parent waits


def _portable(error: BaseException) -> BaseException:
    """The exception, with its traceback as a note. One that can't be pickled is replaced by a
    FeatureCacheError with its text."""
    text = traceback.format_exc()
    try:
        error.add_note(text)
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an exception's own pickling code may raise anything
        error = FeatureCacheError(f"{type(error).__name__}: {one_line(error)}")
        error.add_note(text)
    return error


def _pack(result: Any, block: str | None, blocks: dict[str, SharedMemory]) -> _Packed:
    outside: list[pickle.PickleBuffer] = []
    body = pickle.dumps(result, protocol=5, buffer_callback=outside.append)
    arrays = [buffer.raw() for buffer in outside]
    sizes = [array.nbytes for array in arrays]
    if block is None:
        return _Packed(body, sizes, [bytes(array) for array in arrays])
    if block not in blocks:
        blocks[block] = SharedMemory(block)
    shared: Any = blocks[block].buf
    if sum(sizes) > blocks[block].size:
        return _Packed(body, sizes, [bytes(array) for array in arrays])
    start = 0
    for array in arrays:
        shared[start : start + array.nbytes] = array
        start += array.nbytes
    return _Packed(body, sizes, None)


def begin_worker() -> None:
    """What a worker process does first."""
    # Ctrl-C reaches all processes of the group. Only the parent handles it, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(GARBAGE_THRESHOLD)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this process when its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
