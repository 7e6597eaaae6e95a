"""CycleGAN (Zhu et al. 2017): two networks that map images to a style and back.

They are trained against a discriminator each (least squares, on patches), and so that an image
comes back from the style as it was (cycle), and an image of the style stays as it is (identity).
Of the published training it lacks the buffer of earlier images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featurecache.generators.configs import CycleGanConfig
from featurecache.generators.generator import (
    FittedImages,
    Generator,
    batch,
    decaying,
    random_rows,
    update,
)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, channels, 3), *_convolution(channels, channels, 3)[:-1]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect"),
        nn.InstanceNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class StyleNetwork(nn.Module):
    """A residual network from images (B, 3, S, S) to images of the style; S is a multiple of 4."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        wide, wider = 2 * channels, 4 * channels
        self.layers = nn.Sequential(
            *_convolution(3, channels, 7),
            *_convolution(channels, wide, 3, 2),
            *_convolution(wide, wider, 3, 2),
            *(_Residual(wider) for _ in range(blocks)),
            nn.Upsample(scale_factor=2),
            *_convolution(wider, wide, 3),
            nn.Upsample(scale_factor=2),
            *_convolution(wide, channels, 3),
            nn.Conv2d(channels, 3, 7, 1, 3, padding_mode="reflect"),
            nn.Tanh(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layers(images)
        return made


def _discriminator(channels: int) -> nn.Sequential:
    """Judges overlapping patches of 22 pixels: (B, 3, S, S) to (B, 1, S/4 - 1, S/4 - 1)."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(channels, 2 * channels, 4, 2, 1),
        nn.InstanceNorm2d(2 * channels),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(2 * channels, 1, 4, 1, 1),
    )


class CycleGan(Generator):
    """The four networks in training; the one to the style is saved."""

    def __init__(self, config: CycleGanConfig, images: FittedImages) -> None:
        self.config = config
        count = len(images.classes)
        self.modules = nn.ModuleDict(
            {
                "to_style": self.build(config.network(), config.image_size, count),
                "from_style": self.build(config.network(), config.image_size, count),
                "style_judge": _discriminator(config.channels),
                "image_judge": _discriminator(config.channels),
            }
        )
        for module in self.modules.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
        judges = (self.modules["style_judge"], self.modules["image_judge"])
        makers = (self.modules["to_style"], self.modules["from_style"])
        self.optimizers = {
            name: torch.optim.Adam(
                itertools.chain.from_iterable(module.parameters() for module in modules),
                lr=config.lr,
                betas=(0.5, 0.999),
            )
            for name, modules in (("makers", makers), ("judges", judges))
        }

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> StyleNetwork:
        return StyleNetwork(**parameters)

    @property
    def network(self) -> nn.Module:
        return self.modules["to_style"]

    def step(
        self, images: FittedImages, step: int, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        assert images.style is not None
        size, device = self.config.batch_size, next(self.modules.parameters()).device
        real = batch(images.pictures[random_rows(len(images.pictures), size, rng)], device)
        style = batch(images.style[random_rows(len(images.style), size, rng)], device)
        to_style, from_style, style_judge, image_judge = self.modules.values()
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = decaying(self.config, self.config.lr, step)

        self.modules.requires_grad_(True)
        for judge in (style_judge, image_judge):
            judge.requires_grad_(False)
        styled, plain = to_style(real), from_style(style)
        fooled = _distance(style_judge(styled), 1) + _distance(image_judge(plain), 1)
        cycle = functional.l1_loss(from_style(styled), real)
        cycle = cycle + functional.l1_loss(to_style(plain), style)
        identity = functional.l1_loss(to_style(style), style)
        identity = identity + functional.l1_loss(from_style(real), real)
        loss = fooled + self.config.cycle * cycle + self.config.identity * identity
        update(self.optimizers["makers"], loss)

        for judge in (style_judge, image_judge):
            judge.requires_grad_(True)
        judged = _distance(style_judge(style), 1) + _distance(style_judge(styled.detach()), 0)
        judged = judged + _distance(image_judge(real), 1)
        judged = judged + _distance(image_judge(plain.detach()), 0)
        update(self.optimizers["judges"], judged / 2)
        return {"maker": fooled, "cycle": cycle, "identity": identity, "judge": judged / 2}


def _distance(judged: torch.Tensor, target: float) -> torch.Tensor:
    """The mean squared distance of a discriminator's answers to 1 for real, or 0 for made."""
    return ((judged - target) ** 2).mean()
