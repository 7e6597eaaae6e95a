"""The rows of a recipe's tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np

from featurecache.runs.record import read_run
from featurecache.stages.heads.train_head import TrainedRun, TrialRow
from featurecache.stages.recipes.recipe_steps import Baselines, Ensemble, Evaluate, views_of_step


class TableRow(TypedDict):
    """The results of one thing that a recipe evaluates."""

    what: str
    split: str
    view: str
    n: int  # seeds
    top1: float | None  # top1 and top5 are means over the seeds
    low: float | None  # low and high are the 95% interval of the mean top1 by Student's t, or for a
    high: float | None  # single seed its bootstrap interval over images
    top5: float | None
    seconds: float | None  # the mean per training


class GainRow(TypedDict):
    """What a training gains over another one: the mean difference of top1 over the seeds that both
    have, with its 95% interval by Student's t; None for a single seed."""

    what: str
    against: str
    split: str
    view: str
    n: int  # seeds
    gain: float
    low: float | None
    high: float | None


class SweepTrials(TypedDict):
    """The settings of a sweep, and the index of the one whose head was saved."""

    winner: int | None
    trials: list[TrialRow]


def gain_rows(step: Evaluate, scores: Mapping[str, Sequence[float]]) -> Iterator[GainRow]:
    """What each training gains over the one of `against`; `scores` has the top-1 of each seed."""
    from featurecache.training.trials import interval  # torch

    assert step.against is not None
    for name, top1 in scores.items():
        reference = scores.get(step.against, [])
        if name == step.against or len(top1) != len(reference):
            continue
        gains = np.subtract(top1, reference)
        low, high = interval(gains, least=-1)
        yield {
            "what": name,
            "against": step.against,
            "split": step.split,
            "view": " + ".join(views_of_step(step)),
            "n": len(gains),
            "gain": float(gains.mean()),
            "low": low,
            "high": high,
        }


def trial_rows(name: str, trained: TrainedRun, step: Evaluate) -> list[TableRow]:
    """One row per setting of a sweep, from its own validation."""
    members = sum(trial["n"] + trial["diverged"] for trial in trained.trials)
    seconds = round((read_run(trained.run).seconds or 0.0) / members, 1)
    rows: list[TableRow] = []
    for trial in trained.trials:
        setting = ", ".join(f"{k} {json.dumps(v)}" for k, v in trial["setting"].items())
        rows.append(
            TableRow(
                what=f"{name}: {setting}" if setting else name,
                split=step.split,
                view=step.view,
                n=trial["n"],
                top1=trial["top1"],
                low=trial["low"],
                high=trial["high"],
                top5=None,
                seconds=seconds,
            )
        )
    return rows


def table_row(
    what: str,
    step: Evaluate | Ensemble | Baselines,
    top1: Sequence[float],
    top5: Sequence[float | None],
    seconds: float | None,
    image_interval: Sequence[float] | None,
) -> TableRow:
    """A row of the table; `image_interval` is the interval of the first number over images, if it
    is known."""
    from featurecache.training.trials import interval  # torch

    of_images = image_interval or (None, None)
    low, high = of_images if len(top1) == 1 else interval(np.array(top1))
    known = [number for number in top5 if number is not None]
    return {
        "what": what,
        "split": step.split,
        "view": " + ".join(views_of_step(step)),
        "n": len(top1),
        "top1": float(np.mean(top1)),
        "low": low,
        "high": high,
        "top5": float(np.mean(known)) if known else None,
        "seconds": seconds,
    }
