"""A crew of Ray actors: one per machine of a cluster, or one per GPU or group of GPUs.

Only this module imports ray. Machines may join and leave while the work runs.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import itertools
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featurecache.errors import BadInput, FeatureCacheError, MissingExtra
from featurecache.executors.processes import MAX_DEATHS_IN_A_ROW
from featurecache.executors.scheduler import AHEAD, TaskEnded, WorkerJoined, WorkerLost, attempt
from featurecache.interpreter import GARBAGE_THRESHOLD
from featurecache.text import one_line
from featurecache.versions import installed_versions

MACHINE_POLL_SECONDS = 1.0  # between reads of the list of machines
AUTOSCALER_SECONDS = 600.0  # to wait for an autoscaler when there is no machine
CONNECT_SECONDS = 5.0  # for an address to answer
# The same versions on all machines.
PINNED = ("featurecache", "imaug", "numpy", "timm", "torch", "torchvision")


@dataclass
class _Seat:
    """A slot for an actor: the resources it takes on its machine, and its current worker."""

    node: str
    name: str
    cpus: float
    gpus: float
    worker: str = ""
    actor: Any = None
    deaths: int = 0  # since a task last ended here
    error: str = ""  # why it has no worker and will get none


class Cluster:
    """A Crew on a Ray cluster: the one at `address` (HOST:PORT) or $RAY_ADDRESS, or one that runs
    on this machine. If there is none, this starts one with only this machine.

    Each worker gets `gpus` GPUs; None means 1 if the cluster has GPUs, else 0. Without GPUs there
    is one worker per machine. At most `max_workers` run at a time; an autoscaler is asked for that
    many.
    """

    def __init__(
        self,
        start: Callable[[Any], Callable[[Any], Any]],
        context: Any,
        address: str | None = None,
        gpus: float | None = None,
        max_workers: int | None = None,
    ) -> None:
        ray = _ray()
        self._open = contextlib.ExitStack()
        _connect(ray, address)
        # Ray prints the last output of dying nodes to stdout, which is reserved for results.
        self._open.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._open.callback(ray.shutdown)
        self._ray = ray
        self._max_workers = max_workers
        self._numbers = itertools.count()
        self._seats: dict[str, list[_Seat]] = {}  # node id -> its seats
        # Ray reference -> seat, worker, task number (None for the worker's start)
        self._pending: dict[Any, tuple[_Seat, str, int | None]] = {}
        self._polled = float("-inf")
        self._alive = time.monotonic()  # when there was last a machine
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._gpus = float(any(n.get("GPU") for n in nodes)) if gpus is None else gpus
        fitting = [n for n in nodes if n.get("CPU", 0) >= 1 and n.get("GPU", 0) >= self._gpus]
        if max_workers is not None:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[{"CPU": 1, "GPU": self._gpus}] * max_workers)
        elif not fitting:
            self.close()
            raise BadInput(
                f"no machine of the Ray cluster has {self._gpus:g} GPUs and a core for a worker; "
                "pass another --gpus-per-worker, or --max-workers N to ask an autoscaler for N"
            )
        versions = installed_versions(*PINNED)
        # Pickled here, not by Ray: a worker compares versions before it unpickles.
        self._payload = ray.put(pickle.dumps((start, context)))
        self._versions = versions
        self._poll_machines()

    def give(self, worker: str, number: int, task: Any) -> None:
        seat = next(s for seats in self._seats.values() for s in seats if s.worker == worker)
        self._pending[seat.actor.do.remote(task)] = (seat, worker, number)

    def events(self, seconds: float) -> Sequence[WorkerJoined | WorkerLost | TaskEnded]:
        events: list[WorkerJoined | WorkerLost | TaskEnded] = []
        if time.monotonic() - self._polled > MACHINE_POLL_SECONDS:
            events += self._poll_machines()
        if not self._pending:
            time.sleep(seconds)
            return events
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(
                list(self._pending), num_returns=len(self._pending), timeout=0
            )
        for reference in ready:
            if reference not in self._pending:  # its worker has just been lost
                continue
            seat, worker, number = self._pending.pop(reference)
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                events += self._lose(seat, worker, _reason(error))
                continue
            if number is not None:
                seat.deaths = 0
                events.append(TaskEnded(worker, number, *answer))
            elif answer:
                seat.error = f"{seat.name}: {answer}"  # it could not start, nor would another
                self._ray.kill(seat.actor)
            else:
                events.append(WorkerJoined(worker, seat.name))
        return events

    @property
    def stranded(self) -> str:
        seats = [seat for seats in self._seats.values() for seat in seats]
        if self._max_workers is not None and not seats:
            if time.monotonic() - self._alive < AUTOSCALER_SECONDS:
                return ""  # an autoscaler may add some
            return (
                f"no machine with {self._gpus:g} GPUs and a core joined within "
                f"{AUTOSCALER_SECONDS:.0f} s"
            )
        if any(not seat.error for seat in seats):
            return ""
        errors = [seat.error for seat in seats] or ["the cluster has no machine left"]
        return "; ".join(dict.fromkeys(errors))

    def close(self) -> None:
        for seats in self._seats.values():
            for seat in seats:
                if seat.actor is not None:
                    self._ray.kill(seat.actor)
        if self._max_workers is not None:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[])
        self._open.close()

    def _poll_machines(self) -> list[WorkerLost]:
        """Start workers on new machines, and give up the workers of machines that are gone."""
        lost: list[WorkerLost] = []
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for identity in self._seats.keys() - alive.keys():
            for seat in self._seats.pop(identity):
                lost += self._lose(seat, seat.worker, f"{seat.name} is gone")
        hosts = collections.Counter(node["NodeManagerHostname"] for node in alive.values())
        for identity in sorted(alive.keys() - self._seats.keys()):
            node = alive[identity]
            resources = node["Resources"]
            count = int(resources.get("GPU", 0) // self._gpus) if self._gpus else 1
            count = count if resources.get("CPU", 0) >= 1 else 0
            name = node["NodeManagerHostname"]
            if hosts[name] > 1:
                name += f" ({identity[:6]})"
            if self._max_workers is not None:
                count = min(count, self._max_workers - sum(map(len, self._seats.values())))
            if count < 1:
                continue
            cpus = max(1, resources["CPU"] // count)
            self._seats[identity] = [_Seat(identity, name, cpus, self._gpus) for _ in range(count)]
            for seat in self._seats[identity]:
                self._fill(seat)
        self._polled = time.monotonic()
        if self._seats:
            self._alive = self._polled
        return lost

    def _fill(self, seat: _Seat) -> None:
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        seat.worker = f"{seat.name}, {next(self._numbers)}"
        seat.actor = (
            self._ray.remote(_Worker)
            .options(
                num_cpus=seat.cpus,
                num_gpus=seat.gpus,
                max_restarts=0,
                max_concurrency=AHEAD + 1,
                scheduling_strategy=affinity(seat.node, soft=False),
            )
            .remote()
        )
        ready = seat.actor.start.remote(self._versions, self._payload)
        self._pending[ready] = (seat, seat.worker, None)

    def _lose(self, seat: _Seat, worker: str, reason: str) -> list[WorkerLost]:
        """Record that a worker has ended, and start another in its seat if that may help."""
        if seat.worker != worker:
            return []
        self._pending = {
            reference: owner for reference, owner in self._pending.items() if owner[1] != worker
        }
        seat.deaths += 1
        if seat.node in self._seats and seat.deaths < MAX_DEATHS_IN_A_ROW:
            self._fill(seat)
        else:
            seat.error, seat.worker, seat.actor = f"{seat.name}: {reason}", "", None
        return [WorkerLost(worker, reason)]


class _Worker:
    """The actor: `start` once, then tasks, as many at a time as the scheduler hands out."""

    def start(self, versions: dict[str, str], payload: bytes) -> str:
        """Open what the tasks need. Returns why this machine can't run them; "" if it can."""
        gc.set_threshold(GARBAGE_THRESHOLD)
        local = installed_versions(*versions)
        conflicts = [
            f"{n} {local[n]}, not {versions[n]}" for n in versions if local[n] != versions[n]
        ]
        if conflicts:
            return (
                f"has {'; '.join(conflicts)}: install the driver's versions, with the same Python"
            )
        try:
            begin, context = pickle.loads(payload)
            self._do = begin(context)
        except FeatureCacheError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - the driver reports it
            return f"{type(error).__name__}: {one_line(error)}"
        return ""

    def do(self, task: Any) -> tuple[Any, str]:
        return attempt(self._do, task)


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise MissingExtra("--executor ray", "ray", "ray") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    if address is not None:
        _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # if a cluster is started here
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None and "RAY_ADDRESS" not in os.environ:
            try:
                ray.init(address="auto", **quiet)
            except ConnectionError:  # there is none
                ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        target = address or os.environ.get("RAY_ADDRESS", "this machine")
        if "Version mismatch" in reason:
            reason = f"its versions of Ray or Python differ: {reason.split(': ', 1)[-1]}"
        elif isinstance(error, ConnectionError) and "RAY_AUTH_MODE" not in os.environ:
            reason += "; if it needs a token, set RAY_AUTH_MODE=token"
        raise BadInput(f"cannot use the Ray cluster at {target}: {reason}") from error
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray replaces ours, which reports what is safe


def _check_address(address: str) -> None:
    """Raise BadInput if nothing answers at the address. Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in host:
        raise BadInput(f"address {address!r}: must be HOST:PORT, as `ray start --head` prints it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"nothing answers at {address} ({error}); `ray start --head` on a machine starts a "
            "cluster and prints its address"
        ) from error


def _reason(error: BaseException) -> str:
    """Ray's reason for the end of a worker, without Ray's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "Error" in line or "died" in line or "reason" in line]
    return one_line(Exception((reasons or lines or ["it ended"])[-1]))
