"""Commands that fit generators and use them."""

from __future__ import annotations

from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import options
from featurecache.commands.progress import open_progress


@click.command("fit-generator")
@click.option(
    "--config", required=True, metavar="FILE", help="The generator and its training: a YAML file."
)
@options("data", "cache")
@click.option("--out", metavar="DIR", help="The run folder.  [default: RUNS/CONFIG-HASH]")
@options("runs")
@click.option("--seed", type=int, help="Overrides the seed in the configuration.")
@options("device", "workers", "json", "quiet", "debug")
def fit_generator(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Fit a network that makes training data: a transform of images."""
    from featurecache.stages.generators.fit_generator import fit_generator

    result = fit_generator(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    rows = [
        {"": folder, **losses} for folder, losses in zip(result.folders, result.losses, strict=True)
    ]
    terminal.table(rows, "losses")
    for note in result.notes:
        click.echo(terminal.printable(note))
    click.echo(f"run: {result.run}")
