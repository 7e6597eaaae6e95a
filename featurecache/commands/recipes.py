"""Commands that run several other commands."""

from __future__ import annotations

import shlex
from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import OUTPUT, open_data, options
from featurecache.commands.progress import open_progress
from featurecache.commands.setting_options import setting


@click.command()
@click.argument("recipe")
@click.option(
    "--data",
    multiple=True,
    callback=open_data,
    metavar="DIR|CSV|digits",
    help="Overrides the dataset in the recipe. Repeatable: several are joined.",
)
@click.option("--cache", metavar="DIR", help="Overrides the cache in the recipe.")
@click.option("--runs", metavar="DIR", help="Overrides the folder for runs in the recipe.")
@options("engine", "workers", "device", "allow_failed", *OUTPUT)
def run(as_json: bool, quiet: bool, allow_failed: bool, **arguments: Any) -> int:
    """Run the steps of RECIPE, and print one table.

    Finished work is not repeated.
    """
    from featurecache.stages.recipes.recipe_file import read_recipe
    from featurecache.stages.recipes.run import run

    for key in {"data", "cache", "runs"} - read_recipe(arguments["recipe"]).file.model_fields_set:
        arguments[key] = arguments[key] or setting(key)
    result = run(**arguments, progress=open_progress(quiet))
    if as_json:
        printing.print_json(result)
    else:
        for name, sweep in result.trials.items():
            printing.trials(sweep["trials"], sweep["winner"], f"{name}: ")
        terminal.table(result.table, result.recipe)
        terminal.table(result.gains, "gains, seed by seed")
        printing.lines(result.notes)
        click.echo(f"{result.computed:,} rows computed, {result.hits:,} held; {result.seconds} s")
    return printing.failed(result.failed, allow_failed)


_OWN_IMAGES = """then with your own images, a folder per class:
  featurecache featurize --data photos --backbone efficientnet_lite0 --view none --view mild_1
  featurecache train-head --data photos"""


@click.command()
@options("cache", "workers", "runs", *OUTPUT)
def quickstart(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Try everything on scikit-learn's digits, offline.

    It takes a minute or two.
    """
    from featurecache.stages.recipes.quickstart import quickstart

    result = quickstart(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    printing.candidates(result.candidates, result.chosen)
    rows = [{"head": "the chosen one", "top1": row["none"]} for row in result.table]
    if result.baseline is not None:
        rows.append({"head": "logistic regression", "top1": result.baseline["top1"]})
    terminal.table(rows, "validation")
    click.echo(f"{result.computed:,} rows computed, {result.hits:,} held; {result.seconds} s")
    click.echo(f"next: featurecache report {shlex.quote(str(result.table[0]['run']))}")
    click.echo(_OWN_IMAGES)
