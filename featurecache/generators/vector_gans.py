"""A conditional WGAN-GP of vectors: class and noise -> vector (Gulrajani et al. 2017).

The critic judges a vector by a projection on its class (Miyato and Koyama 2018). Vectors are
standardised for the training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from featurecache.generators.adversarial import Adversarial, Rules, lower_score, wasserstein
from featurecache.generators.configs import VectorGanConfig
from featurecache.generators.fixed_point import NOISE_LIMIT, coarse, noise, rounded
from featurecache.generators.generator import FittedImages

_SLOPE = 0.2  # of leaky ReLU below 0
_LIMIT = 64.0  # of hidden activations


class VectorNetwork(nn.Module):
    """Noise (N, Z) and labels (N,) -> standardised vectors (N, D). Every layer has a bias per
    class."""

    def __init__(self, noise_size: int, hidden: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.noise_size = noise_size
        pairs = list(itertools.pairwise([noise_size, *hidden, width]))
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairs)
        self.biases = nn.ModuleList(nn.Embedding(classes, b) for _, b in pairs)
        nn.init.zeros_(cast(nn.Embedding, self.biases[-1]).weight)
        self.mean: torch.Tensor  # of the vectors that it is trained on
        self.deviation: torch.Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        *hidden, (last, bias) = zip(self.layers, self.biases, strict=True)
        for layer, layer_bias in hidden:
            x = functional.leaky_relu(layer(x) + layer_bias(labels), _SLOPE)
        result: torch.Tensor = last(x) + bias(labels)
        return result

    def vectors(self, labels: np.ndarray, numbers: np.ndarray) -> npt.NDArray[np.float32]:
        """(N, D) for classes (N,) and noise numbers (N,) uint64, not standardised. Each row is a
        pure function of its class and its number: the network is computed in fixed point."""
        x, limit = noise(numbers, self.noise_size), NOISE_LIMIT
        *hidden, (last, start) = [
            (_array(layer).T, _array(bias)[labels])
            for layer, bias in zip(self.layers, self.biases, strict=True)
        ]
        for layer, layer_bias in hidden:
            x = x @ coarse(layer, limit) + layer_bias
            x, limit = rounded(np.where(x > 0, x, _SLOPE * x), _LIMIT), _LIMIT
        standardised = x @ coarse(last, limit) + start
        deviation, mean = self.deviation.double().numpy(), self.mean.double().numpy()
        result: npt.NDArray[np.float32] = (standardised * deviation + mean).astype(np.float32)
        return result


def _array(layer: nn.Module) -> np.ndarray:
    result: np.ndarray = cast(torch.Tensor, layer.weight).detach().numpy()
    return result


class _Critic(nn.Module):
    """Vectors (N, D) and labels (N,) -> scores (N,): high for real ones."""

    def __init__(self, width: int, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        pairs = itertools.pairwise([width, *hidden])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.last = nn.Linear(hidden[-1], 1)
        self.projection = nn.Embedding(classes, hidden[-1])
        nn.init.normal_(self.projection.weight, std=hidden[-1] ** -0.5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), _SLOPE)
        result: torch.Tensor = self.last(x)[:, 0] + (x * self.projection(labels)).sum(1)
        return result


class VectorGan(Adversarial):
    """A VectorNetwork in training."""

    def __init__(self, config: VectorGanConfig, images: FittedImages) -> None:
        assert images.vectors is not None
        width, classes = images.vectors.shape[1], len(images.classes)
        network = self.build(config.network() | {"width": width}, config.image_size, classes)
        mean = images.vectors.mean(0, dtype=np.float64)
        deviation = images.vectors.std(0, dtype=np.float64)
        network.mean.copy_(torch.from_numpy(mean))
        network.deviation.copy_(torch.from_numpy(np.where(deviation > 0, deviation, 1.0)))
        rules = Rules(
            critic_loss=wasserstein,
            generator_loss=lower_score,
            critic_steps=config.critic_steps,
            has_penalty=True,
            average=0.995,
        )
        critic = _Critic(width, config.hidden, classes)
        super().__init__(config, network, critic, rules, betas=(0.0, 0.9))

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> VectorNetwork:
        return VectorNetwork(**parameters, classes=classes)

    def real(self, images: FittedImages, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """The standardised vectors of a minibatch."""
        assert images.vectors is not None
        network = cast(VectorNetwork, self.modules["generator"])
        x = torch.from_numpy(images.vectors[rows]).to(device)
        result: torch.Tensor = (x - network.mean) / network.deviation
        return result
