"""The classes of a report: the table of all, and the data of the matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.runs.predictions import Predictions
from featurecache.stages.heads.evaluate import Evaluation
from featurecache.stages.looking.report_pictures import class_label_name
from featurecache.study import metrics


@dataclass(frozen=True, kw_only=True)
class ClassTableRow:
    """A class, each run's accuracy on its `n` images, and the two classes that the first run
    mistakes most of them for, with their numbers of images."""

    name: str
    readable_name: str
    n: int
    top1: list[float | None]
    mistaken_for: list[tuple[str, int]]


def class_table(predictions: Predictions, evaluations: Sequence[Evaluation]) -> list[ClassTableRow]:
    """A row for each class, in the order of the classes."""
    record = predictions.records[0]
    counts = _counts(predictions, 0)
    np.fill_diagonal(counts, 0)
    rows = []
    for label, name in enumerate(record.classes):
        mistakes = Counter({other: int(n) for other, n in enumerate(counts[label]) if n})
        rows.append(
            ClassTableRow(
                name=name,
                readable_name=class_label_name(record, label),
                n=evaluations[0].classes[name]["n"],
                top1=[evaluation.classes[name]["top1"] for evaluation in evaluations],
                mistaken_for=[
                    (class_label_name(record, other), n) for other, n in mistakes.most_common(2)
                ],
            )
        )
    return rows


def matrix_data(predictions: Predictions, names: Sequence[str]) -> dict[str, Any]:
    """The data for the page's matrices: their non-zero cells, and orders of the classes."""
    record = predictions.records[0]
    matrices = []
    for index, name in enumerate(names):
        counts = _counts(predictions, index)
        true, answers = np.nonzero(counts)
        totals = np.maximum(counts.sum(1), 1)
        matrices.append(
            {
                "name": name,
                "cells": np.stack([true, answers, counts[true, answers]], 1).tolist(),
                "accuracy": np.argsort(-np.diagonal(counts) / totals, kind="stable").tolist(),
                "alike": metrics.order_of_confusion(counts),
            }
        )
    labels = range(len(record.classes))
    return {
        "names": [class_label_name(record, label) for label in labels],
        "n": np.bincount(predictions.labels[0], minlength=len(labels)).tolist(),
        "runs": matrices,
    }


def _counts(predictions: Predictions, index: int) -> npt.NDArray[np.int64]:
    predicted = predictions.probabilities[index].argmax(1)
    classes = len(predictions.records[index].classes)
    return metrics.confusion(predictions.labels[index], predicted, classes)
