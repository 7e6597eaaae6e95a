"""The trainings of a report's runs: their phases, curves, the cost of their views, and the settings
in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from featurecache.features.spaces import Space
from featurecache.heads.schedules import Schedule
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.stages.looking.report_views import ViewCost, view_cost, view_title
from featurecache.study import figures
from featurecache.text import counted
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


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """A setting by its dotted keys, and its value in each run; None where it has none."""

    name: str
    values: tuple[str | None, ...]


def schedule_differences(records: Sequence[RunRecord]) -> list[SettingRow]:
    """The settings that differ: the phases first, then the others in the order of the schedules.
    Of a sweep they are the winner's. Also whether the runs were trained on the same images."""
    settings = [_settings(record) for record in records]
    names = dict.fromkeys(name for run_settings in settings for name in run_settings)
    rows = [
        SettingRow(name=name, values=tuple(run_settings.get(name) for run_settings in settings))
        for name in sorted(names, key=lambda name: not name.startswith("phase "))
    ]
    return [row for row in rows if len(set(row.values)) > 1]


def _settings(record: RunRecord) -> dict[str, str]:
    schedule = schedule_of(record)
    values = schedule.as_json()
    phases = {f"phase {n}": _phase(phase) for n, phase in enumerate(schedule.phases, 1)}
    del values["phases"]
    dotted = {name: _value(value) for name, value in _dotted(values)}
    images = f"{record.data.get('rows', '?')} (content {record.rows[:8]})"
    vectors = ", ".join(
        f"{backbone['name']} at {backbone['key'].get('input_size')} px, layer "
        f"{backbone['key'].get('layer')}, {backbone['precision']}"
        + (f", JPEG side {backbone['jpeg_side']}" if "jpeg_side" in backbone else "")
        for backbone in record.backbones
    )
    return {**phases, **dotted, "vectors of": vectors, "images": images}


def _phase(phase: Phase) -> str:
    """`none 50% + mild_1 50%, 4 epochs, lr 0.001`."""
    changed = phase.as_json()
    optimizer = {**changed.pop("optimizer", {})}
    others = {name: v for name, v in changed.items() if name not in ("views", "ramp_to", "epochs")}
    parts = [
        mixture_title(phase),
        counted(phase.epochs, "epoch"),
        *(f"{name} {_value(value)}" for name, value in {**optimizer, **others}.items()),
    ]
    return ", ".join(parts)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(value: Any) -> str:
    if isinstance(value, list | dict):
        return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).strip()
    return f"{value:g}" if isinstance(value, float) else str(value)
