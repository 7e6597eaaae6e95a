"""The head that is trained without a schedule: its candidates, scaled to the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from featurecache.heads.schedules import BackboneChoice, Schedule

VERSION = 2  # of the recipe: it is part of the identity of a run
BASELINE = "baseline"  # folder in a run: logistic regression on the same vectors
VALIDATED = "validated"  # folder in a run: the head that its validation measured
_FRACTION = 0.2  # of the images is held out where the dataset has no split `val`
_STEPS = 1200  # of the network's optimizer


class CandidateRow(TypedDict):
    """A head that could be chosen, and its top-1 on n held-out training images."""

    head: str  # logistic or network
    views: dict[str, float]  # their shares
    top1: float
    n: int


def network_schedule(
    backbone: Sequence[BackboneChoice],
    validation: dict[str, Any],
    *,
    rows: int,
    classes: int,
    seed: int = 0,
) -> Schedule:
    """The schedule of a small network for so many training rows.

    Few rows take small minibatches, many epochs and much weight decay; about as many steps are made
    in any case.
    """
    batch_size = _power_of_two(rows / 32, 16, 256)
    epochs = min(60, max(8, round(_STEPS * batch_size / max(rows, 1))))
    return Schedule.model_validate(
        {
            "backbone": tuple(backbone),
            "input": {"standardise": True},
            "head": {"hidden": [_power_of_two(4 * classes, 256, 1024)], "dropout": 0.5},
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1 if rows < 2000 else 0.03},
            "lr_schedule": "cosine",
            "label_smoothing": 0.1,
            "batch_size": batch_size,
            "seed": seed,
            "validation": validation,
            "phases": [{"views": "none", "epochs": epochs}],
        }
    )


def logistic_schedule(
    network: Schedule, views: dict[str, float], standardise: bool, weight_decay: float
) -> Schedule:
    """Logistic regression on the rows and with the validation of a network's schedule."""
    settings: dict[str, Any] = {
        "backbone": network.backbone,
        "head": {"hidden": []},
        "optimizer": {"name": "lbfgs", "weight_decay": weight_decay},
        "seed": network.seed,
        "augment_seed": network.augment_seed,
        "validation": network.validation,
        "phases": [{"views": views, "epochs": 1}],
    }
    if standardise:
        settings["input"] = {"standardise": True}
    return Schedule.model_validate(settings)


def validation_of(splits: Sequence[str], rows: int, classes: int) -> dict[str, Any]:
    """The dataset's own split `val`, else a fifth of the images: more of very few, so that every
    class can be on both sides."""
    if "val" in splits:
        return {"split": "val"}
    return {"fraction": min(0.5, max(_FRACTION, (classes + 1) / max(rows, 1)))}


def mixture(views: Sequence[str], clean: str) -> dict[str, float]:
    """The clean view for half of the rows, if it is among the views, and the others in equal
    shares."""
    others = [view for view in dict.fromkeys(views) if view != clean]
    if clean not in views:
        return {view: 1 / len(others) for view in others}
    if not others:
        return {clean: 1.0}
    return {clean: 0.5} | {view: 0.5 / len(others) for view in others}


def _power_of_two(number: float, low: int, high: int) -> int:
    """The power of two at or below `number`, within bounds that are powers of two."""
    result = low
    while result < high and 2 * result <= number:
        result *= 2
    return result
