"""DCGAN as paper 001 describes it (Radford et al. 2016), and class-conditional GANs.

Paper 001's knows no classes, so its images have a label only if it was fitted on a single class.
The class-conditional DCGAN has batch norms per class, and a critic with spectral norm that judges
by a projection on the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

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
        super().__init__(
            config,
            self.build(config.network(), config.image_size, len(images.classes)),
            Critic(config.image_size, config.channels, classes=None, norm="batch"),
            Rules(critic_loss=logistic, generator_loss=not_saturating),
            betas=(0.5, 0.999),
        )

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> ImageNetwork:
        return ImageNetwork(**parameters, image_size=image_size, classes=None)


class ConditionalGan(Adversarial):
    """A class-conditional generator in training against a critic that knows the class.

    `decay` is Adam's second one.
    """

    def __init__(
        self,
        config: ConditionalConfig,
        images: FittedImages,
        critic: nn.Module,
        *,
        decay: float,
        critic_rate: float = 1.0,
    ) -> None:
        rules = Rules(
            critic_loss=hinge,
            generator_loss=lower_score,
            critic_rate=critic_rate,
            average=config.average,
        )
        network = self.build(config.network(), config.image_size, len(images.classes))
        super().__init__(config, network, critic, rules, betas=(0.0, decay))

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> ImageNetwork:
        return ImageNetwork(**parameters, image_size=image_size, classes=classes)


class ConditionalDcgan(ConditionalGan):
    """A class-conditional DCGAN in training."""

    def __init__(self, config: ConditionalConfig, images: FittedImages) -> None:
        classes = len(images.classes)
        critic = Critic(config.image_size, config.channels, classes=classes, norm="spectral")
        # With equal rates the generator soon fooled the critic, whose loss was that of guessing.
        super().__init__(config, images, critic, decay=0.9, critic_rate=4.0)
