"""The rows of an epoch: their views, their minibatches, and the random numbers of both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


def mixture(
    shares: Mapping[str, float], rows: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A view drawn for each row, by `shares`: its index in `shares`, (rows,) int64."""
    weights = np.array(list(shares.values()), dtype=np.float64)
    return rng.choice(len(weights), size=rows, p=weights / weights.sum())


def batches(rows: int, size: int) -> list[tuple[int, int]]:
    """Starts and stops of minibatches. A single leftover row joins the last minibatch, because
    batch norm needs two rows."""
    starts = list(range(0, rows, size))
    if size > 1 and len(starts) > 1 and rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True))


def epoch_rng(seed: int, fold: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(fold, epoch)))
