"""A crew of Ray actors: one for each machine of a cluster, or for each GPU (or few) of it.

The only room that imports ray. Machines may leave and come while the work runs.
"""

from __future__ import annotations

import collections
import contextlib
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
from featurecache.executors.processes import RESTARTS
from featurecache.executors.scheduler import AHEAD, TaskEnded, WorkerJoined, WorkerLost, attempt
from featurecache.text import one_line
from featurecache.versions import installed_versions

LOOK = 1.0  # seconds between looks at which machines there are
PATIENCE = 600.0  # seconds without a machine, in which an autoscaler may bring one
REACH = 5.0  # seconds in which an address must answer
OWN = ("featurecache", "imaug", "numpy", "timm", "torch")  # of one version on all machines


@dataclass
class _Seat:
    """A place for an actor: what it asks of its machine, and who sits there."""

    node: str
    name: str
    cpus: float
    gpus: float
    worker: str = ""
    actor: Any = None
    deaths: int = 0  # since a task was ended here
    why: str = ""  # it is empty, and stays so


class Cluster:
    """A Crew on a Ray cluster: the one at `address` (HOST:PORT), or $RAY_ADDRESS, or one that runs
    on this machine, or else one that is started on it, of this machine alone.

    `gpus` a worker; None is 1 where the cluster has GPUs. Workers without a GPU have a machine
    each. `most` workers at a time; an autoscaler is asked for as many.
    """

    def __init__(
        self,
        start: Callable[[Any], Callable[[Any], Any]],
        context: Any,
        address: str | None = None,
        gpus: float | None = None,
        most: int | None = None,
    ) -> None:
        ray = _ray()
        self._open = contextlib.ExitStack()
        _connect(ray, address)
        # Ray prints on stdout what its nodes say when they die; stdout belongs to the results.
        self._open.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._open.callback(ray.shutdown)
        self._ray = ray
        self._most = most
        self._numbers = itertools.count()
        self._seats: dict[str, list[_Seat]] = {}  # of each machine that was seen alive
        self._of: dict[Any, tuple[_Seat, str, int | None]] = {}  # what is waited for, and whose
        self._looked = float("-inf")
        self._alive = time.monotonic()  # when there was a machine last
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._gpus = float(any(n.get("GPU") for n in nodes)) if gpus is None else gpus
        fitting = [n for n in nodes if n.get("CPU", 0) >= 1 and n.get("GPU", 0) >= self._gpus]
        if most is not None:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[{"CPU": 1, "GPU": self._gpus}] * most)
        elif not fitting:
            self.close()
            raise BadInput(
                f"no machine of the Ray cluster has {self._gpus:g} GPUs and a core for a worker; "
                "give another --gpus-per-worker, or --max-workers N to ask an autoscaler for N"
            )
        versions = installed_versions(*OWN)
        # Bytes of ours, not Ray's pickle: versions are compared before they are opened.
        self._payload = ray.put(pickle.dumps((start, context)))
        self._versions = versions
        self._look()

    def give(self, worker: str, number: int, task: Any) -> None:
        seat = next(s for seats in self._seats.values() for s in seats if s.worker == worker)
        self._of[seat.actor.do.remote(task)] = (seat, worker, number)

    def events(self, seconds: float) -> Sequence[WorkerJoined | WorkerLost | TaskEnded]:
        found: list[WorkerJoined | WorkerLost | TaskEnded] = []
        if time.monotonic() - self._looked > LOOK:
            found += self._look()
        if not self._of:
            time.sleep(seconds)
            return found
        ready, _ = self._ray.wait(list(self._of), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(list(self._of), num_returns=len(self._of), timeout=0)
        for reference in ready:
            if reference not in self._of:  # of a worker that was found lost just now
                continue
            seat, worker, number = self._of.pop(reference)
            try:
                said = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                found += self._lose(seat, worker, _reason(error))
                continue
            if number is not None:
                seat.deaths = 0
                found.append(TaskEnded(worker, number, *said))
            elif said:
                seat.why = f"{seat.name}: {said}"  # it could not start, another would not either
                self._ray.kill(seat.actor)
            else:
                found.append(WorkerJoined(worker, seat.name))
        return found

    @property
    def stranded(self) -> str:
        seats = [seat for seats in self._seats.values() for seat in seats]
        if self._most is not None and not seats:
            if time.monotonic() - self._alive < PATIENCE:
                return ""  # an autoscaler may bring some
            return f"no machine with {self._gpus:g} GPUs and a core came in {PATIENCE:.0f} s"
        if any(not seat.why for seat in seats):
            return ""
        whys = [seat.why for seat in seats] or ["the cluster has no machine left"]
        return "; ".join(dict.fromkeys(whys))

    def close(self) -> None:
        for seats in self._seats.values():
            for seat in seats:
                if seat.actor is not None:
                    self._ray.kill(seat.actor)
        if self._most is not None:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[])
        self._open.close()

    def _look(self) -> list[WorkerLost]:
        """Seat workers on machines that have come, and give up those of machines that are gone."""
        lost: list[WorkerLost] = []
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for gone in self._seats.keys() - alive.keys():
            for seat in self._seats.pop(gone):
                lost += self._lose(seat, seat.worker, f"{seat.name} is gone")
        hosts = collections.Counter(node["NodeManagerHostname"] for node in alive.values())
        for identity in sorted(alive.keys() - self._seats.keys()):
            node = alive[identity]
            has = node["Resources"]
            count = int(has.get("GPU", 0) // self._gpus) if self._gpus else 1
            count = count if has.get("CPU", 0) >= 1 else 0
            name = node["NodeManagerHostname"]
            if hosts[name] > 1:
                name += f" ({identity[:6]})"
            if self._most is not None:
                count = min(count, self._most - sum(map(len, self._seats.values())))
            if count < 1:
                continue
            cpus = max(1, has["CPU"] // count)
            self._seats[identity] = [_Seat(identity, name, cpus, self._gpus) for _ in range(count)]
            for seat in self._seats[identity]:
                self._fill(seat)
        self._looked = time.monotonic()
        if self._seats:
            self._alive = self._looked
        return lost

    def _fill(self, seat: _Seat) -> None:
        where = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        seat.worker = f"{seat.name}, {next(self._numbers)}"
        seat.actor = (
            self._ray.remote(_Worker)
            .options(
                num_cpus=seat.cpus,
                num_gpus=seat.gpus,
                max_restarts=0,
                max_concurrency=AHEAD + 1,
                scheduling_strategy=where(seat.node, soft=False),
            )
            .remote()
        )
        ready = seat.actor.start.remote(self._versions, self._payload)
        self._of[ready] = (seat, seat.worker, None)

    def _lose(self, seat: _Seat, worker: str, why: str) -> list[WorkerLost]:
        """A worker has ended; another one sits there now, if that may help."""
        if seat.worker != worker:
            return []
        self._of = {ref: of for ref, of in self._of.items() if of[1] != worker}
        seat.deaths += 1
        if seat.node in self._seats and seat.deaths < RESTARTS:
            self._fill(seat)
        else:
            seat.why, seat.worker, seat.actor = f"{seat.name}: {why}", "", None
        return [WorkerLost(worker, why)]


class _Worker:
    """The actor: `start` once, then tasks, as many at a time as a crew hands out."""

    def start(self, versions: dict[str, str], payload: bytes) -> str:
        """Why it can't work here; "" if it can."""
        here = installed_versions(*versions)
        other = [f"{n} {here[n]}, not {versions[n]}" for n in versions if here[n] != versions[n]]
        if other:
            return f"has {'; '.join(other)}: install what the driver has, with the same Python"
        try:
            begin, context = pickle.loads(payload)
            self._do = begin(context)
        except FeatureCacheError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - the driver says it
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
        _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
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
        said = one_line(error)
        at = address or os.environ.get("RAY_ADDRESS", "this machine")
        if "Version mismatch" in said:
            said = f"other versions of Ray or Python than here: {said.split(': ', 1)[-1]}"
        elif isinstance(error, ConnectionError) and "RAY_AUTH_MODE" not in os.environ:
            said += "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise BadInput(f"the Ray cluster at {at} can't be used: {said}") from error
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray takes it; ours says what stays


def _reach(address: str) -> None:
    """Raise BadInput if nobody answers there: Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in host:
        raise BadInput(f"address {address!r}: must be HOST:PORT, as `ray start --head` prints it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"nobody answers at {address} ({error}); `ray start --head` on a machine starts a "
            "cluster and prints its address"
        ) from error


def _reason(error: BaseException) -> str:
    """What Ray says of a worker that ended, without where in Ray it was said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "Error" in line or "died" in line or "reason" in line]
    return one_line(Exception((said or lines or ["it ended"])[-1]))
