"""The studies: each writes figures and their numbers into a folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from featurecache.commands import printing, terminal
from featurecache.commands.options import CACHED, OUTPUT, backbone_option, options, run_argument
from featurecache.commands.progress import open_progress
from featurecache.commands.setting_options import setting


@click.group()
def study() -> None:
    """Draw figures of vectors, networks and policies."""


OUT = click.option("--out", default="study", metavar="DIR", help="The folder to write into.")
BACKBONE = backbone_option("The network whose vectors are studied.", default="")
SPLIT = click.option("--split", default="train", help="A labelled split.")


@study.command()
@click.option(
    "--backbone", default="", show_default=False, metavar="NAME",
    help="Also study the vectors of NAME.",
)  # fmt: skip
@options("data", "cache", "view")
@SPLIT
@click.option("--images", default=2000, help="Maximum number of images.")
@click.option("--pixels", default=64, help="Side of the scaled images, in pixels.")
@OUT
@options("seed", *CACHED, *OUTPUT)
def pca(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Count the components that retain the variance of pixels.

    With --backbone, also of vectors.
    """
    from featurecache.stages.studies.pca import study_pca

    _print(study_pca(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@BACKBONE
@click.option("--classes", multiple=True, metavar="NAME", help="A class. Repeatable.")
@click.option("--count", default=5, help="Without --classes: number of classes to draw.")
@options("data", "cache", "view")
@SPLIT
@click.option("--images", default=500, help="Maximum number of images.")
@click.option("--method", default="tsne", help="tsne or umap.")
@click.option("--perplexity", default=30.0, help="Effective number of neighbours.")
@OUT
@options("seed")
@click.option("--sampling-seed", default=0, help="Seed of the draw of classes.")
@click.option(
    "--embedding-seed", default=0, help="Seed of UMAP. (t-SNE starts from the components.)"
)
@options(*CACHED, *OUTPUT)
def tsne(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Embed the vectors of some classes in two dimensions."""
    from featurecache.stages.studies.tsne import study_tsne

    _print(study_tsne(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@BACKBONE
@options("policy_or_cached", "data", "cache")
@SPLIT
@click.option("--images", default=2000, help="Maximum number of images.")
@click.option("--neighbours", default=10, help="Number of nearest neighbours that vote.")
@OUT
@options("seed", *CACHED, *OUTPUT)
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
    metavar="NAME_N",
    help="The view of the real images to compare with.",
)
@options("data", "cache")
@SPLIT
@click.option("--images", default=5000, help="Maximum number of images per set.")
@click.option(
    "--neighbours",
    default=5,
    help="An image is near a vector if it is nearer than this many neighbours of it.",
)
@OUT
@options("seed", *CACHED, *OUTPUT)
def realism(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Measure how realistic a view or generated images are.

    The images of a view, of a dataset of generated images, or the vectors of a sampler (gen:RUN_N),
    are compared with real ones.
    """
    from featurecache.stages.studies.realism import study_realism

    runs = setting("runs") or "runs"
    _print(study_realism(**arguments, runs=runs, progress=open_progress(quiet)), as_json)


@study.command()
@click.argument("image")
@BACKBONE
@options("data", "cache")
@click.option("--split", help="One split.  [default: all labelled ones]")
@click.option("--count", default=8, help="Number of neighbours to show.")
@OUT
@options("weights", "engine", *CACHED, *OUTPUT)
def neighbours(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Show the images whose vectors are nearest to that of IMAGE."""
    from featurecache.stages.studies.neighbours import study_neighbours

    _print(study_neighbours(**arguments, progress=open_progress(quiet)), as_json)


@study.command()
@run_argument("runs", nargs=-1, required=True)
@click.option("--image", multiple=True, metavar="FILE", help="An image to look at. Repeatable.")
@click.option("--images", default=4, help="Without --image: number of images of the split.")
@options("run_data", "split")
@click.option(
    "--method", default="gradient", metavar="NAME", help="gradient, smoothgrad or gradcam."
)
@click.option(
    "--class", "class_name", metavar="NAME", help="Class to map.  [default: the predicted one]"
)
@click.option("--samples", default=25, help="smoothgrad: number of noisy copies.")
@click.option("--noise", default=0.15, help="smoothgrad: noise, as a share of the span.")
@click.option("--noise-seed", "--seed", "seed", default=0, help="smoothgrad: seed of the noise.")
@options("run_weights")
@OUT
@options(*OUTPUT)
def saliency(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Draw which pixels the heads in RUNS use.

    Maps of the class score's gradient, with the bounding boxes that the dataset has.
    """
    from featurecache.stages.studies.saliency import study_saliency

    result = study_saliency(**arguments, progress=open_progress(quiet))
    if as_json:
        return printing.print_json(result)
    terminal.table(result.maps, f"{result.method}: share of the saliency inside the boxes")
    terminal.table(result.runs, "means over the images with a box")
    printing.lines(f"wrote {file}" for file in result.files)


@study.command()
@backbone_option("The network.", required=True)
@options("weights")
@click.option("--most", "max_tiles", default=256, help="Maximum number of tiles per layer.")
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
    printing.lines(result.notes)
    printing.lines(f"wrote {file}" for file in result.files)


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        return printing.print_json(result)
    rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in result.table]
    terminal.table(rows, f"{result.study}, {result.n:,} images")
    printing.lines(result.notes)
    printing.lines(f"wrote {file}" for file in result.files)
