"""What an option changes in a schedule: its views, its epochs, and single settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypedDict

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.heads.schedules import Schedule
from featurecache.text import listed
from featurecache.training.head_shapes import unused_settings
from featurecache.training.sweep_settings import with_values


class Overrides(TypedDict, total=False):
    """Keywords that override a schedule; an absent one, or None, keeps the schedule's.

    `view` is one view or several, which share the rows equally. `settings` maps dotted keys to
    values, or is a list of `optimizer.lr=3e-3`.
    """

    view: str | Sequence[str]
    epochs: int | None
    settings: Mapping[str, Any] | Sequence[str]


def has_network_settings(overrides: Overrides) -> bool:
    """Do they say how a network is trained, so that there is nothing left to choose?"""
    settings = parse_settings(overrides.get("settings") or ())
    # Settings of the backbone only select the vectors, whatever the head is.
    has_settings = any(not key.startswith("backbone.") for key in settings)
    return overrides.get("epochs") is not None or has_settings


def with_overrides(schedule: Schedule, overrides: Overrides) -> Schedule:
    """The schedule with these overrides. Raises BadInput, which names the option."""
    plain = schedule.as_json()
    views, epochs = listed(overrides.get("view") or ()), overrides.get("epochs")
    if views:
        total = sum(phase.epochs for phase in schedule.phases)
        plain["phases"] = [{"views": views, "epochs": total}]
    if epochs is not None:
        if not isinstance(epochs, Integral) or epochs < 1:
            raise BadInput(f"epochs {epochs!r}: must be a whole number of at least 1")
        if len(plain["phases"]) > 1:
            raise BadInput(
                f"epochs {epochs}: the schedule has {len(plain['phases'])} phases; change the "
                "phases in the schedule, or give train-head a --view, which makes them one"
            )
        plain["phases"][0]["epochs"] = int(epochs)
    if views or epochs is not None:
        schedule = yaml_files.validate(Schedule, plain, "--view and --epochs")
    values = parse_settings(overrides.get("settings") or ())
    if not values:
        return schedule
    option = "settings" if isinstance(overrides["settings"], Mapping) else "--set"
    where = f"{option} " + ", ".join(f"{key}={value}" for key, value in values.items())
    return with_values(schedule, values, where)


def unused_notes(
    schedule: Schedule, overrides: Overrides, trained: Sequence[Schedule]
) -> list[str]:
    """A note about settings of hidden layers, of the schedule or the overrides, if none of the
    `trained` heads has such a layer."""
    if schedule.head.kind is not None:  # its shape is not written
        return []
    keys = [*parse_settings(overrides.get("settings") or ())]
    keys += schedule.sweep.keys if schedule.sweep else []
    return unused_settings(schedule.head, keys, [plan.head for plan in trained])


def parse_settings(settings: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Values by their dotted keys. Raises BadInput for text that is not `KEY=VALUE`, and for what
    is neither text nor a mapping of it."""
    if not isinstance(settings, Sequence | Mapping) or not all(
        isinstance(text, str) for text in settings
    ):
        raise BadInput(
            f"settings {settings!r}: expected values by dotted keys, such as {{'optimizer.lr': "
            "3e-3}, or a list of texts such as optimizer.lr=3e-3"
        )
    if isinstance(settings, Mapping):
        return dict(settings)
    values = {}
    for text in listed(settings):
        key, equals, value = text.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise BadInput(f"--set {text}: expected KEY=VALUE, such as optimizer.lr=3e-3")
        node = yaml_files.parse_yaml(value, f"--set {key}")
        values[key.strip()] = yaml_files.plain_value(node)
    return values
