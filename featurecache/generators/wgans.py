"""Paper 000's WGAN, one of dense layers per class (Arjovsky et al. 2017), and the convolutional
WGAN-GP that it asks for.

The paper's batches have 8 images, and images no longer improve after 80 iterations, which are read
as passes over a class's images. It gives no sizes of layers; here are two of 128 and 256 units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from featurecache.generators.adversarial import Adversarial, Rules, lower_score, wasserstein
from featurecache.generators.configs import ConditionalConfig, WganConfig
from featurecache.generators.convolutions import Critic, ImageNetwork
from featurecache.generators.generator import FittedImages


class DenseImageNetwork(nn.Module):
    """A network of dense layers for each class: noise (B, Z) and labels (B,) -> images
    (B, 3, S, S) from -1 to 1."""

    def __init__(self, noise_size: int, image_size: int, classes: int) -> None:
        super().__init__()
        self.noise_size, self.image_size = noise_size, image_size
        self.of_class = nn.ModuleList(
            nn.Sequential(
                nn.Linear(noise_size, 128),
                nn.LeakyReLU(0.2),
                nn.Linear(128, 256),
                nn.BatchNorm1d(256),
                nn.LeakyReLU(0.2),
                nn.Linear(256, 3 * image_size**2),
                nn.Tanh(),
            )
            for _ in range(classes)
        )

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pixels = _by_class(self.of_class, noise, labels)
        return pixels.reshape(-1, 3, self.image_size, self.image_size)


class _DenseCritic(nn.Module):
    """A critic of dense layers for each class: images and labels -> scores (B,)."""

    def __init__(self, image_size: int, classes: int) -> None:
        super().__init__()
        self.of_class = nn.ModuleList(
            nn.Sequential(
                nn.Linear(3 * image_size**2, 256),
                nn.LeakyReLU(0.2),
                nn.Linear(256, 128),
                nn.LeakyReLU(0.2),
                nn.Linear(128, 1),
            )
            for _ in range(classes)
        )

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _by_class(self.of_class, images.flatten(1), labels)[:, 0]


def _by_class(networks: nn.ModuleList, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The rows x (B, K), each through the network of its class."""
    order = torch.argsort(labels, stable=True)
    present, counts = torch.unique_consecutive(labels[order], return_counts=True)
    parts = torch.split(x[order], counts.tolist())
    made = [networks[c](part) for c, part in zip(present.tolist(), parts, strict=True)]
    return torch.cat(made)[torch.argsort(order)]


class DenseWgan(Adversarial):
    """The networks of all classes in training; each minibatch has `batch_size` images of each."""

    def __init__(self, config: WganConfig, images: FittedImages) -> None:
        classes = len(images.classes)
        rules = Rules(
            critic_loss=wasserstein,
            generator_loss=lower_score,
            critic_steps=config.critic_steps,
            clip=config.clip,
            per_class=True,
        )
        network = self.build(config.network(), config.image_size, classes)
        critic = _DenseCritic(config.image_size, classes)
        super().__init__(config, network, critic, rules, betas=None)

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> DenseImageNetwork:
        return DenseImageNetwork(**parameters, image_size=image_size, classes=classes)


class ConvolutionalWganGp(Adversarial):
    """A class-conditional convolutional generator against a critic with gradient penalty."""

    def __init__(self, config: ConditionalConfig, images: FittedImages) -> None:
        size, classes = config.image_size, len(images.classes)
        rules = Rules(
            critic_loss=wasserstein,
            generator_loss=lower_score,
            critic_steps=3,
            has_penalty=True,
            average=config.average,
        )
        network = self.build(config.network(), size, classes)
        # Batch norm would make the penalty of an image depend on the others.
        critic = Critic(size, config.channels, classes=classes, norm="layer")
        super().__init__(config, network, critic, rules, betas=(0.0, 0.9))

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> ImageNetwork:
        return ImageNetwork(**parameters, image_size=image_size, classes=classes)
