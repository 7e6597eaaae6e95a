"""Commands that show datasets, policies, backbones, this machine, and runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from featurecache.byte_sizes import size_text
from featurecache.commands import printing, terminal
from featurecache.commands.options import OUTPUT, options, run_argument
from featurecache.commands.progress import open_progress
from featurecache.commands.setting_options import setting
from featurecache.text import counted


@click.command()
@options("data", *OUTPUT)
def inspect(data: str, as_json: bool, quiet: bool) -> None:
    """Count images per split and class, and find unreadable files."""
    from featurecache.stages.looking.inspect import inspect

    result = inspect(data, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    splits = [
        {"split": name, "images": s.images, "labelled": s.labelled, "classes": s.classes}
        for name, s in result.splits.items()
    ]
    terminal.table(splits, f"{result.root}: {result.layout}")
    per_class = [
        {
            "class": name,
            **({"name": result.words.get(name, "")} if result.words else {}),
            **{s: v.counts.get(name, 0) for s, v in result.splits.items()},
        }
        for name in next(iter(result.splits.values())).counts
    ]
    terminal.table(per_class)
    if result.sizes:
        s = result.sizes
        click.echo(
            f"sizes: {s.width_min}-{s.width_max} x {s.height_min}-{s.height_max}, most common "
            f"{s.common[0]}x{s.common[1]} ({s.common_count:,}); {size_text(result.bytes)}; "
            f"{counted(result.duplicates, 'duplicate')}"
        )
    terminal.table([dataclasses.asdict(row) for row in result.unreadable], "unreadable")
    click.echo(f"unreadable files: {len(result.unreadable)}")
    printing.lines(f"note: {note}" for note in result.notes)


@click.group(invoke_without_command=True)
@options("json", "debug")
@click.pass_context
def policies(context: click.Context, as_json: bool) -> None:
    """List the augmentation policies, print one, or draw it."""
    from featurecache.stages.looking.policies import policies

    if context.invoked_subcommand is None:
        printing.print_json(policies()) if as_json else terminal.table(policies())


@policies.command()
@click.argument("name")
@options("debug")
def show(name: str) -> None:
    """Print the YAML of policy NAME."""
    from featurecache.stages.looking.policies import show

    click.echo(show(name), nl=False)


@policies.command()
@click.argument("name")
@options("data", "seed")
@click.option("--out", default="sheet.png", metavar="FILE", help="The picture to write.")
@click.option("--images", default=8, help="Rows of the sheet.")
@click.option("--draws", default=5, help="Draws beside each original.")
@options("json", "debug")
def preview(as_json: bool, **arguments: Any) -> None:
    """Draw a contact sheet of policy NAME: originals beside draws."""
    from featurecache.stages.looking.policies import preview

    result = preview(**arguments)
    if as_json:
        return printing.print_json(result)
    click.echo(f"{result.path}: {result.images} images, each beside draws 1-{result.draws}")


MAX_FOUND = 20  # rows of a search that the table shows


@click.command()
@click.argument("word", required=False)
@click.option("--layers", metavar="NAME", help="List the layers of a network instead.")
@options("json", "debug")
def backbones(as_json: bool, word: str | None, layers: str | None) -> None:
    """List the named backbones, or timm's networks named like WORD."""
    from featurecache.stages.looking.backbones import backbones

    rows = backbones(layers, search=word)
    if as_json:
        return printing.print_json(rows)
    if layers is not None:
        return terminal.table(rows)
    table = [
        {
            "name": row["name"],
            "dim": row["dim"],
            "input": row["input_size"],
            "parameters": f"{row['parameters'] / 1e6:,.1f}M" if row["parameters"] else "",
            "licence": row["licence"],
            **({"weights": row["weights"]} if word is None else {}),  # of a search, all the hub's
            "state": row["state"],
        }
        for row in rows[:MAX_FOUND]
    ]
    terminal.table(table)
    if word is None:
        click.echo(
            "Other networks of timm are used by their timm name (`featurecache backbones WORD` "
            "searches them), those of the hub as hf-hub:OWNER/NAME, and your own as MODULE:FACTORY."
        )
    elif len(rows) > MAX_FOUND:
        click.echo(f"{MAX_FOUND} of {len(rows):,} networks are shown; use a longer word, or --json")


@click.command()
@options("cache", "json", "debug")
def doctor(cache: str, as_json: bool) -> int:
    """Check device, engines, weights, libraries, and a known image."""
    from featurecache.stages.looking.doctor import doctor

    checks = doctor(cache)
    if as_json:
        printing.print_json(checks)
    else:
        terminal.table([{**dataclasses.asdict(c), "ok": "ok" if c.ok else "BAD"} for c in checks])
    return 0 if all(check.ok for check in checks) else 1


@click.command("runs")
@click.argument("folder", required=False)
@click.option(
    "--sort", default="top1", metavar="NAME", help="top1, loss, started, seconds, rows or run."
)
@options("json", "debug")
def list_runs(folder: str | None, sort: str, as_json: bool) -> None:
    """List runs with their validation results, best first.

    Those below FOLDER; without it, below `runs` or the folder of the settings.
    """
    from featurecache.stages.looking.runs import list_runs

    folder = folder or setting("runs") or "runs"
    rows = list_runs(folder, sort=sort)
    if as_json:
        return printing.print_json(rows)
    readable = [row for row in rows if row.error is None]

    def is_unfinished(row: Any) -> bool:  # a generator has no top-1
        return row.top1 is None and row.seconds is None

    has_unfinished = any(is_unfinished(row) for row in readable)
    table = [
        {
            "run": row.run,
            "top1": row.top1,
            "loss": row.loss,
            "validated on": row.validation,
            "rows": row.rows,
            "backbone": " + ".join(row.backbone),
            "views": " + ".join(row.views),
            "started": terminal.minute(row.started),
            **({"": "unfinished" if is_unfinished(row) else ""} if has_unfinished else {}),
        }
        for row in readable
    ]
    terminal.table(table)
    for row in rows:
        if row.error is not None:
            click.echo(terminal.printable(row.error))
    if not rows:
        click.echo(terminal.printable(f"{folder} has no runs"))


@click.command()
@run_argument("runs", nargs=-1, required=True)
@options("run_data", "run_cache")
@click.option("--out", default="report.html", metavar="FILE", help="The page to write.")
@options("run_split", "view", "run_seed")
@click.option("--study", metavar="DIR", help="A folder of `featurecache study` to include.")
@click.option("--pictures", default=500, help="Maximum number of misclassified images.")
@options(*OUTPUT)
def report(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Write the results of RUNS to one HTML file.

    The file opens without a connection to the internet.
    """
    from featurecache.stages.looking.report import report

    result = report(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    printing.lines([result.verdict, *result.notes])
    click.echo(
        f"{terminal.printable(result.path)}: {size_text(result.bytes)}, {result.shown:,} of "
        f"{result.wrong:,} misclassified images shown; {result.seconds} s"
    )
