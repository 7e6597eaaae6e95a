"""Metrics of predictions.

`probabilities` (N, C) and `labels` (N,) in 0..C-1 belong to the same rows. `right` (N,) bool marks
the rows that were predicted correctly. Among equal probabilities the first class is predicted, as
in argmax. Every function is a pure function of its arguments; random ones take a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from featurecache import text
from featurecache.errors import BadInput

BINS = 15  # of a reliability diagram, as in Guo et al.
RESAMPLES = 10_000
LEVEL = 0.95  # of an interval

Labels = npt.NDArray[np.integer[Any]]  # (N,)
Probabilities = npt.NDArray[np.floating[Any]]  # (N, C)
Right = npt.NDArray[np.bool_]  # (N,)


class ClassScores(TypedDict):
    """The number of rows of a class, and the accuracy on them; None without rows."""

    n: int
    top1: float | None


class Scores(TypedDict):
    """The result of `evaluate_predictions`."""

    top1: float
    top3: float
    top5: float
    loss: float
    classes: dict[str, ClassScores]


class Bin(TypedDict):
    """A bin of a reliability diagram; the means are None without rows."""

    low: float
    high: float
    n: int
    confidence: float | None
    top1: float | None


class Calibration(TypedDict):
    """The result of `calibration`."""

    ece: float
    bins: list[Bin]


# A row of `best_and_worst`; `class` is a keyword of Python.
ClassRow = TypedDict(
    "ClassRow",
    {
        "class": str,
        "name": str,
        "n": int,
        "top1": float,
        "wrong": int,
        "confused_with": str | None,
        "confused": int,
    },
)


class McNemar(TypedDict):
    """The result of `mcnemar`."""

    both: int
    only: int
    only_other: int
    neither: int
    p: float


def evaluate_predictions(
    probabilities: Probabilities, labels: Labels, classes: Sequence[str]
) -> Scores:
    """Metrics of probabilities (N, C) against labels (N,) in 0..C-1; `classes` are the C names.

    `top1`, `top3` and `top5` are the shares of rows whose true class is among the k most probable
    (among equal probabilities the first class comes first, as in argmax). `loss` is the mean
    negative log-likelihood in nats, with probabilities clipped at 1e-12. `classes` maps each name
    to its number of rows `n` and its `top1`, which is None if n is 0. Raises BadInput if there are
    no rows or the shapes don't match.
    """
    rows, columns = len(labels), len(classes)
    if rows == 0:
        raise BadInput("there are no rows to evaluate")
    if probabilities.shape != (rows, columns):
        raise BadInput(f"expected probabilities {(rows, columns)}, not {probabilities.shape}")
    if labels.min() < 0 or labels.max() >= columns:
        raise BadInput(f"labels must be in 0..{columns - 1}, the indexes of the class names")
    true = probabilities[np.arange(rows), labels][:, None]
    is_earlier = np.arange(columns) < labels[:, None]
    rank = ((probabilities > true) | ((probabilities == true) & is_earlier)).sum(1)
    per_class: dict[str, ClassScores] = {}
    for label, name in enumerate(classes):
        mask = labels == label
        n = int(mask.sum())
        per_class[name] = {"n": n, "top1": float((rank[mask] == 0).mean()) if n else None}
    return {
        "top1": float((rank < 1).mean()),
        "top3": float((rank < 3).mean()),
        "top5": float((rank < 5).mean()),
        "loss": float(-np.log(np.clip(true.astype(np.float64), 1e-12, None)).mean()),
        "classes": per_class,
    }


def calibration(probabilities: Probabilities, labels: Labels, bins: int = BINS) -> Calibration:
    """{ece, bins}: how far the confidence of the predictions is from their accuracy.

    A row's confidence is its highest probability. The bins ((b-1)/B, b/B] have equal widths; each
    is {low, high, n, confidence, top1}, with its number of rows and their means, which are None if
    n is 0. `ece`, the expected calibration error, is the sum over the bins of
    n/N * |top1 - confidence| (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    equation 3).
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    edges = np.arange(bins + 1) / bins
    # Rounding may leave a probability slightly above 1.
    bin_index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    ece, table = 0.0, []
    for index in range(bins):
        in_bin = bin_index == index
        n = int(in_bin.sum())
        row: Bin = {
            "low": float(edges[index]),
            "high": float(edges[index + 1]),
            "n": n,
            "confidence": None,
            "top1": None,
        }
        if n:
            mean, top1 = float(confidence[in_bin].mean()), float(right[in_bin].mean())
            row["confidence"], row["top1"] = mean, top1
            ece += n / len(labels) * abs(top1 - mean)
        table.append(row)
    return {"ece": float(ece), "bins": table}


def confusion(labels: Labels, predicted: Labels, classes: int) -> npt.NDArray[np.int64]:
    """(C, C): how many rows of each true class (row) were predicted as each class (column)."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def order_of_confusion(counts: npt.NDArray[np.int64]) -> list[int]:
    """The classes of a `confusion`, ordered so that classes confused with each other are adjacent.

    The order is that of the leaves of an average-linkage clustering. The similarity of two classes
    is the mean of the two shares of rows predicted as the other class.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if len(counts) < 3:
        return list(range(len(counts)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance, checks=False), "average")
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]


def best_and_worst(
    counts: npt.NDArray[np.int64],
    classes: Sequence[str],
    words: Mapping[str, str],
    count: int = 5,
) -> tuple[list[ClassRow], list[ClassRow]]:
    """The `count` classes of highest accuracy in a `confusion`, and the `count` of lowest.

    Table 3 of paper 003 gives class, readable name and number of misclassified images. Here a row
    is {class, name, n, top1, wrong, confused_with, confused}. `confused_with` is the class that
    most of the misclassified rows were predicted as (in a tie the first), and `confused` their
    number; they are None and 0 if all rows are right. Classes without rows are left out. Among
    equal accuracies the first class comes first.
    """
    rows: list[ClassRow] = []
    for label, name in enumerate(classes):
        n = int(counts[label].sum())
        if n == 0:
            continue
        others = counts[label].copy()
        others[label] = 0
        confused = int(others.max())
        rows.append(
            {
                "class": name,
                "name": text.readable_name(name, words),
                "n": n,
                "top1": float(counts[label, label] / n),
                "wrong": int(others.sum()),
                "confused_with": classes[int(others.argmax())] if confused else None,
                "confused": confused,
            }
        )
    return (
        sorted(rows, key=lambda row: -row["top1"])[:count],
        sorted(rows, key=lambda row: row["top1"])[:count],
    )


def interval(right: Right, seed: int = 0) -> list[float]:
    """[low, high]: the 95% percentile bootstrap interval of the share of right rows.

    The bootstrap resamples rows with replacement, RESAMPLES times (Efron, 1979). If R of N rows are
    right, a resample has Binomial(N, R/N) right rows, so only that number is drawn. If all rows are
    right, or none, every resample is the same and would claim certainty: then it is the exact
    binomial interval (Clopper and Pearson, 1934).
    """
    n = len(right)
    if right.all() or not right.any():
        tail = ((1 - LEVEL) / 2) ** (1 / n)
        return [tail, 1.0] if right.all() else [0.0, 1 - tail]
    drawn = np.random.default_rng(seed).binomial(n, right.sum() / n, RESAMPLES) / n
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def mcnemar(right: Right, baseline: Right) -> McNemar:
    """{both, only, only_other, neither, p}: the exact McNemar test of two predictions of the same
    rows.

    `both`, `only`, `only_other` and `neither` count the rows that both, only `right`, only
    `baseline`, or neither predicted correctly. If the two are equally good, a row that only one of
    them predicted correctly belongs to either with probability 1/2. p is the two-sided binomial
    probability of a split at least as uneven (McNemar, 1947), and 1 if there are no such rows.
    """
    from scipy.stats import binomtest  # takes most of a second

    only, only_other = int((right & ~baseline).sum()), int((baseline & ~right).sum())
    differing = only + only_other
    return {
        "both": int((right & baseline).sum()),
        "only": only,
        "only_other": only_other,
        "neither": int((~right & ~baseline).sum()),
        "p": float(binomtest(only, differing, 0.5).pvalue) if differing else 1.0,
    }


def error_correlation(rights: Sequence[Right]) -> list[list[float | None]]:
    """Pearson's correlation (M x M) between the errors of M predictions.

    An error is 1 for a wrong row and 0 for a right one. Paper 003 uses it to explain why voting
    gains little. It is None for a prediction whose rows are all right or all wrong.
    """
    wrong = ~np.array(rights)
    centred = wrong - wrong.mean(1, keepdims=True)
    norms = [
        float(np.sqrt((row**2).sum())) if errors.any() and not errors.all() else None
        for row, errors in zip(centred, wrong, strict=True)
    ]
    return [
        [float(np.clip(a @ b / (m * n), -1, 1)) if m and n else None
         for b, n in zip(centred, norms, strict=True)]
        for a, m in zip(centred, norms, strict=True)
    ]  # fmt: skip
