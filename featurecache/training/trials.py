"""The results of a sweep: a trial for each setting, and which of them wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.training.epoch_metrics import Results, ValidationMeans


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting: its values by their dotted keys, and the validation top-1 of its saved weights,
    as the mean with a 95% interval by Student's t over `n` folds (each averaged over the seeds), or
    without folds over `n` seeds.

    `low` and `high` are None for n = 1. If the loss of a network was no longer finite, all numbers
    are None and `diverged` counts such members. `best` and `last` are those of the training with
    the first seed.
    """

    setting: dict[str, Any]
    n: int = 0
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    diverged: int = 0
    best: ValidationMeans | None = None
    last: ValidationMeans | None = None


def trial_of(setting: dict[str, Any], results: Sequence[Results | None]) -> Trial:
    """The trial of a setting, from the results of each seed; None for one that diverged."""
    finite = [result for result in results if result is not None]
    if len(finite) < len(results):
        return Trial(setting=setting, diverged=len(results) - len(finite))
    by_seed = np.array([[row["val_top1"] for row in result.saved_rows] for result in finite])
    # Seeds on the same fold share its images, so only folds are independent, if there are several.
    scores = by_seed.mean(0) if by_seed.shape[1] > 1 else by_seed[:, 0]
    low, high = interval(scores)
    first = finite[0]
    return Trial(
        setting=setting,
        n=len(scores),
        top1=float(scores.mean()),
        low=low,
        high=high,
        best=first.best,
        last=first.last,
    )


def interval(
    scores: npt.NDArray[np.float64], least: float = 0.0
) -> tuple[float | None, float | None]:
    """The 95% interval of the mean of accuracies (n,), by Student's t, cut at 0 and 1; None for one
    accuracy. With `least` -1, of differences of accuracies.

    Student's t knows no limits, and that of few scores is wide. A mean accuracy is never outside 0
    to 1, so the cut interval contains it exactly as often.
    """
    if len(scores) < 2:
        return None, None
    from scipy import stats  # takes most of a second

    mean = float(scores.mean())
    half = float(stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores))
    return max(least, mean - half), min(1.0, mean + half)


def winner_of(trials: Sequence[Trial]) -> int | None:
    """The index of the highest top1, the first of equals; None if every setting diverged."""
    tops = {index: trial.top1 for index, trial in enumerate(trials) if trial.top1 is not None}
    return max(tops, key=lambda index: (tops[index], -index), default=None)
