"""What the cases of hostile files share: what they start from, and what is watched meanwhile.

Whatever a file says, a command reads and writes nothing outside of what it was given, runs no code
of it, ends in time and in bounded memory, and says what is wrong on one line.

Reads are seen with inotify: a file with a secret is watched, whoever opens it, HDF5's C too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.reliability.harness import Ours, Process, Writer, run, write_images
from featurecache.commands import terminal

Case = TypeVar("Case")

SECRET = b"a secret that no command may read, nor show "
MEMORY = 3 << 30  # bytes of address space that a command may take beyond what it starts with
SECONDS = 30.0
SCHEDULE = """\
backbone: efficientnet_lite0
head: {hidden: [8]}
batch_size: 16
validation: {split: val}
phases: [{views: none, epochs: 2}]
"""
TINY = ("--backbone", "efficientnet_lite0", "--input-size", 32, "--engine", "torch-cpu",
        "--workers", 0, "--shard-rows", 8, "--quiet")  # fmt: skip


class Watch:
    """Tells whether a file was opened, read or changed, or a folder changed, since it was asked."""

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        opened_or_changed = 0x1 | 0x2 | 0x4 | 0x20 | 0x100 | 0x200 | 0x400 | 0x800
        for path in paths:
            if libc.inotify_add_watch(self._descriptor, os.fsencode(path), opened_or_changed) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))

    def seen(self) -> bool:
        found = False
        with contextlib.suppress(BlockingIOError):  # nothing more to be told
            while os.read(self._descriptor, 65536):
                found = True
        return found

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Ground:
    """What every case starts from: pictures, a cache of them, a trained run, and what lies outside
    of all of them. `said` is where the output of a process goes."""

    folder: Path
    data: Path
    cache: Path
    run: Path
    outside: Path
    secret: Path
    sentinel: Path  # is there only if code of a file was run
    schedule: Path
    said: Path
    kept: dict[str, bytes] = field(default_factory=dict)  # the files outside, by name

    def harm(self, watch: Watch, text: str) -> list[str]:
        """What was done outside, or told of it."""
        wrong = []
        if watch.seen():
            wrong.append("a file outside was opened")
        if self.sentinel.exists():
            self.sentinel.unlink()
            wrong.append("code was run")
        if files_in(self.outside) != self.kept:
            wrong.append("files outside are not what they were")
            for name, content in self.kept.items():
                (self.outside / name).write_bytes(content)
        if SECRET.decode() in text:
            wrong.append("a secret was shown")
        return wrong


def files_in(folder: Path) -> dict[str, bytes]:
    """The regular files in a folder, but the ones that are all holes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_symlink() and path.is_file() and path.stat().st_size < 1 << 28
    }


def make_ground(folder: Path) -> Ground:
    data = write_images(folder / "data", 24)
    outside = folder / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_bytes(SECRET * 4096)
    (outside / ".precious.0123.tmp").write_bytes(b"not ours")
    (outside / f"{'a' * 64}-{'b' * 16}.h5").write_bytes(b"not ours")
    schedule = folder / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    ground = Ground(folder, data, folder / "cache", folder / "run", outside, secret,
                    folder / "sentinel", schedule, folder / "said")  # fmt: skip
    for words in (
        ["featurize", "--data", data, "--cache", ground.cache, *TINY],
        ["train-head", "--data", data, "--cache", ground.cache, "--schedule", schedule, "--out",
         ground.run, "--device", "cpu", "--quiet"],
    ):  # fmt: skip
        code, text = run(Ours(), words, ground.said)
        if code != 0:
            raise RuntimeError(f"undisturbed, {words[0]} gave {code}: {text}")
    ground.kept = files_in(outside)
    return ground


def choose_cases(cases: Sequence[Case], size: int) -> list[Case]:
    """`size` of the cases, evenly spread over them; more than there are by going round again."""
    places = np.linspace(0, len(cases) - 1, min(size, len(cases))).astype(int)
    chosen = [cases[place] for place in places]
    return chosen + [cases[number % len(cases)] for number in range(size - len(chosen))]


def bound_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


def run_bounded(
    writer: Writer, words: Sequence[object], output: Path, where: Path | None = None
) -> tuple[int | None, str]:
    """Run a command in bounded memory and time; the exit code, None if it hung."""
    before = bound_memory if where is None else functools.partial(_bounded_in, where)
    process = Process(writer, words, output, before)
    code = process.wait(SECONDS)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    return code, process.text()


def _bounded_in(where: Path) -> None:
    os.chdir(where)
    bound_memory()


def unclear(code: int | None, text: str, codes: Sequence[int]) -> list[str]:
    """What is wrong with how a command ended: it must be in one of these codes, and where it is 1
    or 2 it must have said why on one printable line."""
    if code is None:
        return ["it hung"]
    lines = text.split("\n")[:-1]
    wrong = []
    if code not in codes:
        wrong.append(f"exit code {code}: {text[-300:]!r}")
    elif "Traceback" in text:
        wrong.append(f"a traceback: {text[-300:]!r}")
    elif code in (1, 2) and not (len(lines) == 1 and lines[0].startswith("featurecache: ")):
        wrong.append(f"not one line: {text[-300:]!r}")
    if any(terminal.printable(line) != line for line in lines):
        wrong.append(f"what a terminal acts on was shown: {text[-300:]!r}")
    return wrong


DEEP = b"[" * 200_000
Change = Callable[[dict[str, Any]], None]


def set_fields(**fields: object) -> Change:
    return lambda record: record.update(fields)


# The bytes of a record, whatever they are.
RAW: dict[str, bytes] = {
    "deep lists": DEEP,
    "deep objects": b'{"a":' * 200_000,
    "numbers beyond any": b'{"format": 1e999, "size": 1e999}',
    "no numbers": b'{"format": NaN, "size": -Infinity}',
    "many digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "names given twice": b'{"format": 1, "format": 2, "checksum": "", "checksum": 1}',
    "lone surrogates": b'{"format": 1, "checksum": "\\ud800"}',
    "no JSON": b"\xff\xfe\0",
    "a list": b"[1, 2]\n",
    "nothing": b"",
}


def make_odd(path: Path, name: str, ground: Ground) -> None:
    if name == "pipe":
        os.mkfifo(path)
    elif name == "holes":
        with path.open("wb") as file:
            file.truncate(20 << 30)
    elif name == "folder":
        path.mkdir()
    else:
        targets: dict[str, Path | str] = {
            "endless": "/dev/zero",
            "secret": ground.secret,
            "itself": path.name,
        }
        path.symlink_to(targets[name])
