"""Evaluate several heads together: their mean, their vote, and a stacking ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput, UnknownName
from featurecache.lookup.labelled_rows import LabelledRow
from featurecache.runs.held_out import HELD_OUT
from featurecache.runs.predictions import (
    Question,
    SplitImages,
    open_question,
    same_views,
    split_images,
    usual_split,
    views_of,
)
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.stages.heads.shared_options import SharedOptions, resolve_run_options
from featurecache.study import metrics

HOW = ("mean", "vote", "stack", "dense")
Runs = Sequence[str | Path]


class EnsembleScores(TypedDict):
    """The scores of one way to combine the members. A vote gives classes and no probabilities, so
    it has only top1 and its interval."""

    top1: float
    interval: list[float]
    top3: NotRequired[float]
    top5: NotRequired[float]
    loss: NotRequired[float]
    ece: NotRequired[float]


class MemberScores(EnsembleScores):
    """The scores of a member, and its validation top-1 at the end of its training."""

    run: str
    val_top1: float


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Members and ensembles of them on the `n` images of a split that could be decoded.

    A row of `members` is {run, val_top1, top1, interval, top3, top5, loss, ece}; `val_top1` is the
    validation top-1 at the end of its training. `ensembles` maps each way of combining to the same
    fields without run and val_top1; a vote gives classes and no probabilities, so it has only top1
    and interval.
    """

    split: str
    view: str
    tta: list[str]
    n: int
    left_out: int  # images that could not be read or decoded
    members: list[MemberScores]
    ensembles: dict[str, EnsembleScores]
    correlation: list[list[float | None]]  # Pearson's, between the errors of each two members
    notes: list[str]  # what a stack was fitted on, or why there is none


def ensemble(
    runs: Runs,
    *,
    how: str | None = None,
    split: str | None = None,
    view: str = "none",
    tta: str | Sequence[str] = (),
    seed: int | None = None,
    **options: Unpack[SharedOptions],
) -> Ensemble:
    """Evaluate several runs on a split, together and separately.

    `how` is `mean` (of their probabilities), `vote` (the class that most members predict; on a tie
    the prediction of the first member with the best validation top-1), `stack` (weights fitted on
    rows that no member was trained on), `dense` (dense layers trained on the same rows, as paper
    001 did), or None for all that are possible except `dense`. The members may have different
    backbones, but must have the same classes. `view`, `tta` and `seed` are as for `evaluate`.
    Raises BadInput for what can't be combined.
    """
    if how is not None and how not in HOW:
        raise UnknownName("ensemble", how, HOW)
    runs, data, cache, progress = resolve_run_options(options, "ensemble", runs)
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise BadInput("an ensemble needs at least two runs, each only once")
    views = views_of(view, tta)
    question = open_question(runs, views, seed, data, cache, progress, same_classes=True)
    validated = [_validated(record) for record in question.records]
    split = split or usual_split(question.dataset)
    images = split_images(question, split)
    notes = list(images.notes)
    if not same_views(question.records, views, seed):
        notes.append("the members see views of different seeds; give --seed to compare them")
    unseen: SplitImages | None = None
    if how in (None, "stack", "dense"):
        try:
            unseen = _unseen(question, split, images.rows)
        except BadInput as error:
            if how is not None:
                raise
            notes.append(f"no stack: {error}")
    from featurecache.heads import ensembles  # torch, after every check

    heads = question.load_heads(split)
    probabilities = images.probabilities(heads)
    class_numbers = question.class_numbers[0]  # the same for all members
    labels = class_numbers[images.rows.labels]
    members: list[MemberScores] = [
        {"run": str(run), "val_top1": top1, **_scores(member_probabilities, labels)}
        for run, top1, member_probabilities in zip(runs, validated, probabilities, strict=True)
    ]
    combined: dict[str, EnsembleScores] = {}
    if how in (None, "mean"):
        combined["mean"] = _scores(ensembles.mean(probabilities), labels)
    if how in (None, "vote"):
        correct = ensembles.vote(probabilities, int(np.argmax(validated))) == labels
        combined["vote"] = {"top1": float(correct.mean()), "interval": metrics.interval(correct)}
    if unseen is not None:
        unseen_labels = class_numbers[unseen.rows.labels]
        measured = unseen.probabilities(question.load_heads(HELD_OUT))
        text = f"fitted on {len(unseen.rows):,} held-out images"
        if how == "dense":
            from featurecache.heads.dense_stacks import fit_dense, side_by_side

            head = fit_dense(measured, unseen_labels, question.records[0].classes)
            combined["dense"] = _scores(head.predict_proba(side_by_side(probabilities)), labels)
            notes.append(f"dense: {text}")
        else:
            weights = ensembles.fit_stack(measured, unseen_labels)
            combined["stack"] = _scores(ensembles.stack(probabilities, weights), labels)
            listed = ", ".join(f"{weight:.3f}" for weight in weights)
            notes.append(f"stack: weights {listed}, {text}")
    return Ensemble(
        split=split,
        view=view,
        tta=views[1:],
        n=len(images.rows),
        left_out=images.left_out,
        members=members,
        ensembles=combined,
        correlation=metrics.error_correlation([p.argmax(1) == labels for p in probabilities]),
        notes=notes,
    )


def _validated(record: RunRecord) -> float:
    """Validation top-1 of the head that a finished run saved."""
    assert record.last is not None
    return float(record.last["top1"])


def _scores(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]
) -> EnsembleScores:
    """The row of the table for probabilities (N, C)."""
    classes = [str(label) for label in range(probabilities.shape[1])]
    scores = metrics.evaluate_predictions(probabilities, labels, classes)
    return {
        "top1": scores["top1"],
        "interval": metrics.interval(probabilities.argmax(1) == labels),
        "top3": scores["top3"],
        "top5": scores["top5"],
        "loss": scores["loss"],
        "ece": metrics.calibration(probabilities, labels)["ece"],
    }


def _unseen(question: Question, split: str, evaluated: Sequence[LabelledRow]) -> SplitImages:
    """The rows that a stack may be fitted on: held out by every member, and not evaluated here.

    Raises BadInput if a run's held-out rows are unknown, or if no row is left.
    """
    for run, record in zip(question.runs, question.records, strict=True):
        val = schedule_of(record).validation.split
        if split in (val, HELD_OUT):
            images = f"split {val}" if split == val else "the held-out images"
            raise BadInput(
                f"{run} was validated on {images}, which this command evaluates; a stack can't be "
                "fitted and tested on the same images. Train with validation: {folds: 5}, or give "
                "another --split"
            )
    return split_images(question, HELD_OUT, without={row.item for row in evaluated})
