"""Convolutional networks from noise to images and from images to scores, with and without classes.

The layers are those that paper 001 describes. The generator has one dense layer, four transposed
convolutions that double the sides, and a plain convolution; the critic has four convolutions and
two dense layers. Batch norms are in between.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

DOUBLINGS = 4
Norm = Literal["batch", "spectral", "layer"]


class _ClassNorm(nn.Module):
    """A batch norm with a scale and a shift per class, or one of each without classes."""

    def __init__(self, channels: int, classes: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(classes or 1, channels)
        self.shift = nn.Embedding(classes or 1, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.scale.num_embeddings == 1:
            labels = torch.zeros_like(labels)
        scale, shift = self.scale(labels)[:, :, None, None], self.shift(labels)[:, :, None, None]
        result: torch.Tensor = self.norm(x) * scale + shift
        return result


class ImageNetwork(nn.Module):
    """Noise (B, Z) and labels (B,) -> images (B, 3, S, S) from -1 to 1; S is a multiple of 16.
    `channels` is the number before the last convolution. Without `classes` labels are ignored. With
    `is_smooth` sides are doubled by repeating pixels instead of by transposed convolutions."""

    def __init__(
        self,
        noise_size: int,
        image_size: int,
        channels: int,
        *,
        classes: int | None,
        is_smooth: bool = False,
    ) -> None:
        super().__init__()
        self.noise_size = noise_size
        self._side = image_size >> DOUBLINGS
        widths = [channels << n for n in reversed(range(DOUBLINGS))]
        self.dense = nn.Linear(noise_size, widths[0] * self._side**2)
        self.norms = nn.ModuleList(_ClassNorm(width, classes) for width in [widths[0], *widths])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1))
            if is_smooth
            else nn.ConvTranspose2d(a, b, 4, 2, 1)
            for a, b in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.dense(noise).unflatten(1, (-1, self._side, self._side))
        first, *norms = self.norms
        x = torch.relu(first(x, labels))
        for layer, norm in zip(self.layers, norms, strict=True):
            x = torch.relu(norm(layer(x), labels))
        return torch.tanh(self.last(x))


class Critic(nn.Module):
    """Images (B, 3, S, S) and labels (B,) -> scores (B,); with `classes` by a projection on the
    class (Miyato and Koyama 2018). `norm` is between the layers, or of their weights (Miyato et
    al. 2018)."""

    def __init__(self, image_size: int, channels: int, *, classes: int | None, norm: Norm) -> None:
        super().__init__()
        widths = [channels << n for n in range(DOUBLINGS)]
        layers: list[nn.Module] = []
        side = image_size
        for number, (a, b) in enumerate(zip([3, *widths[:-1]], widths, strict=True)):
            layers.append(nn.Conv2d(a, b, 4, 2, 1))
            side //= 2
            if norm == "batch" and number > 0:
                layers.append(nn.BatchNorm2d(b))
            elif norm == "layer" and number > 0:
                layers.append(nn.GroupNorm(1, b))
            layers.append(nn.LeakyReLU(0.2))
        units = widths[-1]
        layers += [nn.Flatten(), nn.Linear(units * side**2, units)]
        if norm == "batch":
            layers.append(nn.BatchNorm1d(units))
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2))
        self.last = nn.Linear(units, 1)
        self.projection = None if classes is None else nn.Embedding(classes, units)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=units**-0.5)
        if norm == "spectral":
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    spectral_norm(module)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layers(images)
        scores: torch.Tensor = self.last(x)[:, 0]
        if self.projection is not None:
            scores = scores + (x * self.projection(labels)).sum(1)
        return scores
