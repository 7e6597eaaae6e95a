"""Commands that train networks."""

from __future__ import annotations

from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import CLUSTER, OUTPUT, options
from featurecache.commands.progress import open_progress


@click.command("train-network")
@click.option(
    "--config", required=True, metavar="FILE", help="The network and its training: a YAML file."
)
@options("data", "cache")
@click.option("--out", metavar="DIR", help="The run folder.  [default: RUNS/CONFIG-HASH]")
@options("runs", "config_seed", "device", "workers", *CLUSTER, *OUTPUT)
def train_network(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Train a network on pictures of views, or its last layers on cached maps."""
    from featurecache.stages.networks.train_network import train_network

    result = train_network(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    printing.trials(result.trials, result.winner)
    rows = [{"": name, **getattr(result, name)} for name in ("best", "last")]
    terminal.table(rows, "validation")
    printing.lines(result.notes)
    click.echo(f"run: {result.run}")
