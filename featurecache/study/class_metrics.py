"""Metrics of predictions that weigh classes equally, by scikit-learn.

`probabilities` (N, C) and `labels` (N,) in 0..C-1 belong to the same rows, as in study/metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from featurecache.study.metrics import Labels, Probabilities


class PerClass(TypedDict):
    """The metrics of a class; None where they are undefined.

    `precision` is undefined for a class that is never predicted, `recall` for one without rows,
    `f1` for one with neither, `auroc` (one-vs-rest) for one that has all rows or none.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None


class ClassMetrics(TypedDict):
    """Means over the classes where they are defined, and the metrics of each class.

    `balanced_accuracy` is the mean recall, `macro_f1` the mean F1, `auroc` the mean area under the
    one-vs-rest ROC curves, None if there are none. `brier` is the mean squared distance between
    the probabilities and the true class (1 for it, 0 for the others): from 0 to 2, and with two
    classes half of that, from 0 to 1, as in scikit-learn (Brier, 1950).
    """

    balanced_accuracy: float
    macro_f1: float
    auroc: float | None
    brier: float
    per_class: dict[str, PerClass]


def class_metrics(
    probabilities: Probabilities, labels: Labels, classes: Sequence[str]
) -> ClassMetrics:
    """The metrics of N > 0 rows; `classes` are the C names."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    count = len(classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(count), zero_division=np.nan
    )
    is_class = labels[:, None] == np.arange(count)  # (N, C)
    auroc = np.full(count, np.nan)
    for label in range(count):
        if 0 < is_class[:, label].sum() < len(labels):
            auroc[label] = roc_auc_score(is_class[:, label], probabilities[:, label])
    squares = ((probabilities.astype(np.float64) - is_class) ** 2).sum(1)
    return {
        "balanced_accuracy": float(np.nanmean(recall)),
        "macro_f1": float(np.nanmean(f1)),
        "auroc": None if np.isnan(auroc).all() else float(np.nanmean(auroc)),
        "brier": float(squares.mean() / (2 if count == 2 else 1)),
        "per_class": {
            name: {
                "precision": _number(precision[label]),
                "recall": _number(recall[label]),
                "f1": _number(f1[label]),
                "auroc": _number(auroc[label]),
            }
            for label, name in enumerate(classes)
        },
    }


def _number(value: np.floating[npt.NBitBase]) -> float | None:
    return None if np.isnan(value) else float(value)
