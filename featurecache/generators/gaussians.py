"""A normal distribution per class: its mean, and a shrunk covariance (Ledoit and Wolf 2004).

With fewer vectors per class than numbers per vector the covariance of a class is mostly noise, so
by default all classes share one, that of the deviations from the class means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import LedoitWolf
from torch import nn

from featurecache.generators.configs import GaussianConfig
from featurecache.generators.fixed_point import NOISE_LIMIT, coarse, noise
from featurecache.generators.generator import FittedImages, Generator


class GaussianSampler(nn.Module):
    """Vectors of C classes: mean + normal numbers @ factor + spread * normal numbers.

    `means` is (C, D), `factors` (1, D, D) if all classes share it, else (C, rank, D), and `spreads`
    (1,) or (C,): the deviation in the directions that a factor leaves out.
    """

    def __init__(self, classes: int, width: int, rank: int | None) -> None:
        super().__init__()
        self.is_shared = rank is None
        count = 1 if self.is_shared else classes
        self.means: torch.Tensor
        self.factors: torch.Tensor
        self.spreads: torch.Tensor
        self.register_buffer("means", torch.zeros(classes, width))
        self.register_buffer("factors", torch.zeros(count, rank or width, width))
        self.register_buffer("spreads", torch.zeros(count))

    def vectors(self, labels: np.ndarray, numbers: np.ndarray) -> npt.NDArray[np.float32]:
        """(N, D) for classes (N,) and noise numbers (N,) uint64: each row is a pure function of its
        class and its number."""
        means, factors = self.means.numpy(), self.factors.numpy()
        result = np.empty((len(labels), means.shape[1]), np.float32)
        parts: list[tuple[int, np.ndarray]] = [(0, np.arange(len(labels)))]
        if not self.is_shared:
            parts = [(int(c), np.flatnonzero(labels == c)) for c in np.unique(labels)]
        for index, rows in parts:
            rank = factors.shape[1]
            drawn = noise(numbers[rows], rank if self.is_shared else rank + means.shape[1])
            deviations = drawn[:, :rank] @ coarse(factors[index], NOISE_LIMIT)
            if not self.is_shared:
                deviations += float(self.spreads[index]) * drawn[:, rank:]
            result[rows] = means[labels[rows]].astype(np.float64) + deviations
        return result


class Gaussians(Generator):
    """Fits a GaussianSampler in a single step."""

    def __init__(self, config: GaussianConfig, images: FittedImages) -> None:
        assert images.vectors is not None
        parameters = config.network() | {"width": images.vectors.shape[1]}
        self._sampler = self.build(parameters, config.image_size, len(images.classes))
        self.modules = nn.ModuleDict({"sampler": self._sampler})
        self.optimizers = {}

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> GaussianSampler:
        rank = parameters["rank"] if parameters["covariance"] == "class" else None
        return GaussianSampler(classes, parameters["width"], rank)

    @property
    def network(self) -> GaussianSampler:
        return self._sampler

    def step(
        self, images: FittedImages, step: int, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        assert images.vectors is not None
        sampler, labels = self._sampler, images.labels
        x = images.vectors.astype(np.float64)
        means = np.stack([x[labels == c].mean(0) for c in range(len(images.classes))])
        x -= means[labels]
        sampler.means.copy_(torch.from_numpy(means))
        if sampler.is_shared:
            covariance = _shrunk(x * np.sqrt(len(x) / (len(x) - len(means))))
            sampler.factors[0] = torch.from_numpy(np.linalg.cholesky(covariance).T.copy())
            return {}
        for c in range(len(means)):
            rows = x[labels == c]
            covariance = _shrunk(rows * np.sqrt(len(rows) / (len(rows) - 1)))
            variances, directions = np.linalg.eigh(covariance)
            rank = sampler.factors.shape[1]
            # The mean of the other variances goes in all directions (Tipping and Bishop 1999).
            other = float(variances[:-rank].mean()) if rank < len(variances) else 0.0
            scale = np.sqrt(np.clip(variances[-rank:] - other, 0, None))
            sampler.factors[c] = torch.from_numpy(scale[:, None] * directions[:, -rank:].T)
            sampler.spreads[c] = np.sqrt(other)
        return {}


def _shrunk(residuals: np.ndarray) -> npt.NDArray[np.float64]:
    """The shrunk covariance (D, D) of residuals (N, D), whose mean is 0."""
    estimate = LedoitWolf(store_precision=False, assume_centered=True).fit(residuals)
    covariance: npt.NDArray[np.float64] = estimate.covariance_
    return covariance
