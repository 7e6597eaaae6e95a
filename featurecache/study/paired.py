"""Is one way of training better than another? Paired: the same seeds, the same images.

`right` and `other` (S, N) bool say which of N images the heads of S seeds predicted right, trained
in the one way and in the other; row s of both is of one seed, column n of one image. Everything
here is a pure function of its arguments, and what is random has a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import keys
from featurecache.study.metrics import LEVEL, RESAMPLES

Right = npt.NDArray[np.bool_]  # (S, N)


@dataclass(frozen=True)
class Difference:
    """How much more is right, as a share of the images, with its 95% interval."""

    difference: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Is the interval on one side of 0?"""
        return self.low > 0 or self.high < 0


def difference(right: Right, baseline: Right, seed: int = 0) -> Difference:
    """The mean over seeds and images of `right` less `other`, with a bootstrap interval.

    The interval answers for other images and for other seeds. Images are drawn anew with
    replacement, RESAMPLES times, each with what it is to all seeds (a paired bootstrap; Efron,
    1979). A few seeds can't be drawn anew: the bootstrap is too narrow for them, and drawing both
    counts twice what is of neither alone. So to every mean of drawn images Student's t of S - 1
    degrees of freedom is added, times the standard error that is of the seeds: their variance, less
    what chance on N images explains of it (two-way analysis of variance). With one seed the
    interval is over images alone.
    """
    gains = right.astype(np.int8) - baseline
    seeds, images = gains.shape
    rng = np.random.default_rng(seed)
    # A mean needs no more of the images drawn than how many there are of each sum over the seeds.
    sums, counts = np.unique(gains.sum(0, dtype=np.int64), return_counts=True)
    drawn = rng.multinomial(images, counts / images, RESAMPLES) @ sums / (seeds * images)
    if seeds > 1:
        drawn += rng.standard_t(seeds - 1, RESAMPLES) * np.sqrt(_seed_variance(gains))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(gains.mean()), float(low), float(high))


def _seed_variance(gains: npt.NDArray[np.int8]) -> float:
    """The variance of the mean of `each` (S, N) that is of the S seeds and not of images."""
    seeds, images = gains.shape
    of_seed = gains.mean(1)
    chance = gains - of_seed[:, None] - gains.mean(0) + gains.mean()
    noise = (chance**2).sum() / max(1, (seeds - 1) * (images - 1))
    return float(max(0.0, of_seed.var(ddof=1) - noise / images) / seeds)


def by_class(
    right: Right, baseline: Right, labels: npt.NDArray[np.integer[Any]], classes: Sequence[str]
) -> list[keys.Json]:
    """{class, n, difference} of each class that has images, the greatest gain first.

    `labels` (N,) are the places in `classes` of the images. Of equal differences the first class
    comes first.
    """
    gains = right.mean(0) - baseline.mean(0)
    counts = np.bincount(labels, minlength=len(classes))
    sums = np.bincount(labels, weights=gains, minlength=len(classes))
    rows = [
        {"class": name, "n": int(n), "difference": float(total / n)}
        for name, n, total in zip(classes, counts, sums, strict=True)
        if n
    ]
    return sorted(rows, key=lambda row: -row["difference"])
