"""A projected GAN (Sauer et al. 2021): its critic judges images by the maps of a frozen network.

The maps of four stages are mixed by random convolutions that are never trained, across channels
and then from coarse to fine, and each is judged by a small network of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from featurecache.generators.configs import ConditionalConfig
from featurecache.generators.convolutions import ImageNetwork
from featurecache.generators.dcgans import ConditionalGan
from featurecache.generators.generator import FittedImages, batch

_STAGES = (1, 2, 4, 6)  # blocks of an EfficientNet after which the sides are 1/4, 1/8, 1/16, 1/32
_WIDTH = 64  # channels of the mixed maps
_SIDE = 2  # of the maps of scores, of images up to 64 pixels
_SAMPLE = 64  # real images whose maps give the statistics of the mixed maps


class _MixedMaps(nn.Module):
    """Images (B, 3, S, S) from -1 to 1 -> four mixed maps of an EfficientNet, coarse first.

    Their channels have mean 0 and variance 1 over `real` images, by statistics that stay fixed: a
    critic that normalises them batch by batch does not see that generated images are alike.
    """

    def __init__(self, network: nn.Module, size: int, real: torch.Tensor) -> None:
        super().__init__()
        self.network, self.size = network, size
        with torch.no_grad():
            widths = [x.shape[1] for x in self._maps(real[:1])]
        self.channels = nn.ModuleList(nn.Conv2d(w, _WIDTH, 1) for w in reversed(widths))
        self.scales = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in widths)
        for module in (*self.channels, *self.scales):
            nn.init.kaiming_normal_(cast(torch.Tensor, module.weight))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(_WIDTH, affine=False, momentum=None) for _ in widths
        )
        self.eval().requires_grad_(False)
        self.norms.train()
        with torch.no_grad():
            self(real)
        self.norms.eval()

    def train(self, mode: bool = True) -> _MixedMaps:
        """It stays as it is: frozen, with the statistics that its norms have."""
        return super().train(False)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        shape = (self.size, self.size)
        x = functional.interpolate(images, shape, mode="bilinear", align_corners=False)
        network: Any = self.network
        x = network.bn1(network.conv_stem(x))  # Lite0 takes numbers from -1 to 1
        maps = []
        for number, block in enumerate(network.blocks):
            x = block(x)
            if number in _STAGES:
                maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        mixed: list[torch.Tensor] = []
        for stage_map, channels, scale, norm in zip(
            reversed(self._maps(images)), self.channels, self.scales, self.norms, strict=True
        ):
            y = channels(stage_map)
            if mixed:
                y = y + functional.interpolate(mixed[-1], y.shape[2:], mode="bilinear")
            mixed.append(norm(scale(y)))
        return mixed


class _Judge(nn.Module):
    """One mixed map (B, 64, T, T) and labels (B,) -> scores (B, T'²)."""

    def __init__(self, halvings: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = _WIDTH + 1
        for _ in range(halvings):
            layers += [spectral_norm(nn.Conv2d(width, _WIDTH, 4, 2, 1)), nn.LeakyReLU(0.2)]
            width = _WIDTH
        layers += [spectral_norm(nn.Conv2d(width, _WIDTH, 3, 1, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Conv2d(_WIDTH, 1, 1))
        self.projection = spectral_norm(nn.Embedding(classes, _WIDTH))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # How much the images of a minibatch differ (Karras et al. 2018), at each place.
        spread = x.var(0, keepdim=True).add(1e-8).sqrt().mean(1, keepdim=True)
        x = self.layers(torch.cat([x, spread.expand(len(x), -1, -1, -1)], 1))
        by_class = (x * self.projection(labels)[:, :, None, None]).sum(1, keepdim=True)
        scores: torch.Tensor = (self.last(x) + by_class).flatten(1)
        return scores


def _augmented(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) in other colours, moved by up to an eighth of S, and with a hole of half
    of S, all differentiably (Zhao et al. 2020). So the critic can't learn the images by heart."""
    count, _, side, _ = images.shape

    def random(low: float, high: float) -> torch.Tensor:
        return torch.empty(count, 1, 1, 1, device=images.device).uniform_(low, high)

    x = images + random(-0.5, 0.5)  # brightness
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * random(0, 2)  # saturation
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * random(0.5, 1.5)  # contrast

    along = torch.arange(side, device=images.device)
    far = side // 8
    starts = torch.randint(0, 2 * far + 1, (2, count, 1), device=images.device)
    rows, columns = along + starts
    picture = torch.arange(count, device=images.device)[:, None, None]
    padded = functional.pad(x, (far,) * 4).permute(0, 2, 3, 1)
    x = padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    centres = torch.randint(0, side + 1, (2, count, 1), device=images.device)
    hole_rows, hole_columns = (along - centres).abs() <= side // 4
    made: torch.Tensor = x * ~(hole_rows[:, None, :, None] & hole_columns[:, None, None, :])
    return made


class _Critic(nn.Module):
    """Images (B, 3, S, S) and labels (B,) -> scores of the parts of four maps (B, 4 T²)."""

    def __init__(self, network: nn.Module, classes: int, real: torch.Tensor) -> None:
        super().__init__()
        self.maps = _MixedMaps(network, 32 * max(_SIDE, real.shape[2] // 32), real)
        self.judges = nn.ModuleList(_Judge(n, classes) for n in range(len(_STAGES)))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        maps = self.maps(_augmented(images))
        return torch.cat([judge(x, labels) for judge, x in zip(self.judges, maps, strict=True)], 1)


class ProjectedGan(ConditionalGan):
    """A class-conditional generator in training against the judges of four maps."""

    def __init__(self, config: ConditionalConfig, images: FittedImages) -> None:
        assert images.critic is not None
        rows = np.linspace(0, len(images.pictures) - 1, _SAMPLE).astype(int)
        real = batch(images.pictures[rows], torch.device("cpu"))
        super().__init__(
            config, images, _Critic(images.critic, len(images.classes), real), decay=0.99
        )

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> ImageNetwork:
        return ImageNetwork(**parameters, image_size=image_size, classes=classes, is_smooth=True)
