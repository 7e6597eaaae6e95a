"""Ridge heads on weighted mixtures of views of the same images, and the weights of least validation
loss.

The Gram matrix of a mixture is the weighted sum of those of its views, so a head costs one solve
whatever the number of rows. Its validation loss is a smooth function of the weights, with an exact
gradient through the solve (the implicit function theorem): with W = (G + p I)^-1 B for a penalty p,
loss L(W) and A = (G + p I)^-1 dL/dW, the derivative by the weight of view v is
tr(A' (B_v - G_v W)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.heads.closed_forms import PENALTIES
from featurecache.heads.weighted_rows import Labels, Vectors

Array = npt.NDArray[np.float64]
MAX_WIDTH = 1536  # wider vectors are reduced to as many principal components of the first view

_STEPS = 60  # of the optimizer
_TOLERANCE = 1e-7  # of the loss, relative to that of the first view


class Loss(NamedTuple):
    """The validation loss at some weights (V,) and log penalty, and its derivatives."""

    value: float
    by_weight: Array  # (V,)
    by_log_penalty: float


class Mixtures:
    """Heads for mixtures of V views of N images, validated on M others; the first view is clean.

    `read(v)` returns the vectors (N, D) of view v, whose `labels` are (N,); `X` (M, D) and `y` (M,)
    are the validation rows. Memory: V Gram matrices (D, D) float32. Vectors are taken about the
    mean of the clean ones, with a constant feature in place of a bias, so that everything is linear
    in the weights. The loss is half the mean squared error of the one-hot targets.
    """

    def __init__(
        self,
        read: Callable[[int], Vectors],
        views: int,
        labels: Labels,
        X: Vectors,
        y: Labels,
        classes: int,
    ) -> None:
        clean = read(0)
        self._mean = clean.mean(0, dtype=np.float64).astype(np.float32)
        self._axes = _principal_axes(clean - self._mean)
        self._constant = float((clean - self._mean).std() * np.sqrt(clean.shape[1])) or 1.0
        targets = _targets(labels, classes)
        self._y = y
        self._rows = self._prepared(X)
        validation = _targets(y, classes)
        self._second = (self._rows.T @ self._rows / len(y)).astype(np.float64)
        self._cross = (self._rows.T @ validation / len(y)).astype(np.float64)
        self._square = float((validation**2).sum() / len(y))
        width = self._rows.shape[1]
        self._grams = np.empty((views, width * width), np.float32)
        self._targets = np.empty((views, width * classes), np.float32)
        for view in range(views):
            rows = self._prepared(clean if view == 0 else read(view))
            self._grams[view] = (rows.T @ rows).ravel() / len(labels)
            self._targets[view] = (rows.T @ targets).ravel() / len(labels)
        self.unit = float(np.trace(self._grams[0].reshape(width, width))) / width or 1.0

    def loss(self, weights: Array, log_penalty: float) -> Loss:
        """The loss of the head with these weights and a penalty of exp(`log_penalty`) mean
        eigenvalues of the clean Gram matrix."""
        from scipy.linalg import cho_factor, cho_solve

        gram, targets, penalty = self._sums(weights, log_penalty)
        factor = cho_factor(gram, overwrite_a=True, check_finite=False)
        head = cho_solve(factor, targets, check_finite=False)
        product = self._second @ head
        value = 0.5 * (np.sum(head * product) - 2 * np.sum(head * self._cross) + self._square)
        adjoint = cho_solve(factor, product - self._cross, check_finite=False)
        outer = (adjoint @ head.T).astype(np.float32).ravel()
        by_weight = self._targets @ adjoint.astype(np.float32).ravel() - self._grams @ outer
        return Loss(
            float(value), by_weight.astype(np.float64), float(-penalty * np.sum(adjoint * head))
        )

    def right(self, weights: Array, log_penalty: float) -> npt.NDArray[np.bool_]:
        """(M,) which validation rows the head with these weights classifies correctly."""
        from scipy.linalg import solve

        gram, targets, _ = self._sums(weights, log_penalty)
        head = solve(gram, targets, assume_a="pos", check_finite=False)
        result: npt.NDArray[np.bool_] = (self._rows @ head.astype(np.float32)).argmax(1) == self._y
        return result

    def clean_penalty(self) -> float:
        """The log penalty of least loss for the clean view alone."""
        clean = np.eye(1, len(self._grams))[0]
        candidates = np.log(PENALTIES).tolist()
        return float(min(candidates, key=lambda log_penalty: self.loss(clean, log_penalty).value))

    def best_weights(self, share: float, on_step: Callable[[int], None]) -> tuple[Array, float]:
        """The weights (V,) of least loss, which sum to 1, and the loss, where 1 - `share` of every
        mixture is clean beside them. The penalty is optimised with them."""
        from scipy.optimize import Bounds, LinearConstraint, minimize

        views, clean = len(self._grams), np.eye(1, len(self._grams))[0]
        start = self.clean_penalty()
        scale = self.loss(clean, start).value or 1.0
        steps = 0

        def objective(point: Array) -> tuple[float, Array]:
            nonlocal steps
            steps += 1
            on_step(min(steps, _STEPS))
            loss = self.loss((1 - share) * clean + share * point[:-1], float(point[-1]))
            gradient = np.append(share * loss.by_weight, loss.by_log_penalty)
            return loss.value / scale, gradient / scale

        limits = np.log(PENALTIES[[0, -1]])
        lower, upper = np.append(np.zeros(views), limits[0]), np.append(np.ones(views), limits[1])
        best = minimize(
            objective,
            np.append(np.full(views, 1 / views), start),
            jac=True,
            method="SLSQP",
            bounds=Bounds(lower, upper),
            constraints=LinearConstraint(np.append(np.ones(views), 0), 1, 1),
            options={"maxiter": _STEPS, "ftol": _TOLERANCE},
        )
        weights = np.clip(best.x[:-1], 0, 1)
        return weights / weights.sum(), float(best.fun * scale)

    def _sums(self, weights: Array, log_penalty: float) -> tuple[Array, Array, float]:
        """G + p I (D, D), B (D, C), p."""
        width = self._rows.shape[1]
        used: Any = np.flatnonzero(weights)
        if 2 * len(used) > len(weights):
            used = slice(None)  # selecting them would copy as much as the sum reads
        shares = weights[used].astype(np.float32)
        gram = (shares @ self._grams[used]).astype(np.float64).reshape(width, width)
        targets = (shares @ self._targets[used]).astype(np.float64).reshape(width, -1)
        penalty = float(np.exp(log_penalty)) * self.unit
        gram[np.diag_indices(width)] += penalty
        return gram, targets, penalty

    def _prepared(self, X: Vectors) -> Vectors:
        rows = X - self._mean
        if self._axes is not None:
            rows = rows @ self._axes
        return np.hstack([rows, np.full((len(X), 1), self._constant, np.float32)])


def mean_distance(means: Array, others: Array, counts: npt.NDArray[np.int64]) -> float:
    """The root of the mean squared distance between the means (C, D) of the classes with rows."""
    is_there = counts > 0
    return float(np.sqrt(((means - others)[is_there] ** 2).sum(1).mean()))


def class_means(X: Vectors, y: Labels, classes: int) -> Array:
    """(C, D); 0 for a class without rows."""
    sums = np.eye(classes, dtype=np.float32)[y].T @ X
    result: Array = sums / np.maximum(np.bincount(y, minlength=classes), 1)[:, None]
    return result


def cross_entropy(logits: npt.NDArray[np.floating], y: Labels) -> float:
    """The mean loss of logits (N, C) in nats."""
    from scipy.special import logsumexp

    scores = logits.astype(np.float64)
    return float((logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]).mean())


def best_of_each(names: Sequence[str], ranking: Sequence[int], count: int) -> list[int]:
    """The first `count` of a `ranking` of indexes with different `names`."""
    first: dict[str, int] = {}
    for index in ranking:
        first.setdefault(names[index], index)
    return list(first.values())[:count]


def _targets(y: Labels, classes: int) -> Vectors:
    return np.eye(classes, dtype=np.float32)[y] - np.float32(1 / classes)


def _principal_axes(centred: Vectors) -> Vectors | None:
    if centred.shape[1] <= MAX_WIDTH:
        return None
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    result: Vectors = axes[:, : -MAX_WIDTH - 1 : -1].astype(np.float32)
    return result
