"""What the harnesses share: what they count, whom they try, and real processes that start fast."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from featurecache.features.store import Cache
from tests.keys import vector_key


@dataclass(frozen=True)
class Tally:
    """What a harness saw of one writer: `bad` of `tried` trials broke the promise.

    `said` is one clause for the table; `examples` are the first few bad trials.
    """

    tried: int
    bad: int
    said: str
    examples: tuple[str, ...] = ()


class Writer(Protocol):
    """A way to keep vectors on a disk: ours, or the naive one."""

    name: str

    def commit(self, cache: Path, items: Sequence[bytes], features: np.ndarray) -> None:
        """Keep one shard: (N, D) float32 beside N items of 32 bytes."""

    def rows(self, cache: Path) -> dict[bytes, bytes]:
        """Every row, item -> the vector's bytes, as this writer's own reader gives it. Raises
        (FeatureCacheError, OSError) where that reader notices that something is wrong."""

    def main(self) -> None:
        """The command line, with the arguments in sys.argv; leaves by SystemExit."""


# The key of the one space that `Ours.commit` writes: any key will do.
KEY = vector_key()


class Ours:
    """The store and the command line of featurecache."""

    name = "ours"

    def commit(self, cache: Path, items: Sequence[bytes], features: np.ndarray) -> None:
        opened = Cache(cache)
        opened.create()
        opened.space(KEY, "none", "made").commit(items, {"features": features}, {}, {}, 0.0)

    def rows(self, cache: Path) -> dict[bytes, bytes]:
        found = {}
        for space in Cache(cache).spaces():
            items = list(space.rows)
            vectors, _ = space.vectors(items)
            found |= {item: row.tobytes() for item, row in zip(items, vectors, strict=True)}
        return found

    def main(self) -> None:
        from featurecache.cli import main

        main()


def made_shard(number: int, rows: int = 16, dim: int = 32) -> tuple[list[bytes], np.ndarray]:
    """Items and vectors of a shard that no network made; the same number gives the same ones."""
    rng = np.random.default_rng(number)
    return [rng.bytes(32) for _ in range(rows)], rng.standard_normal((rows, dim), np.float32)


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` noisy pictures of 12x12 in the class folders cat, dog, owl of train/ and val/."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        inside = (
            folder / ("val" if number % 4 == 3 else "train") / ("cat", "dog", "owl")[number % 3]
        )
        inside.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(inside / f"{number:05}.png")
    return folder


class Process:
    """One command in a real process: `featurecache ARGUMENTS…` by a writer's own main()."""

    def __init__(
        self,
        writer: Writer,
        arguments: Sequence[object],
        output: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        words = [str(a) for a in arguments]
        self.output = output  # stdout and stderr, together
        self._process = _forks().Process(target=_child, args=(writer, words, output, before))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 600.0) -> int | None:
        """The exit code, minus the number of the signal that killed it, or None while it runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def run(writer: Writer, arguments: Sequence[object], output: Path) -> tuple[int | None, str]:
    """Run a command to its end: its exit code (None: it hung and was killed) and what it said."""
    process = Process(writer, arguments, output)
    code = process.wait()
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    return code, process.text()


def _forks() -> Any:
    """Processes forked from a server that has imported the heavy packages once: each new
    process would spend five seconds on imports, and there are thousands of starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.reliability.preload"])
    return context


def _child(
    writer: Writer, arguments: Sequence[str], output: Path, before: Callable[[], None] | None
) -> None:
    import torch

    torch.set_num_threads(1)  # pictures are tiny, and several processes share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["featurecache", *arguments]
    # Workers that this process spawns would import the benchmark again as their main module.
    sys.modules["__main__"] = types.ModuleType("__main__")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before is not None:
        before()
    try:
        writer.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own of `size` (as mount says it: 64k), at `folder`. Needs root."""
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
