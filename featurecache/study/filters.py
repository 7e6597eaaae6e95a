"""Filters: the first and the last convolution of a network as pictures (paper 003, Figure 6)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import nn

_GAP = np.array([0.75, 0.85, 0.95])

Tiles = npt.NDArray[np.float64]


def convolutions(network: nn.Module) -> dict[str, Tiles]:
    """The weights (out, in, h, w) of the 2-d convolutions, by the names of their modules."""
    return {
        name: layer.weight.detach().double().numpy()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d)
    }


def slices(weights: Tiles) -> Tiles:
    """(out * in, h, w): each filter's kernel over each of its input channels."""
    return weights.reshape(-1, *weights.shape[2:])


def spread(tiles: Tiles, most: int) -> Tiles:
    """At most `most` of the tiles, evenly spread."""
    count = min(most, len(tiles))
    return np.asarray(tiles[np.arange(count) * len(tiles) // count])


def mosaic(tiles: Tiles) -> Tiles:
    """Tiles (n, h, w) or (n, h, w, 3) as one picture (H, W, 3) in 0..1, nearly square.

    Each tile is scaled by itself, from its least weight (black) to its greatest; the gaps between
    them are of a colour that grey tiles don't have.
    """
    axes = tuple(range(1, tiles.ndim))
    least, greatest = tiles.min(axes, keepdims=True), tiles.max(axes, keepdims=True)
    shades = (tiles - least) / np.where(greatest > least, greatest - least, 1)
    if tiles.ndim == 3:
        shades = np.repeat(shades[..., None], 3, axis=3)
    count, high, wide = tiles.shape[:3]
    columns = math.ceil(math.sqrt(count * high / wide))
    rows = math.ceil(count / columns)
    picture = np.tile(_GAP, (rows * (high + 1) + 1, columns * (wide + 1) + 1, 1))
    for place, shade in enumerate(shades):
        y, x = 1 + place // columns * (high + 1), 1 + place % columns * (wide + 1)
        picture[y : y + high, x : x + wide] = shade
    return picture
