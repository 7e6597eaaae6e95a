"""DCGAN as paper 001 describes it (Radford et al. 2016), and one that is told the class.

Paper 001's has no classes, so its images can't be added to a training. The other has batch norms
per class, and a critic with spectral norm that judges by a projection on the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from featurecache.generators.adversarial import (
    Adversarial,
    Rules,
    hinge,
    logistic,
    lower_score,
    not_saturating,
)
from featurecache.generators.configs import ConditionalConfig, DcganConfig
from featurecache.generators.convolutions import Critic, ImageNetwork
from featurecache.generators.generator import FittedImages


class Dcgan(Adversarial):
    """Paper 001's generator and critic in training."""

    def __init__(self, config: DcganConfig, images: FittedImages) -> None:
        rules = Rules(
            critic_loss=logistic, generator_loss=not_saturating, batch_size=config.batch_size
        )
        super().__init__(
            self.build(config.network(), config.image_size, len(images.classes)),
            Critic(config.image_size, config.channels, classes=None, norm="batch"),
            rules,
            lambda parameters: torch.optim.Adam(parameters, lr=config.lr, betas=(0.5, 0.999)),
        )

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> ImageNetwork:
        noise_size, channels = parameters["noise_size"], parameters["channels"]
        return ImageNetwork(noise_size, image_size, channels, classes=None)


class ConditionalDcgan(Adversarial):
    """The generator and the critic that are told the class, in training."""

    def __init__(self, config: ConditionalConfig, images: FittedImages) -> None:
        classes = len(images.classes)
        rules = Rules(
            critic_loss=hinge,
            generator_loss=lower_score,
            batch_size=config.batch_size,
            average=config.average,
        )
        super().__init__(
            self.build(config.network(), config.image_size, classes),
            Critic(config.image_size, config.channels, classes=classes, norm="spectral"),
            rules,
            lambda parameters: torch.optim.Adam(parameters, lr=config.lr, betas=(0.0, 0.9)),
        )

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> ImageNetwork:
        noise_size, channels = parameters["noise_size"], parameters["channels"]
        return ImageNetwork(noise_size, image_size, channels, classes=classes)
