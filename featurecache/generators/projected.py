"""A projected GAN (Sauer et al. 2021): its critic judges images by the maps of a frozen network.

The maps of four stages are mixed by random convolutions that are never trained, across channels
and then from coarse to fine, and each is judged by a small network of its own.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from featurecache.generators.configs import ConditionalConfig
from featurecache.generators.dcgans import ConditionalGan
from featurecache.generators.generator import FittedImages

_STAGES = (1, 2, 4, 6)  # blocks of an EfficientNet after which the sides are 1/4, 1/8, 1/16, 1/32
_WIDTH = 64  # channels of the mixed maps
_SIDE = 4  # of the maps of scores


class _MixedMaps(nn.Module):
    """Images (B, 3, S, S) from -1 to 1 -> four mixed maps of an EfficientNet, coarse first."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        with torch.no_grad():
            widths = [x.shape[1] for x in self._maps(torch.zeros(1, 3, size, size))]
        self.channels = nn.ModuleList(nn.Conv2d(w, _WIDTH, 1) for w in reversed(widths))
        self.scales = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in widths)
        for module in (*self.channels, *self.scales):
            nn.init.kaiming_normal_(cast(torch.Tensor, module.weight))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> _MixedMaps:
        """It stays as it is: frozen, with the published statistics of its batch norms."""
        return super().train(False)

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        network: Any = self.network
        x = network.bn1(network.conv_stem(x))
        maps = []
        for number, block in enumerate(network.blocks):
            x = block(x)
            if number in _STAGES:
                maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        shape = (self.size, self.size)
        x = functional.interpolate(images, shape, mode="bilinear", align_corners=False)
        mixed: list[torch.Tensor] = []
        for stage_map, channels, scale in zip(
            reversed(self._maps(x)), self.channels, self.scales, strict=True
        ):
            y = channels(stage_map)
            if mixed:
                y = y + functional.interpolate(mixed[-1], y.shape[2:], mode="bilinear")
            mixed.append(scale(y))
        return mixed


class _Judge(nn.Module):
    """One mixed map (B, 64, T, T) and labels (B,) -> scores (B, 16)."""

    def __init__(self, halvings: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [
                spectral_norm(nn.Conv2d(_WIDTH, _WIDTH, 4, 2, 1, bias=False)),
                nn.GroupNorm(8, _WIDTH),
                nn.LeakyReLU(0.2),
            ]
        layers += [spectral_norm(nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Conv2d(_WIDTH, 1, 1))
        self.projection = spectral_norm(nn.Embedding(classes, _WIDTH))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        by_class = (x * self.projection(labels)[:, :, None, None]).sum(1, keepdim=True)
        scores: torch.Tensor = (self.last(x) + by_class).flatten(1)
        return scores


class _Critic(nn.Module):
    """Images (B, 3, S, S) and labels (B,) -> scores (B, 64)."""

    def __init__(self, network: nn.Module, size: int, classes: int) -> None:
        super().__init__()
        self.maps = _MixedMaps(network, size)
        self.judges = nn.ModuleList(_Judge(n, classes) for n in range(len(_STAGES)))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        maps = self.maps(images)
        return torch.cat([judge(x, labels) for judge, x in zip(self.judges, maps, strict=True)], 1)


class ProjectedGan(ConditionalGan):
    """A class-conditional generator in training against the judges of four maps."""

    def __init__(self, config: ConditionalConfig, images: FittedImages) -> None:
        assert images.critic is not None
        critic = _Critic(images.critic, 32 * _SIDE, len(images.classes))
        super().__init__(config, images, critic, decay=0.99)
