"""One commit, call by call: killed at each system call, and refused by the disk at each.

Needs strace.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.harness import (
    Process,
    Tally,
    Writer,
    made_shard,
)
from benchmarks.reliability.jobs import (
    NOTICED,
    spread,
    wait_for,
)
from featurecache.errors import FeatureCacheError
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify
from featurecache.storage import durable


@dataclass(frozen=True)
class Commit:
    """A process (see harness.Process) that commits one shard, or replaces one file, and leaves at
    once: with 0 if that is said to be done, with SAID if it is said to have failed."""

    writer: Writer
    cache: Path
    replaces: bool = False
    name: str = "commit"
    SAID = 3

    def main(self) -> None:
        try:
            if self.replaces:
                durable.replace(self.cache / "file", b"new" * 5000)
            else:
                self.writer.commit(self.cache, *made_shard(1))
        except (FeatureCacheError, OSError):
            os._exit(self.SAID)
        os._exit(0)

    commit = rows = None  # it is started as a writer, and asked for nothing else


def _traced(commit: Commit, folder: Path, options: Sequence[str]) -> tuple[int | None, list[str]]:
    """Run a commit under strace from its first system call on: exit code, calls."""
    gate, log, ready = folder / "gate", folder / "calls", folder / "ready"
    for path in (gate, log, ready):
        path.unlink(missing_ok=True)
    os.mkfifo(gate)
    process = Process(commit, [], folder / "said", functools.partial(_pass, ready, gate))
    wait_for(ready)
    words = ["strace", "-qq", "-y", "-s", "300", "-o", log, *options, "-p", str(process.pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 20
    while "TracerPid:\t0" in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.002)
    door = os.open(gate, os.O_RDWR)  # not for writing alone: that waits for a reader, maybe killed
    os.write(door, b"!")
    code = process.wait(30)
    os.close(door)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    tracer.wait(30)
    return code, log.read_text(errors="replace").splitlines()


def _pass(ready: Path, gate: Path) -> None:
    door = os.open(gate, os.O_RDWR)  # before the tracer comes: only the commit's calls are counted
    ready.touch()
    os.read(door, 1)


def _states(writer: Writer, folder: Path) -> list[tuple[str, Path]]:
    """Caches to commit into: one that is not there yet, and one that holds a shard."""
    held = folder / "one shard"
    writer.commit(held, *made_shard(0))
    return [("first shard", folder / "none yet"), ("second shard", held)]


def _after(writer: Writer, cache: Path, earlier: dict[bytes, bytes], again: bool) -> list[str]:
    """What is wrong after a commit that was cut short, and (`again`) after committing again."""
    items, features = made_shard(1)
    both = earlier | {item: row.tobytes() for item, row in zip(items, features, strict=True)}
    wrong = []
    try:
        if again:
            writer.commit(cache, items, features)
        rows = writer.rows(cache)
        if rows != both and (again or rows != earlier):
            wrong.append(f"{len(rows)} rows, neither {len(earlier)} nor {len(both)}, or changed")
        if writer.name == "ours" and Cache(cache).exists:
            wrong += [f"verify lists {row}" for row in verify(cache).bad]
            (space,) = Cache(cache).spaces() or [None]
            if again and (
                space is None or sum(len(r.item_list) for r in space.records) != len(both)
            ):
                wrong.append("rows are held twice")
    except NOTICED as error:
        wrong.append(f"a reader says: {error}")
    return [f"committed again, {text}" if again else text for text in wrong]


def syscalls(writer: Writer, size: int, folder: Path) -> Tally:
    """kill -9 as each system call of a commit is entered (`size`: the most of them to try)."""
    bad: list[str] = []
    tried = killed = calls = 0
    for label, state in _states(writer, folder):
        earlier = writer.rows(state)
        _, log = _traced(Commit(writer, _copy(state, folder)), folder, ["-e", "trace=all"])
        steps = list(_numbered(log))
        calls += len(steps)
        for place in spread(range(len(steps)), size // 2):
            cache = _copy(state, folder)
            name, number = steps[place]
            options = ["-e", "trace=all", "-e", f"inject={name}:signal=KILL:when={number}"]
            code, _ = _traced(Commit(writer, cache), folder, options)
            tried += 1
            killed += code == -signal.SIGKILL
            wrong = [] if code in (-signal.SIGKILL, 0) else [f"exit code {code}"]
            wrong += _after(writer, cache, earlier, False) + _after(writer, cache, earlier, True)
            if wrong:
                bad.append(f"{label}, {log[place][:60]}: {'; '.join(wrong)}")
    said = (
        f"killed at {killed} of the {calls} system calls of two commits: {len(bad)} where a reader "
        "saw a shard that was neither whole nor absent, or that could not be committed again"
    )
    return Tally(tried, len(bad), said, tuple(bad[:5]))


def _numbered(log: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each system call as strace counts them: its name, and the how-manieth of this name it is."""
    seen: Counter[str] = Counter()
    for line in log:
        name = line.split("(")[0]
        if name.isidentifier():
            seen[name] += 1
            yield name, seen[name]


def _copy(state: Path, folder: Path) -> Path:
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    if state.exists():
        shutil.copytree(state, cache)
    return cache


# What the disk may refuse in the middle of a commit.
FAULTS = ("openat", "write", "pwrite64", "pwritev", "writev", "fsync", "fdatasync", "ftruncate",
          "close", "link", "linkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat",
          "unlink", "unlinkat", "newfstatat", "fstat", "lseek")  # fmt: skip


def io_errors(writer: Writer, size: int, folder: Path) -> Tally:
    """EIO at each of FAULTS in a commit and, of ours, in replacing a file of a run folder.

    A false success is a commit that says it is done while its rows are not whole, or not on the
    disk: a file or a name that no fsync has covered. After a failed fsync the same file must
    neither be synced again nor get its name.
    """
    bad: list[str] = []
    faults: list[tuple[str, Path, bool, str, int]] = []
    states = [(label, state, False) for label, state in _states(writer, folder)]
    if writer.name == "ours":
        (folder / "run").mkdir()
        (folder / "run" / "file").write_bytes(b"old" * 5000)
        states.append(("replaced file", folder / "run", True))
    for label, state, replaces in states:
        _, log = _traced(Commit(writer, _copy(state, folder), replaces), folder, [])
        faults += [
            (label, state, replaces, name, number)
            for name, number in _numbered(log)
            if name in FAULTS
        ]
    false = retried = said = 0
    for place in spread(range(len(faults)), size):
        label, state, replaces, name, number = faults[place]
        earlier = {} if replaces else writer.rows(state)
        cache = _copy(state, folder)
        known = _names(cache)
        commit = Commit(writer, cache, replaces)
        code, log = _traced(commit, folder, ["-e", f"inject={name}:error=EIO:when={number}"])
        wrong = [] if code in (0, Commit.SAID) else [f"exit code {code}"]
        said += code == Commit.SAID
        after = functools.partial(_replaced, cache) if replaces else functools.partial(
            _after, writer, cache, earlier)  # fmt: skip
        wrong += after(False)
        if code == 0:
            not_there = after(True) if replaces else _missing(writer, cache)
            lies = not_there + _not_on_disk(log, cache, known)
            false += bool(lies)
            wrong += [f"said to be done, but {lie}" for lie in lies]
        again = _synced_again(log)
        retried += bool(again)
        wrong += again
        code, log_again = _traced(commit, folder, [])
        wrong += [] if code == 0 else [f"committing again gave {code}"]
        lies = _not_on_disk(log + log_again, cache, known) if code == 0 else []
        wrong += [f"committed again, but {lie}" for lie in lies] + after(True)
        if wrong:
            bad.append(f"{label}, {name} number {number}: {'; '.join(dict.fromkeys(wrong))}")
    tried = min(size, len(faults))
    text = (
        f"EIO at {tried} of {len(faults)} calls, {said} said so: {false} false successes, "
        f"{retried} failed fsyncs retried, {len(bad)} bad"
    )
    return Tally(tried, len(bad), text, tuple(bad[:5]))


def _missing(writer: Writer, cache: Path) -> list[str]:
    try:
        rows = writer.rows(cache)
    except NOTICED as error:
        return [f"a reader says: {error}"]
    items, features = made_shard(1)
    pairs = zip(items, features, strict=True)
    return [] if all(rows.get(i) == f.tobytes() for i, f in pairs) else ["rows are not there"]


def _replaced(folder: Path, again: bool) -> list[str]:
    content = (folder / "file").read_bytes()
    allowed = [b"new" * 5000] if again else [b"new" * 5000, b"old" * 5000]
    return [] if content in allowed else ["the file is neither old nor new"]


def _names(cache: Path) -> dict[Path, int]:
    """Everything that is there, the folder itself too, with the number of its inode."""
    paths = [cache, *cache.rglob("*")] if cache.exists() else []
    return {path: path.stat().st_ino for path in paths}


def _not_on_disk(log: Sequence[str], cache: Path, known: dict[Path, int]) -> list[str]:
    """New files whose bytes, and new names whose folders, no successful fsync has covered."""
    synced: set[str] = set()
    covered: set[str] = set()  # names whose folder was synced after they were given
    given: list[tuple[str, str]] = []  # (folder, name), not covered yet
    for line in log:
        if not re.search(r"\) += \d", line):
            continue
        call, paths = line.split("(")[0], re.findall(r'"([^"]+)"', line)
        if call in ("fsync", "fdatasync"):
            path = re.findall(r"<(.+?)>\)", line)[0]
            synced.add(path)
            covered |= {name for folder, name in given if folder == path}
        elif call.startswith(("link", "rename")):
            if call.startswith("rename"):  # what lies in a renamed folder goes with it
                covered |= {n.replace(paths[0], paths[1], 1) for n in covered}
                synced |= {n.replace(paths[0], paths[1], 1) for n in synced}
            if paths[0] in synced:
                synced.add(paths[1])
            given.append((str(Path(paths[1]).parent), paths[1]))
        elif call.startswith("mkdir") or (call == "openat" and "O_CREAT" in line):
            given.append((str(Path(paths[0]).parent), paths[0]))
    found = []
    for path, inode in _names(cache).items():
        if known.get(path) == inode or path.name.startswith("."):
            continue
        if path.is_file() and str(path) not in synced:
            found.append(f"the bytes of {path.name} are not synced")
        if str(path) not in covered:
            found.append(f"the name {path.name} is not synced")
    return found


def _synced_again(log: Sequence[str]) -> list[str]:
    """What was done with a file after its fsync had failed, beside discarding it."""
    found = []
    for place, line in enumerate(log):
        if line.startswith("fsync(") and "EIO" in line:
            path = re.findall(r"<(.+?)>\)", line)[0]
            for later in log[place + 1 :]:
                if re.match(r"(fsync|fdatasync|link|linkat|rename|renameat2?)\(", later) and (
                    f"<{path}>" in later or f'"{path}"' in later
                ):
                    found.append(f"after its fsync failed: {later[:80]}")
    return found
