"""Stage 2 of a search, scores without training, and the weights of stage 3: from vectors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from typing_extensions import TypedDict

from featurecache.executors import Progress
from featurecache.features.spaces import Space
from featurecache.heads.closed_forms import solve
from featurecache.heads.mixture_weights import Mixtures, class_means, cross_entropy, mean_distance
from featurecache.heads.weighted_rows import Rows, Vectors
from featurecache.images.datasets import Dataset
from featurecache.json_files import Strict
from featurecache.lookup.held_spaces import side_by_side
from featurecache.stages.search.search_images import SearchImages
from featurecache.study.paired import by_class, difference
from featurecache.text import readable_name

_MAX_CLASSES = 3  # listed in each of `helps` and `hurts`


class OperationScore(TypedDict):
    """What an atomic policy does to the sample, without any training.

    `loss` and `top1` are those of a ridge head, fitted on the clean validation images, on the
    sample seen through the policy (density matching, Lim et al., "Fast AutoAugment", 2019).
    `distance` is that of the class means from those of the validation images. `gain` is the top-1
    of ridge on clean images mixed with the policy minus that on clean images, on the validation
    images, with its interval; `helps` and `hurts` are the classes that change most. `weight` is its
    share in the mixture of least validation loss.
    """

    operation: str
    loss: float
    top1: float
    distance: float
    gain: float
    low: float
    high: float
    helps: list[str]
    hurts: list[str]
    weight: float


class Scored(Strict):
    """The file of a stage: the view `none`, then every atomic policy."""

    scores: list[OperationScore]


def score_policies(
    spaces: Mapping[str, Sequence[Space]],
    images: SearchImages,
    dataset: Dataset,
    share: float,
    progress: Progress,
) -> list[OperationScore]:
    """The scores of the policies with these spaces; the first is `none`."""
    names, classes = list(spaces), len(dataset.classes)
    y, labels = images.sample.labels, images.validation.labels
    counts = np.minimum(*(np.bincount(rows, minlength=classes) for rows in (y, labels)))
    total = 3 * len(names)

    def read(view: int) -> Vectors:
        return side_by_side(spaces[names[view]], images.sample.items)

    validation = side_by_side(spaces[names[0]], images.validation.items)
    head = solve("ridge", Rows.of_array(validation, labels, classes))
    means = class_means(validation, labels, classes)
    rows: list[OperationScore] = []
    for number, name in enumerate(names):
        progress(number, total, "search (density)")
        vectors = read(number)
        logits = head.scale * head.scores(vectors)
        rows.append(
            {
                "operation": name,
                "loss": cross_entropy(logits, y),
                "top1": float((logits.argmax(1) == y).mean()),
                "distance": mean_distance(class_means(vectors, y, classes), means, counts),
                "gain": 0.0, "low": 0.0, "high": 0.0, "helps": [], "hurts": [], "weight": 0.0,
            }
        )  # fmt: skip
    mixtures = Mixtures(read, len(names), y, validation, labels, classes)
    penalty, clean = mixtures.clean_penalty(), np.eye(1, len(names))[0]
    baseline = mixtures.right(clean, penalty)[None]
    for number in range(1, len(names)):
        progress(len(names) + number, total, "search (gains)")
        weights = (1 - share) * clean
        weights[number] += share
        right = mixtures.right(weights, penalty)[None]
        change = difference(right, baseline)
        by_gain = by_class(right, baseline, labels, dataset.classes)
        rows[number] |= {"gain": change.difference, "low": change.low, "high": change.high}
        for field, changed in (
            ("helps", [row for row in by_gain if row["difference"] > 0]),
            ("hurts", [row for row in by_gain[::-1] if row["difference"] < 0]),
        ):
            rows[number][field] = [  # type: ignore[literal-required]
                readable_name(row["class"], dataset.words) for row in changed[:_MAX_CLASSES]
            ]
    weights, _ = mixtures.best_weights(
        share, lambda step: progress(2 * len(names) + step, 2 * len(names) + 60, "search (weights)")
    )
    for row, weight in zip(rows, weights, strict=True):
        row["weight"] = float(weight)
    return rows
