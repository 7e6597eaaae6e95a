"""Run the harnesses, print one table, and write it into docs/reliability.md."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.page import DOCS, measured, write_measured
from benchmarks.reliability.harness import Ours, Tally
from benchmarks.reliability.rows import ROWS, Row
from tests.naive import Naive

PAGE = DOCS / "reliability.md"


@click.command()
@click.option("--row", "names", multiple=True, type=click.Choice([row.name for row in ROWS]))
@click.option("--small", is_flag=True, help="The sizes of the test suite; the page stays as it is.")
@click.option("--size", type=int, help="Another number of trials; the page stays as it is.")
def main(names: tuple[str, ...], small: bool, size: int | None) -> None:
    """Try to break the cache, and count."""
    os.environ["FEATURECACHE_MEMOS"] = "off"  # some rows replace parts of the code that they are of
    broken = False
    for row in ROWS:
        if names and row.name not in names:
            continue
        if lack := row.lacks():
            click.echo(f"--- {row.name}: not tried, {lack}")
            continue
        trials = size or (row.small if small else row.long)
        ours, seconds = _tried(row, trials, Ours())
        # A tenth is enough for one that fails, and it fails slowly.
        fewer = max(trials // 10, row.naive or row.small or 1)
        naive = _tried(row, fewer, Naive())[0] if row.for_naive else None
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
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        tally = row.run(writer, trials, Path(folder))
    return tally, time.perf_counter() - start


def _write(row: Row, ours: Tally, naive: Tally | None, seconds: float) -> None:
    """Put this row's line into the table of the page; the other lines stay."""
    table = measured(PAGE)
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "`" in line}
    naive_said = naive.said if naive else "n/a"
    met = "" if ours.bad == 0 else f"**{ours.bad} of {ours.tried} failed:** "
    lines[f"`{row.name}`"] = (
        f"| `{row.name}` | {row.figure} | {met}{ours.said} | {naive_said} | {seconds:.0f} |"
    )
    head = ["| row | tried | featurecache | the naive writer | s |", "|---|---|---|---|---|"]
    ordered = [lines[f"`{row.name}`"] for row in ROWS if f"`{row.name}`" in lines]
    write_measured(PAGE, "\n".join(head + ordered))


if __name__ == "__main__":
    main()
