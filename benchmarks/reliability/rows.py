"""The rows of the table: which harness, what it tries, how often, and what it needs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.harness import Tally, Writer


@dataclass(frozen=True)
class Row:
    """One figure. `long`, `small` and `naive` are numbers of trials: of the table, of the test
    suite (0: too slow, or too dependent on the machine), and of the naive writer in the test suite
    (0: as many as ours)."""

    harness: str  # module.function of this package
    figure: str
    long: int
    small: int
    naive: int = 0
    needs: str = ""  # strace, mount or atheris

    @property
    def name(self) -> str:
        return self.harness.rpartition(".")[2]

    @property
    def for_naive(self) -> bool:
        """Is there anything in it that the naive writer could do?"""
        return "writer" in inspect.signature(self._function).parameters

    @property
    def _function(self) -> Callable[..., Tally]:
        module, _, name = self.harness.rpartition(".")
        function: Callable[..., Tally] = getattr(
            importlib.import_module(f"benchmarks.reliability.{module}"), name
        )
        return function

    def run(self, writer: Writer, size: int, folder: Path) -> Tally:
        given = {"writer": writer} if self.for_naive else {}
        return self._function(**given, size=size, folder=folder)

    def lacks(self) -> str | None:
        """Why this row can't be tried on this machine; None if it can."""
        if self.needs == "strace" and not shutil.which("strace"):
            return "strace is not installed"
        if self.needs == "atheris" and importlib.util.find_spec("atheris") is None:
            return "atheris is not installed (pip install 'featurecache[fuzz]')"
        if self.needs == "mount":
            if os.geteuid() != 0:
                return "mounting a small disk needs root"
            words = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
            if subprocess.run(words, capture_output=True, check=False).returncode:
                return "mount is not allowed here"
        return None


ROWS = (
    Row("crashes.kills", "random kill -9 in featurize, augment, train-head; resume", 200, 4, 2),
    Row("network_kills.network_kills", "random kill -9 in train-network; resume", 20, 1),
    Row("generator_kills.generator_kills", "random kill -9 in fit-generator, kind by kind", 10, 0),
    Row("commits.syscalls", "kill at every system call of a commit", 1000, 16, 12, "strace"),
    Row("crashes.full_disk", "disk full at many offsets, cache and run folder", 50, 3, 2, "mount"),
    Row("commits.io_errors", "EIO on each write, fsync, link, rename…", 1000, 12, 3, "strace"),
    Row("damage.flips", "single bits flipped in shards and records", 10_000, 60, 30),
    Row("damage.truncations", "files cut short", 500, 60, 30),
    Row("sharing.resumes", "workers 0, 1, 2, 8 x three resume points x two engines", 24, 1),
    Row("sharing.processes", "8 processes fill one cache, under several host names", 50, 1),
    Row("keys.key_fields", "each field of the key changed / each field outside of it", 1, 1),
    Row("configurations.configurations", "random configurations: cached rows = uncached", 1000, 10),
    Row("changing_sources.changing_sources", "an image edited, replaced or deleted while running",
        60, 2),
    Row("bad_images.bad_images", "a dataset with 5% bad images, in 20 ways", 10_000, 60),
    Row("bombs.bombs", "decompression bombs", 70, 1),
    Row("hostile_shards.hostile_shards", "hostile HDF5 files and records", 150, 8, 13),
    Row("hostile_files.hostile_files", "hostile .pth, YAML, CSV, class names, paths", 150, 10),
    Row("fuzz.coverage_guided", "coverage-guided fuzzing of readers", 10**6, 0, 0, "atheris"),
    Row("stops.signals", "SIGTERM and SIGINT", 60, 4),
    Row("stops.stop_while_compiling", "SIGTERM while a large network is compiled", 3, 0),
    Row("stops.clock_set_back", "the clock set back", 10, 2),
    Row("stops.read_only", "a read-only cache", 1, 1, 0, "mount"),
    Row("stops.leftovers", "temporary files left by the dead", 30, 3),
    Row("costs.commit_overhead", "committing: at most 2% of featurize's time", 4096, 0),
    Row("costs.verify_speed", "verify: at least 80% of sha256sum's speed", 200, 0),
)  # fmt: skip
