"""One cache, many processes: one after another with other settings, and at the same time.

`resumes` stops a run and goes on with other numbers of workers; `processes` lets eight fill one
cache at once. Host names of their own need root; `can_rename_host` says so.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.harness import Process, Tally, Writer, run, write_images
from benchmarks.reliability.jobs import NOTICED
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify

IMAGES, SHARD_ROWS, PROCESSES = 48, 8, 8
SHARDS = IMAGES // SHARD_ROWS
ENGINES = ("torch-cpu", "openvino")
LONGEST = 120  # seconds that anything may take before it counts as hung
SLOW = 0.1  # seconds added to each shard, so that processes meet


def _featurize(data: Path, cache: Path, *more: object, policies: Sequence[str]) -> list[object]:
    words: list[object] = [
        "featurize", "--data", data, "--cache", cache, "--backbone", "efficientnet_lite0",
        "--input-size", 32, "--shard-rows", SHARD_ROWS, *more,
    ]  # fmt: skip
    return words + [word for policy in policies for word in ("--policy", policy)]


def _state(writer: Writer, cache: Path) -> tuple[dict[bytes, bytes], object]:
    """Every row, and of ours the root hash of every space. Raises one of NOTICED for damage."""
    rows = writer.rows(cache)
    if writer.name != "ours":
        return rows, None
    bad = verify(cache).bad
    if bad:
        raise RuntimeError(f"verify lists {bad}")
    return rows, {space.name: space.root_hash for space in Cache(cache).spaces()}


def _undisturbed(writer: Writer, words: list[object], cache: Path, said: Path) -> Any:
    code, text = run(writer, words, said)
    if code != 0:
        raise RuntimeError(f"undisturbed, featurize gave {code}: {text}")
    return _state(writer, cache)


# One after another.


def resumes(writer: Writer, size: int, folder: Path) -> Tally:
    """Each engine with each number of workers, killed as it closes its first HDF5 file, the one
    after a third and after two thirds of them; then the same command. `size`: the most to try."""
    data = write_images(folder / "data", IMAGES)
    said = folder / "said"
    points = [0, SHARDS // 3, 2 * SHARDS // 3]
    # A small run takes the first few: few workers, and not the engine that compiles for seconds.
    settings = list(itertools.product((1, 0, 2, 8), points[1:] + points[:1], ENGINES))
    expected: dict[str, Any] = {}
    bad = []
    for workers, shards, engine in settings[:size]:
        words = functools.partial(_featurize, data, policies=["color_1"])
        if engine not in expected:
            cache = folder / engine
            alone = words(cache, "--engine", engine, "--workers", 0)
            expected[engine] = _undisturbed(writer, alone, cache, said)
        cache = folder / "cache"
        arguments = words(cache, "--engine", engine, "--workers", workers)
        wrong = []
        stopped = Process(writer, arguments, said, functools.partial(_killed_at_close, shards + 1))
        code = _waited(stopped)
        if code != -signal.SIGKILL:
            wrong.append(f"exit code {code}, not killed: {stopped.text()[-200:]}")
        code, text = run(writer, arguments, said)
        if code != 0:
            wrong.append(f"resuming gave {code}: {text[-200:]}")
        try:
            if _state(writer, cache) != expected[engine]:
                wrong.append("other rows, or another root hash")
        except NOTICED as error:
            wrong.append(f"a reader says: {error}")
        if wrong:
            bad.append(f"{engine}, {workers} workers, after {shards} shards: {'; '.join(wrong)}")
        shutil.rmtree(cache, ignore_errors=True)
    tried = min(size, len(settings))
    said_ = (
        f"{tried} of {len(settings)} settings stopped and resumed on {len(expected)} engines: "
        f"{len(bad)} ended otherwise than the undisturbed run of the engine"
    )
    return Tally(tried, len(bad), said_, tuple(bad[:5]))


def _killed_at_close(number: int) -> None:
    """kill -9 this process when it closes HDF5 file `number`: of ours that is in memory, and of
    the naive writer the file that lies at its final path."""
    import h5py

    close = h5py.File.close
    closed = itertools.count(1)

    def dying(file: Any) -> None:
        if next(closed) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        close(file)

    h5py.File.close = dying


def _waited(process: Process) -> int | None:
    """The exit code; None for one that hung, and was killed."""
    code = process.wait(LONGEST)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    return code


# At the same time.


def can_rename_host() -> str | None:
    """Why processes can't have host names of their own here; None if they can."""
    child = os.fork()
    if child == 0:
        os._exit(_own_host_name("other"))
    return "host names of their own need root" if os.waitpid(child, 0)[1] else None


def _own_host_name(name: str) -> int:
    """Leave the host name to the others and take this one: 0 if that was allowed."""
    unshare: Callable[[int], int] = ctypes.CDLL(None).unshare
    new_names = 0x04000000  # CLONE_NEWUTS
    if unshare(new_names) != 0:
        return 1
    socket.sethostname(name)
    return 0


def processes(writer: Writer, size: int, folder: Path) -> Tally:
    """Eight processes fill one cache: some through a link, some under another host name, one with
    a worker process, with the policies in two orders. In every third run two are killed, and in
    every third one is stopped: the others must do all but what it is at.

    What is computed is counted where the network runs, so that the work of the killed counts too.
    """
    rng = np.random.default_rng(3)
    data = write_images(folder / "data", IMAGES)
    policies = ["none", "color_1"] if writer.name == "ours" else ["color_1"]
    alone = _featurize(
        data, folder / "alone", "--engine", "torch-cpu", "--workers", 0, policies=policies
    )
    expected = _undisturbed(writer, alone, folder / "alone", folder / "said")
    own_names = can_rename_host() is None
    bad: list[str] = []
    computed, most, hosts = 0, 0, set()
    for trial in range(size):
        kind = ("stopped", "killed", "undisturbed")[trial % 3]
        place = folder / f"trial {trial}"
        place.mkdir()
        started = _started(writer, data, place, policies, rng, own_names)
        wrong: list[str] = []
        disturbed: list[int] = []
        if kind == "killed":
            disturbed = [_first_at_work(place, [], wrong)]
            started[disturbed[0]].signal(signal.SIGKILL)
            time.sleep(float(rng.uniform(0, 0.5)))
            disturbed.append(_first_at_work(place, disturbed, wrong))
            started[disturbed[1]].signal(signal.SIGKILL)
        elif kind == "stopped":
            disturbed = [_first_at_work(place, [7], wrong)]
            started[disturbed[0]].signal(signal.SIGSTOP)
            if writer.name == "ours":
                wrong += _all_but_one_shard(place / "cache", len(policies))
            started[disturbed[0]].signal(signal.SIGCONT)
        for number, process in enumerate(started):
            code = _waited(process)
            if code != 0 and not (kind == "killed" and number in disturbed):
                ending = "hung" if code is None else f"exit code {code}"
                wrong.append(f"process {number}: {ending}: {process.text()[-200:]}")
        shards = SHARDS * len(policies)
        made = [len(_work(place, number)) for number in range(PROCESSES)]
        if sum(made) > shards + PROCESSES:
            wrong.append(f"{sum(made)} shards were computed, {shards} were missing")
        try:
            if _state(writer, place / "cache") != expected:
                wrong.append("other rows, or another root hash")
            if writer.name == "ours":
                wrong += _untidy(place / "cache", kind == "killed")
                hosts |= _hosts(place / "cache")
        except NOTICED as error:
            wrong.append(f"a reader says: {error}")
        computed += sum(made)
        most += shards
        if wrong:
            bad.append(f"run {trial} ({kind}): {'; '.join(wrong)}")
        shutil.rmtree(place)
    said = (
        f"{size} runs of {PROCESSES} processes under {len(hosts)} host names: {computed} shards "
        f"computed for {most} that were missing, {len(bad)} runs not as of one process"
    )
    return Tally(size, len(bad), said, tuple(bad[:5]))


def _started(
    writer: Writer,
    data: Path,
    place: Path,
    policies: list[str],
    rng: np.random.Generator,
    own_names: bool,
) -> list[Process]:
    """Eight processes that start within half a second of each other."""
    link = place / "link"
    link.symlink_to(place / "cache", target_is_directory=True)
    started = []
    for number in range(PROCESSES):
        arguments = _featurize(
            data, link if number % 3 == 2 else place / "cache", "--engine", "torch-cpu",
            "--workers", int(number == 7), policies=policies[:: -1 if number % 2 else 1],
        )  # fmt: skip
        host = f"host{number % 4}" if own_names and number % 4 else ""
        before = functools.partial(_observed, place / f"work {number}", host)
        started.append(Process(writer, arguments, place / f"said {number}", before))
        time.sleep(float(rng.uniform(0, 0.1)))
    return started


def _observed(log: Path, host: str) -> None:
    """In a process of `processes`: note each run of the network, and take some time for it."""
    from featurecache.features.engines import Engine

    if host and _own_host_name(host) != 0:
        raise RuntimeError("no host name of its own")
    start = Engine.start

    def noted(engine: Engine, pixels: np.ndarray) -> Callable[[], np.ndarray]:
        with log.open("ab") as file:
            file.write(b".")
        time.sleep(SLOW)
        return start(engine, pixels)

    Engine.start = noted  # type: ignore[method-assign]


def _work(place: Path, number: int) -> bytes:
    log = place / f"work {number}"
    return log.read_bytes() if log.exists() else b""


def _first_at_work(place: Path, but: Sequence[int], wrong: list[str]) -> int:
    """The number of a process that has begun to compute."""
    deadline = time.monotonic() + LONGEST
    others = [number for number in range(PROCESSES) if number not in but]
    while time.monotonic() < deadline:
        for number in others:
            if _work(place, number):
                return number
        time.sleep(0.005)
    wrong.append("nobody began to compute")
    return others[0]


def _all_but_one_shard(cache: Path, spaces: int) -> list[str]:
    """Wait until all is committed but one shard of each space, which the stopped process is at."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        names = [path for path in cache.glob("spaces/*/*.json") if path.name != "space.json"]
        if len(names) >= spaces * (SHARDS - 1):
            return []
        time.sleep(0.05)
    return [f"only {len(names)} shards were made while one process was stopped"]


def _untidy(cache: Path, killed: bool) -> list[str]:
    """Files that nothing names, and shards that are not there just once. The killed may leave
    temporary files, a lock, and the data of a shard whose record they did not write."""
    wrong = []
    for space in Cache(cache).spaces():
        named = {"space.json"} | {n for r in space.records for n in (r.file, f"{r.shard}.json")}
        found = {path.name for path in Path(str(space.file("").parent)).iterdir()}
        rows = sum(len(record.item_list) for record in space.records)
        if len(space.records) != SHARDS or rows != IMAGES:
            wrong.append(f"{len(space.records)} shards of {rows} rows")
        if found - named and not killed:
            wrong.append(f"left over: {sorted(found - named)[:3]}")
    locks = [path.name for path in cache.glob("locks/*")]
    if locks and not killed:
        wrong.append(f"left over: locks {locks[:3]}")
    return wrong


def _hosts(cache: Path) -> set[str]:
    return {r.made.host for space in Cache(cache).spaces() for r in space.records}
