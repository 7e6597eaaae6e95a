"""Commands that do the work of several."""

from __future__ import annotations

import shlex
from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import options


@click.command()
@click.argument("recipe")
@click.option("--data", metavar="DIR|CSV|digits", help="Stands in for the recipe's dataset.")
@click.option("--cache", metavar="DIR", help="Stands in for the recipe's cache.")
@click.option("--runs", metavar="DIR", help="Stands in for the recipe's folder of runs.")
@options("engine", "workers", "device", "allow_failed", "json", "quiet", "debug")
def run(as_json: bool, quiet: bool, allow_failed: bool, **given: Any) -> int:
    """Do the steps of RECIPE, but for what is done already, and print one table."""
    from featurecache.stages.recipes.run import run

    result = run(**given, progress=terminal.progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        for name, of in result.trials.items():
            printing.trials(of["trials"], of["winner"], f"{name}: ")
        terminal.table(result.table, result.recipe)
        for note in result.notes:
            click.echo(terminal.printable(note))
        click.echo(f"{result.computed:,} rows computed, {result.hits:,} held; {result.seconds} s")
    return printing.failed(result.failed, allow_failed)


@click.command()
@options("cache", "workers", "runs", "json", "quiet", "debug")
def quickstart(as_json: bool, quiet: bool, **given: Any) -> None:
    """The whole product on scikit-learn's digits, offline, in a minute or two."""
    from featurecache.stages.recipes.quickstart import quickstart

    result = quickstart(**given, progress=terminal.progress(quiet))
    if as_json:
        return printing.print_json(result)
    terminal.table(result.table, "top-1 on val, seen through each view")
    click.echo(f"{result.computed:,} rows computed, {result.hits:,} held; {result.seconds} s")
    runs = shlex.join(str(row["run"]) for row in result.table)
    where = shlex.join(["--data", "digits", "--cache", str(given["cache"])])
    click.echo(f"to look at: featurecache report {runs} {where}")
