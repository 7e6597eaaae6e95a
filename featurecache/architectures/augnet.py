"""Paper 004's augmentation network: two pictures of a class become one."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class AugNet(nn.Module):
    """Maps two batches of normalized pictures, each (B, C, H, W), to one batch of their shape.

    From the paper: four 3x3 convolutions of 16 channels with ReLU, then one of C channels, on the
    two pictures one after another (2C channels). Chosen: padding that keeps the size, and the
    initial weights of He et al. 2015, of Glorot and Bengio 2010 for the last layer.
    """

    def __init__(self, in_chans: int = 3, width: int = 16) -> None:
        super().__init__()
        widths = (2 * in_chans, width, width, width, width)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, in_chans, 3, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.xavier_normal_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layers(torch.cat([first, second], 1))
        return made
