"""Paired comparisons of two ways of training, on the same seeds and the same images.

`right` and `baseline` (S, N) bool mark which of N images the heads of S seeds predicted correctly,
trained in one way and in the other. Row s of both belongs to the same seed, column n to the same
image. Every function is a pure function of its arguments; random ones take a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from featurecache.study.metrics import LEVEL, RESAMPLES

Right = npt.NDArray[np.bool_]  # (S, N)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference in accuracy, as a share of the images, with its interval, usually of 95%."""

    difference: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


# A row of `by_class`; `class` is a keyword of Python.
ClassDifference = TypedDict("ClassDifference", {"class": str, "n": int, "difference": float})


def difference(right: Right, baseline: Right, seed: int = 0, level: float = LEVEL) -> Difference:
    """The mean of `right` minus `baseline` over seeds and images, with a bootstrap interval, of 95%
    unless `level` is given.

    The interval covers the choice of images and of seeds. Images are resampled with replacement,
    RESAMPLES times, each together with its results for all seeds (a paired bootstrap; Efron, 1979).
    Seeds are not resampled: with few of them the bootstrap interval is too narrow, and resampling
    both would count the interaction of seeds and images twice. Instead, each resampled mean gets an
    added term: a draw from Student's t with S - 1 degrees of freedom, times the standard error due
    to the seeds. That error comes from the variance between seeds minus the part that chance on N
    images explains (two-way analysis of variance). With one seed the interval covers images only.
    It is cut at -1 and 1, which no difference of accuracies exceeds.
    """
    gains = right.astype(np.int8) - baseline
    seeds, images = gains.shape
    rng = np.random.default_rng(seed)
    # The mean depends only on how many images were drawn of each value of the sum over seeds.
    sums, counts = np.unique(gains.sum(0, dtype=np.int64), return_counts=True)
    drawn = rng.multinomial(images, counts / images, RESAMPLES) @ sums / (seeds * images)
    if seeds > 1:
        drawn += rng.standard_t(seeds - 1, RESAMPLES) * np.sqrt(_seed_variance(gains))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).clip(-1, 1)
    return Difference(difference=float(gains.mean()), low=float(low), high=float(high))


def _seed_variance(gains: npt.NDArray[np.int8]) -> float:
    """The variance of the mean of `gains` (S, N) that is due to the S seeds, not to the images."""
    seeds, images = gains.shape
    seed_means = gains.mean(1)
    chance = gains - seed_means[:, None] - gains.mean(0) + gains.mean()
    noise = (chance**2).sum() / max(1, (seeds - 1) * (images - 1))
    return float(max(0.0, seed_means.var(ddof=1) - noise / images) / seeds)


def by_class(
    right: Right, baseline: Right, labels: npt.NDArray[np.integer[Any]], classes: Sequence[str]
) -> list[ClassDifference]:
    """{class, n, difference} of each class that has images, the largest gain first.

    `labels` (N,) are the indexes of the images' classes in `classes`. Among equal differences the
    first class comes first.
    """
    gains = right.mean(0) - baseline.mean(0)
    counts = np.bincount(labels, minlength=len(classes))
    sums = np.bincount(labels, weights=gains, minlength=len(classes))
    rows: list[ClassDifference] = [
        {"class": name, "n": int(n), "difference": float(total / n)}
        for name, n, total in zip(classes, counts, sums, strict=True)
        if n
    ]
    return sorted(rows, key=lambda row: -row["difference"])
