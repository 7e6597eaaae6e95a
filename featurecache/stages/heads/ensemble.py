"""Evaluate several heads together: what their mean, their vote and a stack of them is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput, UnknownName
from featurecache.executors import Progress, silent
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.runs.held_out import HELD_OUT
from featurecache.runs.predictions import (
    SplitImages,
    check_classes,
    class_numbers,
    images_of,
    same_views,
    views_of,
)
from featurecache.runs.record import RunRecord, read_run, schedule_of
from featurecache.study import metrics

HOW = ("mean", "vote", "stack")
Runs = Sequence[str | Path]


@dataclass(frozen=True)
class Ensemble:
    """Members and ensembles of them on the `n` images of a split that could be decoded.

    A row of `members` is {run, val_top1, top1, interval, top3, top5, loss, ece}; `val_top1` is what
    its training ended with. `ensembles` maps each way to the same without run and val_top1; a vote
    has classes and no probabilities, so it has top1 and interval alone.
    """

    split: str
    view: str
    tta: list[str]
    n: int
    left_out: int  # images that could not be read or decoded
    members: list[dict[str, Any]]
    ensembles: dict[str, dict[str, Any]]
    correlation: list[list[float | None]]  # Pearson's, of the errors of each two members
    notes: list[str]  # what a stack was fitted on, or why there is none


def ensemble(
    runs: Runs,
    *,
    how: str | None = None,
    split: str = "val",
    view: str = "none",
    tta: str | Sequence[str] = (),
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int | None = None,
    progress: Progress = silent,
) -> Ensemble:
    """What several runs are worth together on a split, and each by itself.

    `how` is `mean` (of their probabilities), `vote` (the class that most predict; where several
    have the most votes, the prediction of the member with the best validation top-1, of equals the
    first), `stack` (weights fitted on rows that no member was trained on), or None for all that are
    possible. The members may have other backbones, but must have the same classes. `view`, `tta`
    and `seed` are as for `evaluate`. Raises BadInput for what can't be combined.
    """
    if how is not None and how not in HOW:
        raise UnknownName("ensemble", how, HOW)
    if len({Path(run).resolve() for run in runs}) < max(len(runs), 2):
        raise BadInput("an ensemble needs at least two runs, each given once")
    opened = [read_run(run) for run in runs]
    check_classes(runs, opened)
    validated = [_validated(record) for record in opened]
    dataset = open_dataset(data)
    numbers = class_numbers(runs[0], opened[0], dataset)
    views = views_of(view, tta)
    images = images_of(runs, opened, dataset, split, views, seed, data, cache, progress)
    rows, notes = images.rows, list(images.notes)
    if not same_views(opened, views, seed):
        notes.append(
            "the members are seen through views of other seeds; give --seed to compare them"
        )
    unseen: SplitImages | None = None
    if how in (None, "stack"):
        try:
            unseen = _unseen(runs, opened, dataset, split, rows, views, seed, data, cache, progress)
        except BadInput as error:
            if how == "stack":
                raise
            notes.append(f"no stack: {error}")
    from featurecache.heads import ensembles
    from featurecache.heads.mlp import Head  # torch, after every check

    heads = [Head.load(Path(run)) for run in runs]
    likely = [images.probabilities(place, head) for place, head in enumerate(heads)]
    labels = numbers[[row.label for row in rows]]
    members = [
        {"run": str(run), "val_top1": top1, **_worth(each, labels)}
        for run, top1, each in zip(runs, validated, likely, strict=True)
    ]
    found: dict[str, dict[str, Any]] = {}
    if how in (None, "mean"):
        found["mean"] = _worth(ensembles.mean(likely), labels)
    if how in (None, "vote"):
        right = ensembles.vote(likely, int(np.argmax(validated))) == labels
        found["vote"] = {"top1": float(right.mean()), "interval": metrics.interval(right)}
    if unseen is not None:
        weights = ensembles.fit_stack(
            [unseen.probabilities(place, head) for place, head in enumerate(heads)],
            numbers[[row.label for row in unseen.rows]],
        )
        found["stack"] = _worth(ensembles.stack(likely, weights), labels)
        shown = ", ".join(f"{weight:.3f}" for weight in weights)
        notes.append(f"stack: weights {shown}, fitted on {len(unseen.rows):,} held-out images")
    return Ensemble(
        split,
        view,
        views[1:],
        len(rows),
        images.left_out,
        members,
        found,
        metrics.error_correlation([each.argmax(1) == labels for each in likely]),
        notes,
    )


def _validated(record: RunRecord) -> float:
    """Validation top-1 of the head that a finished run saved."""
    assert record.last is not None
    return float(record.last["top1"])


def _worth(likely: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What a row of the table says of probabilities (N, C)."""
    found = metrics.evaluate_predictions(likely, labels, [str(c) for c in range(likely.shape[1])])
    return {
        "top1": found["top1"],
        "interval": metrics.interval(likely.argmax(1) == labels),
        "top3": found["top3"],
        "top5": found["top5"],
        "loss": found["loss"],
        "ece": metrics.calibration(likely, labels)["ece"],
    }


def _unseen(
    runs: Runs,
    opened: Sequence[RunRecord],
    dataset: Dataset,
    split: str,
    evaluated: Sequence[LabelledRow],
    views: Sequence[str],
    seed: int | None,
    data: str | Path,
    cache: str | Path,
    progress: Progress,
) -> SplitImages:
    """What a stack may be fitted on: rows that every member was validated on and none was trained
    on, but for other folds; and none of the rows that are evaluated.

    Raises BadInput where a run's rows are not to be had, or no row is left.
    """
    validated = [schedule_of(record).validation.split for record in opened]
    for run, val in zip(runs, validated, strict=True):
        if split in (val, HELD_OUT):
            on = f"on split {val}, which is" if split == val else "on held-out images, which are"
            raise BadInput(
                f"{run} was validated {on} evaluated here, and a stack can't be fitted on what it "
                "is tested on; train with validation: {folds: 5}, or give another --split"
            )
    return images_of(
        runs,
        opened,
        dataset,
        HELD_OUT,
        views,
        seed,
        data,
        cache,
        progress,
        without={row.item for row in evaluated},
    )
