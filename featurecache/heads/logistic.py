"""Multinomial logistic regression on vectors, and the choice of its penalty.

The mean cross-entropy plus weight_decay / 2 * sum(w**2) is minimised by lbfgs; biases are free of
penalty. The problem is convex, so there is no seed, no learning rate and no number of epochs.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.heads.group_splits import group_parts

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Weight decays to choose from, for vectors of deviation 1: scikit-learn's C is 1 / (N * decay).
DECAYS = 10.0 ** np.arange(0.0, -6.0, -1.0)
MAX_STEPS = 300  # of lbfgs; beyond it the accuracy on held-out rows no longer changed
_PATIENCE = 2  # decays in a row that must do worse before weaker ones are not tried any more
PARTS = 5  # of the rows of each class; one is held out
_SMALL = 1 << 30  # products per step, below which several threads wait for each other
# Products per step up to which every part is held out once; above it only the first.
_CHEAP = 1 << 28
# Products per step on which the penalty is chosen: about 20 rows of each of 200 classes.
_MAX_PRODUCTS = 1 << 30
_LOWER = 10.0 ** np.arange(0.0, -2.5, -0.5)  # decays that are tried on more rows than that
_UNSEEN = -30.0  # logit of a class without training rows, below those of the others


class Solution(NamedTuple):
    """logits = X @ weight.T + bias; weight (C, D) float32, bias (C,) float32."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    is_converged: bool

    def logits(self, X: Vectors) -> Vectors:
        """(N, C) of vectors (N, D)."""
        return X @ self.weight.T + self.bias


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """The setting with the most held-out rows right. `right` (N,) marks the rows that were
    classified correctly by a fit without them; only the rows in `test_rows` (N,) were held out."""

    standardise: bool
    decay: float  # for vectors of deviation 1
    weight_decay: float  # for the vectors as they are after `standardise`
    right: Mask
    test_rows: Mask

    @property
    def top1(self) -> float:
        """The share of held-out rows that were right."""
        return float(self.right[self.test_rows].mean())


class Solver:
    """Fits of the same rows at several weight decays, each starting from the previous one."""

    def __init__(
        self, X: Vectors, y: Labels, classes: int, weights: npt.NDArray[np.float64] | None = None
    ) -> None:
        """`X` (N, D), `y` (N,) in 0..classes-1; `weights` (N,) of the rows have mean 1."""
        from sklearn.linear_model import LogisticRegression

        self.classes, self.y, self.weights = classes, y, weights
        # Centred vectors of deviation 1 have the same optimum, and lbfgs takes far fewer steps.
        self.mean = X.mean(0, dtype=np.float64).astype(np.float32)
        self.scale = float(X.std(0, dtype=np.float64).mean()) or 1.0
        self.rows = (X - self.mean) / np.float32(self.scale)
        self.model = LogisticRegression(max_iter=MAX_STEPS, warm_start=True)

    def solve(self, weight_decay: float) -> Solution:
        """The minimum at this weight decay. Raises BadInput for rows of a single class."""
        from sklearn.exceptions import ConvergenceWarning

        if len(np.unique(self.y)) < 2:
            raise BadInput("all training images are of one class; a head needs at least two")
        inverse = self.scale**2 / (max(weight_decay, 1e-12) * len(self.y))
        with warnings.catch_warnings(), few_threads(self.rows.size * self.classes):
            # Solution.is_converged reports it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.set_params(C=inverse).fit(self.rows, self.y, self.weights)
        fitted, intercepts = self.model.coef_, self.model.intercept_
        if len(fitted) == 1:  # of two classes scikit-learn fits the difference
            fitted = np.concatenate([-fitted, fitted]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weight = np.zeros((self.classes, self.rows.shape[1]))
        bias = np.full(self.classes, intercepts.min() + _UNSEEN)
        weight[self.model.classes_] = fitted / self.scale
        bias[self.model.classes_] = intercepts - fitted @ (self.mean / self.scale)
        converged = bool((self.model.n_iter_ < MAX_STEPS).all())
        return Solution(weight.astype(np.float32), bias.astype(np.float32), converged)


def choose_penalty(
    X: Vectors, y: Labels, classes: int, part_numbers: Labels | None = None
) -> Penalty:
    """Choose the weight decay, and whether to standardise, on held-out parts of these rows.

    A fifth of each class is held out, each fifth once; of many rows only one fifth. Of still more
    rows a part chooses the scaling, and the strongest decay that is tried on all of them. Decays
    are lowered until the accuracy drops. Rows must be different images. `part_numbers` (N,) are the
    fifths, by default those of `parts_of`. Raises BadInput if there are too few to hold one out.
    """
    order = _rank_in_class(y, classes)
    if part_numbers is None:
        part_numbers = order % PARTS
    scalings: tuple[bool, ...] = (True, False)
    decays: npt.NDArray[np.floating] = DECAYS
    if X.size * classes > _MAX_PRODUCTS:
        # The first rows of each class choose the scaling and where to begin: with more rows the
        # best decay is lower.
        subset = order < max(2 * PARTS, int(_MAX_PRODUCTS / (X.shape[1] * classes**2)))
        if not subset.all():
            start = choose_penalty(X[subset], y[subset], classes, part_numbers[subset])
            scalings, decays = (start.standardise,), start.decay * _LOWER
    parts = [part_numbers == part for part in range(PARTS - 1, -1, -1)]
    if X.size * classes > _CHEAP:
        parts = parts[:1]
    parts = [
        test_rows for test_rows in parts if test_rows.any() and len(np.unique(y[~test_rows])) > 1
    ]
    if not parts:
        raise BadInput("too few different training images to choose a setting on; add images")
    best: Penalty | None = None
    for standardise in scalings:
        for penalty in _path(X, y, classes, parts, standardise, decays):
            if best is None or penalty.right.sum() > best.right.sum():
                best = penalty
    assert best is not None
    return best


def parts_of(y: Labels, classes: int, groups: Labels | None = None) -> Labels:
    """(N,) the number of the fifth that each row is in; each has about a fifth of each class. Where
    only one fifth is held out, it is the last. Rows with the same number in `groups` (N,) are in
    the same fifth. Raises BadInput if all are of one group."""
    if groups is not None:
        return group_parts(groups, y, PARTS)
    return _rank_in_class(y, classes) % PARTS


def _path(
    X: Vectors,
    y: Labels,
    classes: int,
    parts: Sequence[Mask],
    standardise: bool,
    decays: npt.NDArray[np.floating],
) -> Iterator[Penalty]:
    """The results of weaker and weaker penalties."""
    scaled = []
    for test_rows in parts:
        mean, deviation = moments(X[~test_rows]) if standardise else (np.float32(0), np.float32(1))
        scaled.append((X - mean) / deviation)
    solvers = [
        Solver(rows[~test_rows], y[~test_rows], classes)
        for rows, test_rows in zip(scaled, parts, strict=True)
    ]
    held_out = np.any(parts, axis=0)
    best, worse = -1, 0
    for decay in decays:
        right = np.zeros(len(y), np.bool_)
        for rows, test_rows, solver in zip(scaled, parts, solvers, strict=True):
            fitted = solver.solve(decay * solver.scale**2)
            right[test_rows] = fitted.logits(rows[test_rows]).argmax(1) == y[test_rows]
        own_decay = float(decay) * float(np.mean([solver.scale**2 for solver in solvers]))
        yield Penalty(
            standardise=standardise,
            decay=float(decay),
            weight_decay=own_decay,
            right=right,
            test_rows=held_out,
        )
        worse = worse + 1 if right.sum() < best else 0
        if worse == (_PATIENCE if len(decays) > len(_LOWER) else 1):
            return
        best = max(best, int(right.sum()))


def moments(X: Vectors) -> tuple[Vectors, Vectors]:
    """Mean (D,) and deviation (D,) of vectors; a feature that never varies has deviation 1."""
    deviation = X.std(0, dtype=np.float64)
    mean = X.mean(0, dtype=np.float64)
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def _rank_in_class(y: Labels, classes: int) -> npt.NDArray[np.int64]:
    """(N,) the position of each row among those of its class, in a fixed random order."""
    shuffled = np.random.default_rng(0).permutation(len(y))
    ordered = shuffled[np.argsort(y[shuffled], kind="stable")]
    counts = np.bincount(y, minlength=classes)
    ranks = np.empty(len(y), np.int64)
    ranks[ordered] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def few_threads(products: int) -> contextlib.AbstractContextManager[object]:
    """One thread for small products: on a busy machine several were 30 times as slow."""
    if products >= _SMALL:
        return contextlib.nullcontext()
    limit: contextlib.AbstractContextManager[object] = _threads().limit(limits=1)
    return limit


@functools.cache
def _threads() -> Any:
    """The thread pools of this process: to find them takes longer than a small fit."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
