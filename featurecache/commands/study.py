"""The studies: each writes pictures and their numbers into a folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from featurecache import terminal
from featurecache.commands import printing
from featurecache.options import options


@click.group()
def study() -> None:
    """Look at vectors, networks and policies: pictures, with the numbers beside them."""


@study.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--image", multiple=True, metavar="FILE", help="An image to look at. Repeatable.")
@click.option(
    "--images", type=int, default=4, show_default=True, help="Without --image: so many of a split."
)
@options("data", "split")
@click.option(
    "--method",
    default="gradient",
    show_default=True,
    metavar="NAME",
    help="gradient, smoothgrad or gradcam.",
)
@click.option("--class", "class_name", metavar="NAME", help="Of this class.  [default: predicted]")
@click.option(
    "--samples", type=int, default=25, show_default=True, help="Noisy copies, of smoothgrad."
)
@click.option(
    "--noise", type=float, default=0.15, show_default=True, help="Share of the span, of smoothgrad."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="Weights that vectors were made with: .safetensors or .pth. Repeatable.",
)
@click.option("--out", default="study", show_default=True, metavar="DIR", help="Where it goes.")
@options("json", "quiet", "debug")
def saliency(as_json: bool, quiet: bool, **given: Any) -> None:
    """Where the heads in RUNS look on images: maps of the class score, beside the boxes."""
    from featurecache.stages.saliency import study_saliency

    result = study_saliency(**given, progress=terminal.progress(quiet))
    if as_json:
        return printing.print_json(result)
    terminal.table(result.maps, f"{result.method}: share of the saliency inside the boxes")
    terminal.table(result.runs, "means over the images that have a box")
    _wrote(result.files)


@study.command()
@click.option("--backbone", required=True, metavar="NAME", help="The network.")
@options("weights")
@click.option("--most", type=int, default=256, show_default=True, help="Tiles shown of a layer.")
@click.option("--out", default="study", show_default=True, metavar="DIR", help="Where it goes.")
@options("json", "debug")
def filters(as_json: bool, **given: Any) -> None:
    """The filters of a network's first and last convolution, as pictures."""
    from featurecache.stages.filters import study_filters

    result = study_filters(**given)
    if as_json:
        return printing.print_json(result)
    rows = [dataclasses.asdict(layer) for layer in result.layers]
    terminal.table(
        [row | {"shape": "x".join(map(str, row["shape"]))} for row in rows], result.backbone
    )
    for note in result.notes:
        click.echo(terminal.printable(note))
    _wrote(result.files)


def _wrote(files: list[str]) -> None:
    for file in files:
        click.echo(f"wrote {terminal.printable(file)}")
