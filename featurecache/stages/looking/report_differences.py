"""The settings in which the schedules of a report's runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from featurecache.runs.record import RunRecord, schedule_of
from featurecache.stages.looking.report_runs import mixture_title
from featurecache.training.curriculum import Phase


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
    values = schedule.plain()
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
    changed = phase.plain()
    optimizer = {**changed.pop("optimizer", {})}
    others = {name: v for name, v in changed.items() if name not in ("views", "ramp_to", "epochs")}
    parts = [
        mixture_title(phase),
        f"{phase.epochs} epoch{'' if phase.epochs == 1 else 's'}",
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
