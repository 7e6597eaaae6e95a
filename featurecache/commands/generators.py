"""Commands that fit generators and use them."""

from __future__ import annotations

from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import OUTPUT, options
from featurecache.commands.progress import open_progress
from featurecache.commands.setting_options import setting
from featurecache.text import counted


@click.command("fit-generator")
@click.option(
    "--config", required=True, metavar="FILE", help="The generator and its training: a YAML file."
)
@options("data", "cache")
@click.option("--out", metavar="DIR", help="The run folder.  [default: RUNS/CONFIG-HASH]")
@options("runs", "config_seed", "device", "workers", *OUTPUT)
def fit_generator(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Fit a network that makes training data, on the training images (docs/generators.md)."""
    from featurecache.stages.generators.fit_generator import fit_generator

    result = fit_generator(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    rows = [
        {"": folder, **losses} for folder, losses in zip(result.folders, result.losses, strict=True)
    ]
    if any(result.losses):
        terminal.table(rows, "losses")
    printing.lines(result.notes)
    click.echo(f"run: {result.run}")


@click.command()
@click.option(
    "--generator", required=True, metavar="RUN", help="A run of fit-generator, or one of its folds."
)
@click.option("--per-class", default=500, metavar="N", help="Images per class.")
@click.option("--out", required=True, metavar="DIR", help="The new folder of the dataset.")
@options("workers", *OUTPUT)
def generate(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Write a dataset of images that a generator makes."""
    from featurecache.stages.generators.generate import generate

    runs = setting("runs") or "runs"
    result = generate(**arguments, runs=runs, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    click.echo(
        f"{counted(result.images, 'image')} of "
        f"{'1 class' if result.classes == 1 else f'{result.classes:,} classes'} in "
        f"{counted(result.shards, 'shard')}: {result.out}"
    )
