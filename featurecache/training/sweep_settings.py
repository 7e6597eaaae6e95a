"""The settings of a sweep, and which of them can share a stack. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from featurecache import keys, yaml_files
from featurecache.errors import BadInput, nearest
from featurecache.training.curriculum import TrainingPlan
from featurecache.training.sweeps import Drawn, Sweep

Plan = TypeVar("Plan", bound=TrainingPlan)

# If a sweep changes the name of a block, the keys that blocks of every name have.
_SHARED_KEYS = {"optimizer.name": ("lr", "weight_decay"), "lr_schedule.name": ()}


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[Plan]):
    """Values by their dotted keys, and the schedule with these values."""

    values: dict[str, Any]
    schedule: Plan


def settings_of(schedule: Plan, where: str | Path) -> list[Setting[Plan]]:
    """Every setting of a schedule's sweep, in order. Errors name `where`.

    Raises BadInput for a key that a sweep can't change, and for values that are not a schedule's.
    """
    sweep = schedule.sweep
    if sweep is None:
        raise BadInput(f"{where}: there is no sweep")
    for key in sweep.keys:
        top = key.split(".")[0]
        known = schedule.SWEPT
        if top not in known and key not in known:
            raise BadInput(f"{where}: sweep: {key} can't be swept; {nearest(key, known)}")
        field = {"optimizer.lr": "lr", "optimizer.weight_decay": "weight_decay"}.get(key)
        if field and all(getattr(phase.optimizer, field) is not None for phase in schedule.phases):
            raise BadInput(
                f"{where}: sweep: {key} has no effect, since every phase sets its own; remove those"
            )
    plain = schedule.model_copy(update={"sweep": None})
    settings = []
    for values in _combinations(sweep) if sweep.random is None else _draws(sweep):
        changed_schedule = with_values(plain, values, f"{where}: {_listed(values)}")
        settings.append(Setting(values=values, schedule=changed_schedule))
    return settings


def distinct_settings(schedule: Plan, path: str | Path) -> list[Setting[Plan]]:
    """The settings of a sweep that is about to be trained. Raises BadInput as `settings_of`, and if
    two combinations of the grid make the same schedule, which would be trained twice."""
    settings = settings_of(schedule, path)
    if schedule.sweep is not None and schedule.sweep.random is None:
        earlier_values: dict[str, dict[str, Any]] = {}
        for setting in settings:
            digest = keys.digest(setting.schedule.model_dump(mode="json"))
            twin = earlier_values.setdefault(digest, setting.values)
            if twin is not setting.values:
                raise BadInput(
                    f"{path}: sweep.grid: {_listed(twin)} and {_listed(setting.values)} are the "
                    "same setting; remove one"
                )
    return settings


def with_values(schedule: Plan, values: Mapping[str, Any], where: str) -> Plan:
    """The schedule with these values at their dotted keys. Raises BadInput, which names `where`,
    if they make no schedule."""
    changed = schedule.as_json()
    for key, value in values.items():
        block = changed.get(key.removesuffix(".name"))
        if key in _SHARED_KEYS and isinstance(block, dict) and block.get("name") != value:
            # Keys that only the old name has would be refused for the new one.
            common = {name: v for name, v in block.items() if name in _SHARED_KEYS[key]}
            changed = {**changed, key.removesuffix(".name"): common}
        changed = _with(changed, key.split("."), value)
    return yaml_files.validate(type(schedule), changed, where)


def stackable(settings: Sequence[Setting[Plan]]) -> list[list[int]]:
    """Groups of indexes of settings that differ only in learning rate and weight decay, so that
    their heads can be trained in one stack. Groups are in the order of their first setting."""
    groups: dict[str, list[int]] = {}
    for index, setting in enumerate(settings):
        plain = setting.schedule.model_dump(mode="json")
        optimizer = {k: v for k, v in plain["optimizer"].items() if k not in ("lr", "weight_decay")}
        groups.setdefault(keys.digest({**plain, "optimizer": optimizer}), []).append(index)
    return list(groups.values())


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    grid = sweep.grid or {}
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _draws(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Random settings. Each key has its own generator, so that adding a key changes no others."""
    over = sweep.over or {}
    rngs = {key: np.random.default_rng([sweep.seed, *key.encode()]) for key in over}
    for _ in range(sweep.random or 0):
        yield {key: _drawn(drawn, rngs[key]) for key, drawn in over.items()}


def _drawn(drawn: Drawn, rng: np.random.Generator) -> Any:
    if drawn.choice is not None:
        return drawn.choice[int(rng.integers(len(drawn.choice)))]
    if drawn.log is not None:
        low, high = drawn.log
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    low, high = drawn.range or (0.0, 1.0)
    return float(rng.uniform(low, high))


def _with(plain: keys.Json, path: list[str], value: Any) -> keys.Json:
    """`plain` with the value set at a path of keys; values along the path become mappings."""
    first, *others = path
    inner = plain.get(first)
    if others:
        inner = {"name": inner} if isinstance(inner, str) else inner
        value = _with(inner if isinstance(inner, dict) else {}, others, value)
    return {**plain, first: value}
