"""Perturbation of vectors during training only: feature augmentation and mixup."""

from __future__ import annotations

import numpy as np
import torch

from featurecache.heads.settings import Features

_FEATURES_AT_ONCE = 128  # bounds the memory of float64 copies


class Perturbation:
    """Changes the vectors of one fold's minibatches in one epoch, with its own random draws."""

    def __init__(
        self,
        features: Features | None,
        alpha: float | None,
        moments: tuple[torch.Tensor, torch.Tensor],
        sequence: np.random.SeedSequence,
    ) -> None:
        """`moments` are the mean and deviation (D,) of the training rows.

        `alpha` is the parameter of mixup's Beta distribution; None for no mixup.
        """
        self._features, self._moments = features, moments
        self.alpha = alpha
        self._rng = np.random.default_rng(sequence)
        self._draws = torch.Generator(moments[0].device)
        self._draws.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)

    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) with contrast, brightness and noise applied, in this order."""
        if self._features is None:
            return x
        mean, deviation = self._moments
        rows = (len(x), 1)
        if self._features.contrast:
            factor = 1 + self._features.contrast * self._uniform(rows)
            x = mean + (x - mean) * factor
        if self._features.brightness:
            x = x + self._features.brightness * self._uniform(rows) * deviation
        if self._features.noise:
            normal = torch.randn(x.shape, generator=self._draws, device=x.device)
            x = x + self._features.noise * normal * deviation
        return x

    def mix(self, x: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Each of the vectors (B, D) mixed with another vector of the minibatch.

        Returns the mixed vectors, the indexes (B,) of the partners, and the share of the original
        vectors: one per minibatch, drawn from Beta(alpha, alpha).
        """
        share = float(self._rng.beta(alpha, alpha))
        partners = torch.from_numpy(self._rng.permutation(len(x))).to(x.device)
        return share * x + (1 - share) * x[partners], partners, share

    def _uniform(self, shape: tuple[int, int]) -> torch.Tensor:
        """Uniform numbers from [-1, 1)."""
        device = self._draws.device
        return 2 * torch.rand(shape, generator=self._draws, device=device) - 1


def mean_and_deviation(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) of vectors (N, D), float32, summed in float64."""
    means, deviations = [], []
    for columns in torch.split(rows, _FEATURES_AT_ONCE, dim=1):
        wide = columns.double()
        means.append(wide.mean(0).float())
        deviations.append(wide.std(0, correction=0).float())
    return torch.cat(means), torch.cat(deviations)
