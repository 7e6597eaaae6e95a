"""The course of a run's training, for its report: phases, curves, and the cost of its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featurecache.features.spaces import Space
from featurecache.heads.schedules import Schedule
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.stages.looking.report_views import ViewCost, view_cost, view_title
from featurecache.study import figures
from featurecache.training.curriculum import Phase
from featurecache.training.epoch_metrics import Epoch


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """A phase and what it did to validation top-1, averaged over the folds.

    `before` and `after` are top-1 before and after it, `change` their difference. `gain` is
    relative to the best earlier phase, so that a phase which only recovers from a worse one gains
    nothing; `helped_most` marks the largest gain above 0. What was not trained is None.
    """

    views: str
    augmented: bool
    epochs: int
    first: int | None  # epochs, counted over all phases
    last: int | None
    lr: str
    before: float | None
    after: float | None
    change: float | None
    gain: float | None
    helped_most: bool = False


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run's training. `phases` are those of the schedule, for a sweep the winner's. `curves` is
    an SVG, or None without metrics. `validated` is the view of the validation images."""

    epochs: int
    folds: int
    phases: list[PhaseRow]
    validated: str
    curves: str | None
    views: list[ViewCost]


def training_course(
    record: RunRecord, epochs: Sequence[Epoch], spaces: Mapping[str, Space]
) -> Course:
    """The course of a run from its record and its metrics. `spaces` are the cache's, by name."""
    schedule = schedule_of(record)
    phases = phase_rows(schedule, epochs)
    return Course(
        epochs=len({row.epoch for row in epochs}),
        folds=len({row.fold for row in epochs}),
        phases=phases,
        validated=view_title(schedule.validation.view),
        curves=_curves(phases, epochs),
        views=[view_cost(view, record, epochs, spaces) for view in record.spaces],
    )


def phase_rows(schedule: Schedule, epochs: Sequence[Epoch]) -> list[PhaseRow]:
    """The phases of a schedule with their effects. Early stopping may leave phases without epochs;
    training after pruning is one more phase."""
    ended = {
        number: float(np.mean([row.val_top1 for row in epochs if row.epoch == number]))
        for number in {row.epoch for row in epochs}
    }
    rows: list[PhaseRow] = []
    before: float | None = None
    best: float | None = None  # after any phase so far
    for number, phase in {planned.number: planned.phase for planned in schedule.plan()}.items():
        phase_epochs = [row for row in epochs if row.phase == number]
        last = max((row.epoch for row in phase_epochs), default=None)
        after = None if last is None else ended[last]
        rates = sorted({row.lr for row in phase_epochs if row.lr is not None})
        pruned = number > len(schedule.phases)
        rows.append(
            PhaseRow(
                views=mixture_title(phase) + (" after pruning" if pruned else ""),
                augmented={*phase.views, *(phase.ramp_to or {})} != {"none"},
                epochs=phase.epochs,
                first=min((row.epoch for row in phase_epochs), default=None),
                last=last,
                lr=" to ".join(f"{rate:g}" for rate in dict.fromkeys([*rates[-1:], *rates[:1]])),
                before=before,
                after=after,
                change=None if before is None or after is None else after - before,
                gain=None if best is None or after is None else after - best,
            )
        )
        if after is not None:
            before, best = after, after if best is None else max(best, after)
    highest = max((row.gain for row in rows if row.gain is not None), default=0.0)
    return [replace(row, helped_most=row.gain == highest > 0) for row in rows]


def mixture_title(phase: Phase) -> str:
    """The views of a phase: `none`, `none 50% + spatial_1 50%`, `none to spatial_1`."""

    def text(shares: Mapping[str, float]) -> str:
        names = {view_title(name): share for name, share in shares.items()}
        return " + ".join(
            n if len(names) == 1 else f"{n} {share:.0%}" for n, share in names.items()
        )

    return text(phase.views) + (f" to {text(phase.ramp_to)}" if phase.ramp_to else "")


def _curves(phases: Sequence[PhaseRow], epochs: Sequence[Epoch]) -> str | None:
    if not epochs:
        return None
    bands = [
        (row.first, row.last, "mixture" if " + " in row.views else row.views)
        for row in phases
        if row.first is not None and row.last is not None
    ]
    return figures.inline(figures.curves([row.model_dump() for row in epochs], bands))
