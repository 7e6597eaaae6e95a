"""Several heads as one classifier: the mean, a vote, or a stacking ensemble of their predictions.

`members` are the probabilities (N, C) of each head for the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import softmax

from featurecache.errors import BadInput

# Probabilities below the resolution of float32 at 1 carry no more information than this.
_MIN_PROBABILITY = 1e-7

Probabilities = npt.NDArray[np.floating[Any]]  # (N, C)
Labels = npt.NDArray[np.integer[Any]]  # (N,)


def mean(members: Sequence[Probabilities]) -> Probabilities:
    """The mean of the members' probabilities (N, C)."""
    check(members)
    total = np.zeros(members[0].shape)
    for member in members:
        total += member
    return total / len(members)


def vote(members: Sequence[Probabilities], best: int) -> npt.NDArray[np.int64]:
    """The class (N,) that most members predict.

    If classes tie for the most votes, the result is the prediction of the member at index `best`,
    even if that class is not among them. This is the fallback of paper 003, whose three networks
    tied only if all of them disagreed.
    """
    check(members)
    predicted = np.stack([member_classes.argmax(1) for member_classes in members])
    rows = np.arange(predicted.shape[1])
    votes = np.zeros(members[0].shape, np.int64)
    for member_classes in predicted:
        votes[rows, member_classes] += 1
    top_count = votes.max(1, keepdims=True)
    tied = (votes == top_count).sum(1) > 1
    return np.where(tied, predicted[best], votes.argmax(1))


def fit_stack(members: Sequence[Probabilities], labels: Labels) -> npt.NDArray[np.float64]:
    """One weight per member, (M,), fitted on rows that none of them was trained on.

    The probabilities of the stacking ensemble are p ~ prod_m p_m ** w_m, normalised: logistic
    regression on the members' log-probabilities with weights shared by all classes. The weights
    maximise the likelihood under w >= 0 and a Gaussian prior of deviation 1 around 1/M. The prior's
    mean is the geometric mean of the members, so with few rows the result stays close to it, and a
    class without rows does no harm. (Paper 001 stacks with dense layers. On Tiny ImageNet, weights
    per pair of classes did worse than the better member: docs/design.md, 28.)
    """
    check(members)
    if len(labels) == 0:
        raise BadInput("there are no rows to fit a stacking ensemble on")
    member_logs = logs(members)
    rows, prior_mean = np.arange(len(labels)), 1 / len(members)

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        predicted = softmax(np.tensordot(weights, member_logs, 1), axis=1)
        likelihood = np.log(np.clip(predicted[rows, labels], 1e-300, None)).sum()
        deviation = weights - prior_mean
        predicted[rows, labels] -= 1
        slope = np.array([(predicted * log).sum() for log in member_logs])
        return float(deviation @ deviation / 2 - likelihood), deviation + slope

    start = np.full(len(members), prior_mean)
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(members))
    return np.asarray(solution.x, np.float64)


def stack(
    members: Sequence[Probabilities], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The probabilities (N, C) of a stacking ensemble with the weights of `fit_stack`."""
    check(members)
    return np.asarray(softmax(np.tensordot(weights, logs(members), 1), axis=1))


def check(members: Sequence[Probabilities]) -> None:
    """Raise BadInput if there are no members, or if their shapes differ."""
    shapes = {member.shape for member in members}
    if len(shapes) != 1:
        raise BadInput(
            f"the members of an ensemble must have the same shape (N, C), not {sorted(shapes)}"
        )


def logs(members: Sequence[Probabilities]) -> npt.NDArray[np.float64]:
    """The members' log-probabilities (M, N, C)."""
    return np.log(np.clip(np.stack(members).astype(np.float64), _MIN_PROBABILITY, None))
