"""Generators that are trained against a critic, class and noise -> sample."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featurecache.generators.configs import SamplerConfig, VectorGanConfig
from featurecache.generators.generator import FittedImages, Generator, batch, random_rows, update

PENALTY = 10.0  # weight of the gradient penalty (Gulrajani et al. 2017)

# (scores of real samples, scores of generated ones) -> the critic's loss; scores of generated
# samples -> the generator's.
CriticLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GeneratorLoss = Callable[[torch.Tensor], torch.Tensor]


def wasserstein(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return fake.mean() - real.mean()


def hinge(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def logistic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def lower_score(fake: torch.Tensor) -> torch.Tensor:
    """The loss of a generator against a critic with `wasserstein` or `hinge`."""
    return -fake.mean()


def not_saturating(fake: torch.Tensor) -> torch.Tensor:
    """The loss of a generator against a critic with `logistic` (Goodfellow et al. 2014)."""
    return functional.softplus(-fake).mean()


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the two networks are trained."""

    critic_loss: CriticLoss
    generator_loss: GeneratorLoss
    critic_steps: int = 1  # per step of the generator
    critic_rate: float = 1.0  # the critic's learning rate, in the generator's (Heusel et al. 2017)
    clip: float | None = None  # the critic's weights are kept within it (Arjovsky et al. 2017)
    has_penalty: bool = False
    per_class: bool = False  # a minibatch has as many rows of every class
    average: float = 0.0  # decay of the mean of the generator's weights, which is saved


class Adversarial(Generator):
    """A generator and a critic in training. The generator takes (noise (B, `noise_size`), labels
    (B,)), the critic (samples, labels). Their optimizer is Adam with decays `betas`, or RMSprop."""

    def __init__(
        self,
        config: SamplerConfig | VectorGanConfig,
        generator: nn.Module,
        critic: nn.Module,
        rules: Rules,
        betas: tuple[float, float] | None,
    ) -> None:
        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            if betas is None:
                return torch.optim.RMSprop(parameters, lr=config.lr)
            return torch.optim.Adam(parameters, lr=config.lr, betas=betas)

        self.rules, self._batch_size = rules, config.batch_size
        self._mirror = isinstance(config, SamplerConfig) and config.mirror
        self.modules = nn.ModuleDict({"generator": generator, "critic": critic})
        if rules.average:
            self.modules["mean"] = copy.deepcopy(generator).requires_grad_(False)
        self._trained = [p for p in critic.parameters() if p.requires_grad]
        self.optimizers = {
            "generator": optimizer(list(generator.parameters())),
            "critic": optimizer(self._trained),
        }
        for group in self.optimizers["critic"].param_groups:
            group["lr"] *= rules.critic_rate

    @property
    def network(self) -> nn.Module:
        return self.modules["mean" if self.rules.average else "generator"]

    def real(self, images: FittedImages, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """The real samples of a minibatch: pictures, half of them mirrored if `mirror` is set."""
        pictures = batch(images.pictures[rows], device)
        if not self._mirror:
            return pictures
        mirrored = torch.rand(len(rows), 1, 1, 1, device=device) < 0.5
        return torch.where(mirrored, pictures.flip(3), pictures)

    def step(
        self, images: FittedImages, step: int, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        generator, critic = self.modules["generator"], self.modules["critic"]
        device = next(generator.parameters()).device
        critic_loss = torch.zeros(())
        for _ in range(self.rules.critic_steps):
            rows = self._rows(images, rng)
            labels = torch.from_numpy(images.labels[rows]).to(device)
            critic_loss = self._critic_step(self.real(images, rows, device), labels)
        labels = torch.from_numpy(images.labels[self._rows(images, rng)]).to(device)
        self._set_trained(False)
        loss = self.rules.generator_loss(critic(self._fake(labels), labels))
        update(self.optimizers["generator"], loss)
        self._set_trained(True)
        if self.rules.average:
            means = self.modules["mean"].state_dict()
            # A mean over the last tenth of the steps at most: the first weights make grey pictures.
            share = max(1 - self.rules.average, 9 / (step + 10))
            for name, tensor in generator.state_dict().items():
                if tensor.is_floating_point():
                    means[name].lerp_(tensor, share)
                else:
                    means[name].copy_(tensor)
        return {"generator_loss": loss.detach(), "critic_loss": critic_loss}

    def _critic_step(self, real: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        critic = self.modules["critic"]
        with torch.no_grad():
            fake = self._fake(labels)
        loss = self.rules.critic_loss(critic(real, labels), critic(fake, labels))
        penalty = self._penalty(real, fake, labels) if self.rules.has_penalty else 0.0
        update(self.optimizers["critic"], loss + PENALTY * penalty)
        if self.rules.clip is not None:
            with torch.no_grad():
                for parameter in self._trained:
                    parameter.clamp_(-self.rules.clip, self.rules.clip)
        return loss.detach()

    def _penalty(
        self, real: torch.Tensor, fake: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The mean squared distance from 1 of the norms of the critic's gradients, at random points
        between real and generated samples."""
        share = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
        between = (share * real + (1 - share) * fake).requires_grad_()
        score = self.modules["critic"](between, labels).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        result: torch.Tensor = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
        return result

    def _rows(self, images: FittedImages, rng: np.random.Generator) -> np.ndarray:
        size = self._batch_size
        if not self.rules.per_class:
            return random_rows(len(images.labels), size, rng)
        of_class = (np.flatnonzero(images.labels == c) for c in range(len(images.classes)))
        return np.concatenate([rows[random_rows(len(rows), size, rng)] for rows in of_class])

    def _fake(self, labels: torch.Tensor) -> torch.Tensor:
        generator = self.modules["generator"]
        noise = torch.randn(len(labels), cast(int, generator.noise_size), device=labels.device)
        made: torch.Tensor = generator(noise, labels)
        return made

    def _set_trained(self, is_trained: bool) -> None:
        """Whether the critic's weights get gradients."""
        for parameter in self._trained:
            parameter.requires_grad_(is_trained)
