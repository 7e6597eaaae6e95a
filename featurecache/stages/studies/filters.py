"""Pictures of the filters in the first and the last convolution of a network."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.backbones import load_backbone
from featurecache.stages.studies.study_files import study_folder, write_study
from featurecache.study.sampling import spaced_indices

MAX_TILES = 256  # per layer


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution that was drawn. `shape` is the shape of its weights: (out, in, height, width).

    A tile is a whole filter (colour) or a slice (grey), which is a filter's kernel for one input
    channel. The norms are the Euclidean norms of the filters.
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


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The drawn layers of a network; `notes` list what was not drawn."""

    backbone: str
    layers: list[Layer]
    notes: list[str]
    files: list[str]


def study_filters(
    backbone: str,
    *,
    weights: str | Path | None = None,
    max_tiles: int = MAX_TILES,
    out: str | Path = "study",
) -> Filters:
    """Draw the filters of a network's first and last convolution into the folder `out`.

    First and last follow the order of the modules. Convolutions of one pixel are skipped, since
    they show nothing. At most `max_tiles` tiles per layer are drawn, evenly spaced.
    Raises BadInput, UnknownName, BackboneUnavailable.
    """
    if max_tiles < 1:
        raise BadInput(f"--most {max_tiles}: must be 1 or more")
    folder = study_folder(out, "filters")
    network = load_backbone(backbone, weights)
    from featurecache.study import filters, sheets  # torch

    kernels = filters.convolutions(network.module)
    spatial = [name for name, weight in kernels.items() if weight[0, 0].size > 1]
    if not spatial:
        raise BadInput(f"backbone {backbone} has no convolution larger than one pixel")
    chosen = {"first": spatial[0], "last": spatial[-1]}
    notes = []
    last = list(kernels)[-1]
    if last != chosen["last"]:
        notes.append(
            f"the convolutions after {chosen['last']}, up to {last}, are of one pixel and were not "
            "drawn"
        )
    if chosen["first"] == chosen["last"]:
        del chosen["last"]
        notes.append(f"{spatial[0]} is the only convolution larger than one pixel")
    layers, pictures = [], []
    for position, name in chosen.items():
        weight = kernels[name]
        colour = weight.shape[1] == 3
        tiles = weight.transpose(0, 2, 3, 1) if colour else filters.slices(weight)
        selected = tiles[spaced_indices(len(tiles), max_tiles)]
        norms = np.sqrt((weight**2).sum((1, 2, 3)))
        layers.append(
            Layer(
                place=position,
                layer=name,
                shape=list(weight.shape),
                kind="colour" if colour else "grey",
                tiles=len(tiles),
                shown=len(selected),
                norm_mean=float(norms.mean()),
                norm_least=float(norms.min()),
                norm_greatest=float(norms.max()),
            )
        )
        pictures.append(filters.mosaic(selected))
    title = f"Filters of {backbone}"
    files = write_study(
        folder,
        "filters",
        title,
        sheets.mosaics(
            title,
            [
                f"{layer.place} convolution, {layer.layer}: {'x'.join(map(str, layer.shape))}\n"
                f"{layer.shown:,} of {layer.tiles:,} "
                f"{'filters' if layer.kind == 'colour' else 'slices'}"
                for layer in layers
            ],
            pictures,
        ),
        [field.name for field in fields(Layer)],
        [
            [*astuple(layer)[:2], "x".join(map(str, layer.shape)), *astuple(layer)[3:]]
            for layer in layers
        ],
        {"backbone": backbone, "layers": [asdict(layer) for layer in layers], "notes": notes},
    )
    return Filters(backbone=backbone, layers=layers, notes=notes, files=files)
