"""Filters: the first and the last convolution of a network, drawn."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.backbones import load_backbone
from featurecache.stages.studies.study_files import study_folder, write_study

MOST = 256  # tiles of a layer


@dataclass(frozen=True)
class Layer:
    """A convolution that was drawn: its weights are `shape`, (out, in, height, width).

    A tile is a filter in colour, or in grey a slice: the kernel of one input channel. The norms are
    Euclidean, of its filters.
    """

    place: str  # first or last
    layer: str
    shape: list[int]
    kind: str  # colour or grey
    tiles: int
    shown: int
    norm_mean: float
    norm_least: float
    norm_greatest: float


@dataclass(frozen=True)
class Filters:
    """What was drawn of a network, and what was passed over."""

    backbone: str
    layers: list[Layer]
    notes: list[str]
    files: list[str]


def study_filters(
    backbone: str,
    *,
    weights: str | Path | None = None,
    most: int = MOST,
    out: str | Path = "study",
) -> Filters:
    """Draw the filters of the first and of the last convolution of a network, into `out`.

    The last is the last, in the order of the modules, whose kernel is more than one pixel: in
    others there is nothing to see. At most `most` tiles of a layer are shown, evenly spread.
    Raises BadInput, UnknownName, BackboneUnavailable.
    """
    if most < 1:
        raise BadInput(f"most {most}: must be 1 or more")
    folder = study_folder(out)
    network = load_backbone(backbone, weights)
    from featurecache.study import filters, sheets  # torch

    found = filters.convolutions(network.module)
    larger = [name for name, weight in found.items() if weight[0, 0].size > 1]
    if not larger:
        raise BadInput(f"backbone {backbone} has no convolution larger than one pixel")
    chosen = {"first": larger[0], "last": larger[-1]}
    notes = []
    last = list(found)[-1]
    if last != chosen["last"]:
        notes.append(
            f"behind {chosen['last']} there are convolutions of one pixel, the last of them "
            f"{last}: in those there is nothing to see"
        )
    if chosen["first"] == chosen["last"]:
        del chosen["last"]
        notes.append(f"{larger[0]} is the only convolution larger than one pixel")
    layers, pictures = [], []
    for place, name in chosen.items():
        weight = found[name]
        colour = weight.shape[1] == 3
        tiles = weight.transpose(0, 2, 3, 1) if colour else filters.slices(weight)
        shown = filters.spread(tiles, most)
        norms = np.sqrt((weight**2).sum((1, 2, 3)))
        layers.append(
            Layer(
                place,
                name,
                list(weight.shape),
                "colour" if colour else "grey",
                len(tiles),
                len(shown),
                float(norms.mean()),
                float(norms.min()),
                float(norms.max()),
            )
        )
        pictures.append(filters.mosaic(shown))
    title = f"Filters of {backbone}"
    files = write_study(
        folder,
        "filters",
        title,
        sheets.mosaics(
            title,
            [
                f"{one.place} convolution, {one.layer}: {'x'.join(map(str, one.shape))}\n"
                f"{one.shown:,} of {one.tiles:,} {'filters' if one.kind == 'colour' else 'slices'}"
                for one in layers
            ],
            pictures,
        ),
        [field.name for field in fields(Layer)],
        [[*astuple(one)[:2], "x".join(map(str, one.shape)), *astuple(one)[3:]] for one in layers],
        {"backbone": backbone, "layers": [asdict(one) for one in layers], "notes": notes},
    )
    return Filters(backbone, layers, notes, files)
