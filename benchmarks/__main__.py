"""Run rows, print them, and write them into docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import click

from benchmarks import harness
from benchmarks.report import STORE, read_results, result_of, section, write_results
from benchmarks.rows import ROWS

DATA = Path(__file__).parents[1] / "data" / "tiny-imagenet-200-mini"


@click.command()
@click.argument("names", nargs=-1, metavar="[ROW]...")
@click.option("--repeats", type=int, help="Timed runs of each side.  [default: 5; --small: 1]")
@click.option("--small", is_flag=True, help="Tiny sizes, on generated images; no page.")
@click.option("--list", "only_list", is_flag=True, help="Name the rows, and what they must reach.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="FEATURECACHE_BENCH_DATA",
    help=f"Tiny ImageNet or a part of it, in its own layout.  [default: data/{DATA.name}]",
)
@click.option("--gpu", is_flag=True, help="All rows of a CUDA device, and no others.")
@click.option("--full", is_flag=True, help="Row `paper` on every image, not on five a class.")
@click.option("--no-page", is_flag=True, help="Print only.")
def main(
    names: tuple[str, ...],
    repeats: int | None,
    small: bool,
    only_list: bool,
    data: Path | None,
    gpu: bool,
    full: bool,
    no_page: bool,
) -> None:
    """Measure rows (all by default), and put them into docs/benchmarks.md; other rows stay."""
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}; see --list")
    setting = harness.Setting(
        Path(),
        small,
        repeats or (1 if small else 5),
        data or (DATA if DATA.is_dir() else None),
        full,
    )
    disagreed = False
    for row in ROWS:
        if (names or gpu) and row.name not in names and not (gpu and row.needs == "cuda"):
            continue
        if only_list:
            reach = "; ".join(f"{t.case}: {t}" if t.case else str(t) for t in row.targets)
            click.echo(f"{row.name:16} {row.title}" + (f" ({reach})" if reach else ""))
            continue
        results = read_results()
        if lack := row.lacks(setting):
            click.echo(f"--- {row.name}: not measured, {lack}\n")
            results.setdefault(row.name, {"lacks": lack})
        else:
            start = time.perf_counter()
            with (
                tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
                harness.own_memos(Path(folder) / "memos"),
            ):
                cases = row.run(dataclasses.replace(setting, folder=Path(folder)))
            result = result_of(row, cases, setting.repeats, time.perf_counter() - start)
            click.echo(section(row, result) + "\n")
            results[row.name] = result
            disagreed = disagreed or not all(check.ok for case in cases for check in case.checks)
        if not (small or no_page):
            write_results(results)
    if not (only_list or small or no_page):
        click.echo(f"written: docs/benchmarks.md, {STORE.relative_to(STORE.parents[1])}")
    raise SystemExit(disagreed)


if __name__ == "__main__":
    main()
