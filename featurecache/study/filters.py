"""The filters of a network's convolutions as pictures (paper 003, Figure 6)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import nn

_GAP = np.array([0.75, 0.85, 0.95])

Tiles = npt.NDArray[np.float64]


def convolutions(network: nn.Module) -> dict[str, Tiles]:
    """The weights (out, in, h, w) of the 2-d convolutions, by module name."""
    return {
        name: layer.weight.detach().double().numpy()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d)
    }


def slices(weights: Tiles) -> Tiles:
    """(out * in, h, w): each filter's kernel over each of its input channels."""
    return weights.reshape(-1, *weights.shape[2:])


def mosaic(tiles: Tiles) -> Tiles:
    """Tiles (n, h, w) or (n, h, w, 3) as one nearly square picture (H, W, 3) in 0..1.

    Each tile is scaled separately, from its smallest weight (black) to its largest (white). The
    gaps between tiles have a colour that grey tiles don't have.
    """
    axes = tuple(range(1, tiles.ndim))
    minimum, maximum = tiles.min(axes, keepdims=True), tiles.max(axes, keepdims=True)
    shades = (tiles - minimum) / np.where(maximum > minimum, maximum - minimum, 1)
    if tiles.ndim == 3:
        shades = np.repeat(shades[..., None], 3, axis=3)
    count, height, width = tiles.shape[:3]
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    picture = np.tile(_GAP, (rows * (height + 1) + 1, columns * (width + 1) + 1, 1))
    for index, shade in enumerate(shades):
        y, x = 1 + index // columns * (height + 1), 1 + index % columns * (width + 1)
        picture[y : y + height, x : x + width] = shade
    return picture
