"""The course of a run's training, for its report: phases, curves, and the views it used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featurecache.features.costs import seconds_to_make
from featurecache.features.spaces import Space
from featurecache.heads.schedules import Schedule
from featurecache.images.view_names import ViewName
from featurecache.runs.predictions import Predictions
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.study import figures, metrics
from featurecache.training.curriculum import Phase
from featurecache.training.epoch_metrics import Epoch, read_epochs


def training_course(
    predictions: Predictions, run_index: int, spaces: Mapping[str, Space]
) -> dict[str, Any]:
    """{epochs, folds, phases, curves, views, through} of a run. `spaces` are the cache's, by name.

    `phases` are those of the schedule (for a sweep, the winner's), each {views, augmented, epochs,
    first, last, lr, before, after, change, gain, most}. `before` and `after` are the validation
    top-1 before and after the phase, averaged over the folds. `gain` is relative to the best
    earlier phase, so that a phase which only recovers from a worse one gains nothing; `most` marks
    the largest gain above 0. `curves` is an SVG, or None without metrics.
    """
    record = predictions.records[run_index]
    epochs = read_epochs(predictions.runs[run_index])
    phases = _phases(schedule_of(record), epochs)
    return {
        "epochs": len({row.epoch for row in epochs}),
        "folds": len({row.fold for row in epochs}),
        "phases": phases,
        "validated": view_title(schedule_of(record).validation.view),
        "seed": record.schedule["augment_seed"],
        "curves": _curves(phases, epochs),
        "views": [_view(view, record, epochs, spaces) for view in record.spaces],
        "through": [_through(view, predictions, run_index, spaces) for view in record.spaces],
    }


def _phases(schedule: Schedule, epochs: Sequence[Epoch]) -> list[dict[str, Any]]:
    ended = {
        number: float(np.mean([row.val_top1 for row in epochs if row.epoch == number]))
        for number in {row.epoch for row in epochs}
    }
    rows: list[dict[str, Any]] = []
    before: float | None = None
    best: float | None = None  # after any phase so far
    # Early stopping may leave phases without epochs. Training after pruning is one more phase.
    for number, phase in {planned.number: planned.phase for planned in schedule.plan()}.items():
        phase_epochs = [row for row in epochs if row.phase == number]
        last = max((row.epoch for row in phase_epochs), default=None)
        after = None if last is None else ended[last]
        rates = sorted({row.lr for row in phase_epochs if row.lr is not None})
        pruned = number > len(schedule.phases)
        rows.append(
            {
                "views": _mixture(phase) + (" after pruning" if pruned else ""),
                "augmented": {*phase.views, *(phase.ramp_to or {})} != {"none"},
                "epochs": phase.epochs,
                "first": min((row.epoch for row in phase_epochs), default=None),
                "last": last,
                "lr": " to ".join(f"{rate:g}" for rate in dict.fromkeys([*rates[-1:], *rates[:1]])),
                "before": before,
                "after": after,
                "change": None if before is None or after is None else after - before,
                "gain": None if best is None or after is None else after - best,
            }
        )
        if after is not None:
            before, best = after, after if best is None else max(best, after)
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    return [row | {"most": bool(gains) and row["gain"] == max(gains) > 0} for row in rows]


def _mixture(phase: Phase) -> str:
    """`none`, `none 50% + spatial_1 50%`, `none to spatial_1`."""

    def text(shares: Mapping[str, float]) -> str:
        names = {view_title(name): share for name, share in shares.items()}
        return " + ".join(
            n if len(names) == 1 else f"{n} {share:.0%}" for n, share in names.items()
        )

    return text(phase.views) + (f" to {text(phase.ramp_to)}" if phase.ramp_to else "")


def view_title(view: str) -> str:
    """The display name of a view, as in `ls`: a policy file without its folder and suffix."""
    return ViewName.parse(view).display_name


def _curves(phases: Sequence[Mapping[str, Any]], epochs: Sequence[Epoch]) -> str | None:
    if not epochs:
        return None
    bands = [
        (row["first"], row["last"], "mixture" if " + " in row["views"] else row["views"])
        for row in phases
        if row["first"] is not None
    ]
    return figures.inline(figures.curves([row.model_dump() for row in epochs], bands))


def _view(
    view: str, record: RunRecord, epochs: Sequence[Epoch], spaces: Mapping[str, Space]
) -> dict[str, Any]:
    """The cost of making the vectors of a view, and how often the training read each of them."""
    names = record.spaces[view]
    cached = [spaces[name] for name in names if name in spaces]
    rows = sum(len(space.rows) for space in cached)
    seconds = sum(seconds_to_make(space, space.rows, list(spaces.values())) for space in cached)
    # Each epoch reads each training row once, in one view of its mixture. With k folds a row is
    # trained on in k - 1 of them.
    folds = len({row.fold for row in epochs})
    shares = [row.views.get(view, 0) / (sum(row.views.values()) or 1) for row in epochs]
    return {
        "view": view_title(view),
        "gone": len(names) - len(cached),
        "rows": rows,
        "bytes": sum(space.size for space in cached),
        "seconds": seconds,
        "milliseconds": 1000 * seconds / rows if rows else None,
        "reads": sum(shares) * ((folds - 1) / folds if folds > 1 else 1),
    }


def _through(
    view: str, predictions: Predictions, run_index: int, spaces: Mapping[str, Space]
) -> dict[str, Any]:
    """Top-1 on the spaces of a view that the run was trained on, if they hold the images of the
    split."""
    names = predictions.records[run_index].spaces[view]
    cached = [spaces[name] for name in names if name in spaces]
    items = [row.item for row in predictions.rows]
    seed = predictions.records[run_index].schedule["augment_seed"]
    differ = (
        view != "none" and len({run.schedule["augment_seed"] for run in predictions.records}) > 1
    )
    name = view_title(view) + (f", seed {seed}" if differ else "")
    row: dict[str, Any] = {"view": name, "top1": None, "interval": None}
    if len(cached) < len(names) or any(space.missing(items) for space in cached):
        return row
    probabilities, labels = predictions.predict_from(run_index, cached)
    right = probabilities.argmax(1) == labels
    return row | {"top1": float(right.mean()), "interval": metrics.interval(right)}
