"""How much generated vectors resemble real ones: their distributions, neighbourhoods and copies.

`generated` (N, D) and `reference` (M, D) are vectors of one backbone. Distances are Euclidean, and
computed in blocks, so memory does not grow with N times M. Every function is a pure function of its
arguments; random ones take a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.study.metrics import LEVEL

RESAMPLES = 1000  # of each interval
_BLOCK_ROWS = 1024
_BLOCK_MB = 64

Rows = npt.NDArray[np.floating[Any]]  # (N, D)
Values = npt.NDArray[np.float64]  # (N,)


class Measure(NamedTuple):
    """A value with its bootstrap interval of 95%."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How two sets of vectors overlap; the mean of each field is the measure of that name.

    A ball around a vector reaches to its k-th nearest neighbour in its own set. `precision`: is a
    generated vector in a reference ball? `density`: in how many, over k? `recall`: is a reference
    vector in a generated ball? `coverage`: is a generated vector in the ball of a reference vector?
    """

    precision: Values  # (N,)
    density: Values  # (N,)
    recall: Values  # (M,)
    coverage: Values  # (M,)


def overlap(generated: Rows, reference: Rows, k: int = 5) -> Overlap:
    """The overlap of vectors with reference vectors; each set has more than k.

    Precision and recall are those of Kynkäänniemi et al. (NeurIPS 2019), density and coverage those
    of Naeem et al. (ICML 2020).
    """
    from sklearn.metrics import pairwise_distances_chunked

    reference_radii = _radii(reference, k)
    generated_radii = _radii(generated, k)
    balls = []
    is_recalled = np.zeros(len(reference), bool)
    is_covered = np.zeros(len(reference), bool)
    first = 0
    for distances in pairwise_distances_chunked(generated, reference, working_memory=_BLOCK_MB):
        inside = distances < reference_radii
        balls.append(inside.sum(1))
        is_covered |= inside.any(0)
        radii = generated_radii[first : first + len(distances), None]
        is_recalled |= (distances < radii).any(0)
        first += len(distances)
    counts = np.concatenate(balls)
    return Overlap(
        precision=(counts > 0).astype(np.float64),
        density=counts / k,
        recall=is_recalled.astype(np.float64),
        coverage=is_covered.astype(np.float64),
    )


def _radii(rows: Rows, k: int) -> Values:
    """The distance (N,) of each row to its k-th nearest other row."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows)
    distances, _ = index.kneighbors()
    return np.asarray(distances[:, -1], np.float64)


def kid_terms(generated: Rows, reference: Rows) -> tuple[Values, Values]:
    """The contributions (N,), (M,) of the vectors to their kernel distance, whose value is the sum
    of the two means.

    It is the unbiased estimate of the squared maximum mean discrepancy with the kernel
    (x·y / D + 1)³ (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018), over all vectors instead
    of random subsets. It may be slightly below 0.
    """
    across, back = _kernel_means(generated, reference)
    return _other_means(generated) - across, _other_means(reference) - back


def _kernel_means(a: Rows, b: Rows) -> tuple[Values, Values]:
    """The mean kernel of each row of `a` with the rows of `b`, and of each row of `b` with those of
    `a`."""
    exact = np.asarray(b, np.float64)
    means, sums = [], np.zeros(len(b))
    for start in range(0, len(a), _BLOCK_ROWS):
        block = np.asarray(a[start : start + _BLOCK_ROWS], np.float64)
        kernel = (block @ exact.T / a.shape[1] + 1) ** 3
        means.append(kernel.mean(1))
        sums += kernel.sum(0)
    return np.concatenate(means), sums / len(a)


def _other_means(rows: Rows) -> Values:
    """The mean kernel of each row with the other rows, (N,)."""
    means, _ = _kernel_means(rows, rows)
    with_self = ((np.asarray(rows, np.float64) ** 2).sum(1) / rows.shape[1] + 1) ** 3
    return np.asarray((means * len(rows) - with_self) / (len(rows) - 1))


def kid(terms: tuple[Values, Values]) -> Measure:
    """The kernel distance of `kid_terms`, with its interval.

    The interval resamples both sets of vectors. An estimate that is a mean over pairs moves twice
    as far as the mean of its terms when a vector is replaced (Hoeffding's projection), so the terms
    are resampled and their deviations doubled.
    """
    value = sum(float(part.mean()) for part in terms)
    rng = np.random.default_rng(0)
    drawn = sum(2 * (_resampled(part, rng) - part.mean()) for part in terms)
    low, high = value + np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measure(value, float(low), float(high))


def mean(values: Values, seed: int = 0) -> Measure:
    """The mean of (N,) values, with the interval of a percentile bootstrap (Efron, 1979)."""
    drawn = _resampled(values, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measure(float(values.mean()), float(low), float(high))


def _resampled(values: Values, rng: np.random.Generator) -> Values:
    """The means of RESAMPLES resamples of the values, (RESAMPLES,)."""
    # A mean depends only on how often each distinct value was drawn.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), RESAMPLES)
    return np.asarray(drawn @ distinct / len(values))


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest training vector of each generated one: its index and distance, and whether it is
    closer than to any other training vector."""

    index: npt.NDArray[np.int64]  # (N,)
    distance: Values  # (N,)
    is_copy: npt.NDArray[np.bool_]  # (N,)


def nearest_training(
    generated: Rows, training: Rows, sources: npt.NDArray[np.int64] | None = None
) -> Nearest:
    """The nearest of at least 3 training vectors (T, D) for each generated vector (N, D).

    `sources` (N,) are the indexes of the training vectors that the generated ones were made from,
    which do not count. A generated vector counts as a copy if it is closer to its nearest training
    vector than that one is to its own nearest neighbour (Alaa et al., "How Faithful is your
    Synthetic Data?", ICML 2022, call the others authentic). Of real images it is less than half.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute").fit(training)
    distances, neighbours = index.kneighbors(generated, 1 if sources is None else 2)
    rows = np.arange(len(generated))
    columns = np.zeros(len(generated), np.int64)
    if sources is not None:
        columns = (neighbours[:, 0] == sources).astype(np.int64)
    nearest, distance = neighbours[rows, columns], distances[rows, columns]
    own_distances, own_neighbours = index.kneighbors(training[nearest], 3)
    # The nearest neighbour of a training vector is itself, or a duplicate of it; and a source does
    # not count here either.
    left_out = own_neighbours == nearest[:, None]
    if sources is not None:
        left_out |= own_neighbours == sources[:, None]
    spacing = np.where(left_out, np.inf, own_distances).min(1)
    return Nearest(
        index=np.asarray(nearest, np.int64),
        distance=np.asarray(distance, np.float64),
        is_copy=distance < spacing,
    )
