"""Run the harnesses, print one table, and write it into docs/reliability.md."""

from __future__ import annotations

import importlib
import inspect
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.reliability.harness import Ours, Tally
from tests.naive import Naive

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"


@dataclass(frozen=True)
class Row:
    """One figure: which harness, and how often in the long and in the small run."""

    harness: str  # module.function of this package
    figure: str
    long: int
    small: int

    @property
    def name(self) -> str:
        return self.harness.rpartition(".")[2]

    @property
    def function(self) -> Callable[..., Tally]:
        module, _, name = self.harness.rpartition(".")
        return getattr(importlib.import_module(f"benchmarks.reliability.{module}"), name)

    @property
    def for_naive(self) -> bool:
        return "writer" in inspect.signature(self.function).parameters


ROWS = (
    Row("crashes.kills", "random kill -9 in featurize, augment, train-head; resume", 200, 8),
    Row("crashes.syscalls", "kill at every system call of one shard's commit", 1000, 12),
    Row("crashes.full_disk", "disk full at many offsets, of cache and run folder", 50, 4),
    Row("crashes.io_errors", "EIO on each write, fsync, link, rename…", 1000, 6),
    Row("damage.flips", "single bits flipped in shards and records", 10_000, 100),
    Row("damage.truncations", "files cut short", 500, 30),
    Row("sharing.resumes", "workers 0, 1, 2, 8 x three resume points x two engines", 24, 2),
    Row("sharing.processes", "8 processes fill one cache, under several host names", 50, 1),
    Row("keys.key_fields", "each field of the key changed / each field outside of it", 1, 1),
    Row("keys.configurations", "random configurations: cached rows = uncached", 1000, 10),
    Row("images.changing_sources", "an image edited, replaced or deleted while running", 60, 3),
    Row("images.bad_images", "a dataset with 5% bad images, in 20 ways", 10_000, 120),
    Row("images.bombs", "decompression bombs", 40, 10),
    Row("hostile.hostile_shards", "hostile HDF5 files and records", 100, 20),
    Row("hostile.hostile_files", "hostile .pth, YAML, CSV, class names, paths", 100, 20),
    Row("fuzz.coverage_guided", "coverage-guided fuzzing of every reader", 1_000_000, 2000),
    Row("crashes.signals", "SIGTERM and SIGINT", 60, 4),
    Row("crashes.stop_while_compiling", "SIGTERM while a large network is compiled", 2, 1),
    Row("crashes.clock_set_back", "the clock set back", 4, 1),
    Row("crashes.read_only", "a read-only cache", 1, 1),
    Row("crashes.leftovers", "temporary files left by the dead", 20, 2),
    Row("costs.commit_overhead", "committing: at most 2% of featurize's time", 4096, 1024),
    Row("costs.verify_speed", "verify: at least 80% of sha256sum's speed", 200, 20),
)  # fmt: skip


@click.command()
@click.option("--row", "names", multiple=True, type=click.Choice([row.name for row in ROWS]))
@click.option("--small", is_flag=True, help="The sizes of the test suite; the page stays as it is.")
@click.option("--size", type=int, help="Another number of trials; the page stays as it is.")
def main(names: tuple[str, ...], small: bool, size: int | None) -> None:
    """Try to break the cache, and count."""
    broken = False
    for row in ROWS:
        if names and row.name not in names:
            continue
        trials = size or (row.small if small else row.long)
        ours, seconds = _tried(row, trials, Ours())
        naive = _tried(row, trials, Naive())[0] if row.for_naive else None
        ok = ours.bad == 0 and (naive is None or naive.bad > 0)
        broken = broken or not ok
        click.echo(f"{'ok ' if ok else 'BAD'} {row.name}: {ours.said}  [{seconds:.0f} s]")
        for example in ours.examples if ours.bad else ():
            click.echo(f"      {example}")
        if naive is not None:
            click.echo(f"    naive: {naive.said}")
        if size is None and not small:
            _write(row, ours, naive, seconds)
    raise SystemExit(broken)


def _tried(row: Row, trials: int, writer: Any) -> tuple[Tally, float]:
    given = {"writer": writer} if row.for_naive else {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        tally = row.function(**given, size=trials, folder=Path(folder))
    return tally, time.perf_counter() - start


def _write(row: Row, ours: Tally, naive: Tally | None, seconds: float) -> None:
    """Put this row's line into the table of the page; the other lines stay."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "`" in line}
    naive_said = naive.said if naive else "n/a"
    met = "" if ours.bad == 0 else f"**{ours.bad} of {ours.tried} failed:** "
    lines[f"`{row.name}`"] = (
        f"| `{row.name}` | {row.figure} | {met}{ours.said} | {naive_said} | {seconds:.0f} |"
    )
    head = ["| row | tried | featurecache | the naive writer | s |", "|---|---|---|---|---|"]
    ordered = [lines[f"`{row.name}`"] for row in ROWS if f"`{row.name}`" in lines]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(head + ordered) + "\n" + END + after)


if __name__ == "__main__":
    main()
