"""The studies: each writes pictures and their numbers into a folder."""

from __future__ import annotations

from typing import Any

import click

from featurecache import terminal
from featurecache.commands import printing
from featurecache.options import HELD, options


@click.group()
def study() -> None:
    """Look at vectors, networks and policies: pictures, with the numbers beside them."""


OUT = click.option(
    "--out", default="study", show_default=True, metavar="DIR", help="The folder to write into."
)
BACKBONE = click.option("--backbone", default="", metavar="NAME", help="Whose vectors.")
SPLIT = click.option("--split", default="train", show_default=True, help="A labelled split.")


@study.command()
@BACKBONE
@options("data", "cache", "view")
@SPLIT
@click.option("--images", type=int, default=2000, show_default=True, help="Images at most.")
@click.option("--pixels", type=int, default=64, show_default=True, help="Pixels a side, of images.")
@OUT
@options("seed", *HELD, "json", "quiet", "debug")
def pca(as_json: bool, quiet: bool, **given: Any) -> None:
    """How many components keep the variance of pixels, and with --backbone of vectors."""
    from featurecache.stages.pca import study_pca

    _print(study_pca(**_given(given), progress=terminal.progress(quiet)), as_json)


@study.command()
@BACKBONE
@click.option("--classes", multiple=True, metavar="NAME", help="A class. Repeatable.")
@click.option("--count", type=int, default=5, show_default=True, help="Classes to draw instead.")
@options("data", "cache", "view")
@SPLIT
@click.option("--images", type=int, default=500, show_default=True, help="Images at most.")
@click.option("--method", default="tsne", show_default=True, help="tsne or umap.")
@click.option(
    "--perplexity", type=float, default=30.0, show_default=True, help="Neighbours that count."
)
@OUT
@options("seed", *HELD, "json", "quiet", "debug")
def tsne(as_json: bool, quiet: bool, **given: Any) -> None:
    """Vectors of some classes in two dimensions, with their images."""
    from featurecache.stages.tsne import study_tsne

    _print(study_tsne(**_given(given), progress=terminal.progress(quiet)), as_json)


@study.command()
@BACKBONE
@options("policy", "data", "cache")
@SPLIT
@click.option("--images", type=int, default=2000, show_default=True, help="Images at most.")
@click.option("--neighbours", type=int, default=10, show_default=True, help="Nearest that vote.")
@OUT
@options("seed", *HELD, "json", "quiet", "debug")
def drift(as_json: bool, quiet: bool, **given: Any) -> None:
    """How far views move vectors, and the images that they break most."""
    from featurecache.stages.drift import study_drift

    _print(study_drift(**_given(given), progress=terminal.progress(quiet)), as_json)


@study.command()
@click.argument("image")
@BACKBONE
@options("data", "cache")
@click.option("--split", help="One split.  [default: all that are labelled]")
@click.option("--count", type=int, default=8, show_default=True, help="Neighbours to show.")
@OUT
@options("weights", "engine", *HELD, "json", "quiet", "debug")
def neighbours(as_json: bool, quiet: bool, **given: Any) -> None:
    """The cached images whose vectors are nearest to that of IMAGE."""
    from featurecache.stages.neighbours import study_neighbours

    _print(study_neighbours(**_given(given), progress=terminal.progress(quiet)), as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Without the settings of vectors that were not given."""
    held = ("input_size", "crop", "interpolation", "layer", "pooling", "precision")
    return {k: v for k, v in options.items() if k not in held or v is not None}


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        return printing.print_json(result)
    rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in result.table]
    terminal.table(rows, f"{result.study}, {result.n:,} images")
    for note in result.notes:
        click.echo(terminal.printable(note))
    for file in result.files:
        click.echo(terminal.printable(file))
