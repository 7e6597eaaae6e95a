"""The studies: each writes figures and their numbers into a folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import CACHED, backbone_option, options, run_argument
from featurecache.commands.progress import open_progress


@click.group()
def study() -> None:
    """Draw figures of vectors, networks and policies."""


OUT = click.option(
    "--out", default="study", show_default=True, metavar="DIR", help="The folder to write into."
)
BACKBONE = backbone_option("The network whose vectors are studied.", default="")
SPLIT = click.option("--split", default="train", show_default=True, help="A labelled split.")


@study.command()
@click.option("--backbone", default="", metavar="NAME", help="Also study the vectors of NAME.")
@options("data", "cache", "view")
@SPLIT
@click.option(
    "--images", type=int, default=2000, show_default=True, help="Maximum number of images."
)
@click.option(
    "--pixels",
    type=int,
    default=64,
    show_default=True,
    help="Side of the scaled images, in pixels.",
)
@OUT
@options("seed", *CACHED, "json", "quiet", "debug")
def pca(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Count the components that retain the variance of pixels.

    With --backbone, also of vectors.
    """
    from featurecache.stages.studies.pca import study_pca

    _print(study_pca(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@BACKBONE
@click.option("--classes", multiple=True, metavar="NAME", help="A class. Repeatable.")
@click.option(
    "--count",
    type=int,
    default=5,
    show_default=True,
    help="Without --classes: number of classes to draw.",
)
@options("data", "cache", "view")
@SPLIT
@click.option(
    "--images", type=int, default=500, show_default=True, help="Maximum number of images."
)
@click.option("--method", default="tsne", show_default=True, help="tsne or umap.")
@click.option(
    "--perplexity",
    type=float,
    default=30.0,
    show_default=True,
    help="Effective number of neighbours.",
)
@OUT
@options("seed")
@click.option(
    "--sampling-seed", type=int, default=0, show_default=True, help="Seed of the draw of classes."
)
@click.option(
    "--embedding-seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of UMAP. (t-SNE starts from the components.)",
)
@options(*CACHED, "json", "quiet", "debug")
def tsne(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Embed the vectors of some classes in two dimensions."""
    from featurecache.stages.studies.tsne import study_tsne

    _print(study_tsne(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@BACKBONE
@options("policy_or_cached", "data", "cache")
@SPLIT
@click.option(
    "--images", type=int, default=2000, show_default=True, help="Maximum number of images."
)
@click.option(
    "--neighbours",
    type=int,
    default=10,
    show_default=True,
    help="Number of nearest neighbours that vote.",
)
@OUT
@options("seed", *CACHED, "json", "quiet", "debug")
def drift(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Measure how far views move vectors, and which images break."""
    from featurecache.stages.studies.drift import study_drift

    _print(study_drift(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@click.argument("target")
@BACKBONE
@click.option(
    "--reference",
    default="none",
    show_default=True,
    metavar="NAME_N",
    help="The view of the real images to compare with.",
)
@options("data", "cache")
@SPLIT
@click.option(
    "--images", type=int, default=5000, show_default=True, help="Maximum number of images per set."
)
@click.option(
    "--neighbours",
    type=int,
    default=5,
    show_default=True,
    help="Number of nearest neighbours that the ball around a vector contains.",
)
@OUT
@options("seed", *CACHED, "json", "quiet", "debug")
def realism(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Measure how realistic a view or generated images are.

    The images of a view, or of a dataset of generated images, are compared with real ones.
    """
    from featurecache.stages.studies.realism import study_realism

    _print(study_realism(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@click.argument("image")
@BACKBONE
@options("data", "cache")
@click.option("--split", help="One split.  [default: all labelled ones]")
@click.option(
    "--count", type=int, default=8, show_default=True, help="Number of neighbours to show."
)
@OUT
@options("weights", "engine", *CACHED, "json", "quiet", "debug")
def neighbours(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Show the images whose vectors are nearest to that of IMAGE."""
    from featurecache.stages.studies.neighbours import study_neighbours

    _print(study_neighbours(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@run_argument("runs", nargs=-1, required=True)
@click.option("--image", multiple=True, metavar="FILE", help="An image to look at. Repeatable.")
@click.option(
    "--images",
    type=int,
    default=4,
    show_default=True,
    help="Without --image: number of images of the split.",
)
@options("run_data", "split")
@click.option(
    "--method",
    default="gradient",
    show_default=True,
    metavar="NAME",
    help="gradient, smoothgrad or gradcam.",
)
@click.option(
    "--class", "class_name", metavar="NAME", help="Class to map.  [default: the predicted one]"
)
@click.option(
    "--samples", type=int, default=25, show_default=True, help="smoothgrad: number of noisy copies."
)
@click.option(
    "--noise",
    type=float,
    default=0.15,
    show_default=True,
    help="smoothgrad: noise, as a share of the span.",
)
@click.option(
    "--noise-seed",
    "--seed",
    "seed",
    type=int,
    default=0,
    show_default=True,
    help="smoothgrad: seed of the noise.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="Weights the vectors were made with: .safetensors or .pth. Repeatable.",
)
@OUT
@options("json", "quiet", "debug")
def saliency(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Draw which pixels the heads in RUNS use.

    Maps of the class score, with the boxes.
    """
    from featurecache.stages.studies.saliency import study_saliency

    result = study_saliency(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    terminal.table(result.maps, f"{result.method}: share of the saliency inside the boxes")
    terminal.table(result.runs, "means over the images with a box")
    _print_paths(result.files)


@study.command()
@backbone_option("The network.", required=True)
@options("weights")
@click.option(
    "--most",
    "max_tiles",
    type=int,
    default=256,
    show_default=True,
    help="Maximum number of tiles per layer.",
)
@OUT
@options("json", "debug")
def filters(as_json: bool, **arguments: Any) -> None:
    """Draw the filters of the first and the last convolution."""
    from featurecache.stages.studies.filters import study_filters

    result = study_filters(**arguments)
    if as_json:
        return printing.print_json(result)
    rows = [dataclasses.asdict(layer) for layer in result.layers]
    terminal.table(
        [row | {"shape": "x".join(map(str, row["shape"]))} for row in rows], result.backbone
    )
    for note in result.notes:
        click.echo(terminal.printable(note))
    _print_paths(result.files)


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        return printing.print_json(result)
    rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in result.table]
    terminal.table(rows, f"{result.study}, {result.n:,} images")
    for note in result.notes:
        click.echo(terminal.printable(note))
    _print_paths(result.files)


def _print_paths(files: list[str]) -> None:
    for file in files:
        click.echo(f"wrote {terminal.printable(file)}")
