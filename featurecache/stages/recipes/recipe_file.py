"""Recipes: steps that are commands with their options, read and checked before the first of them.

A recipe says what is done; where it runs (workers, engine, device) is said when it is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from featurecache import keys, yaml_files
from featurecache.errors import BadInput, UnknownName
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import choose_engine
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice, Schedule, find_schedule, read_schedule
from featurecache.heads.sweep_settings import settings_of
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.view_names import ViewName
from featurecache.images.views import View, find_view
from featurecache.lookup.held_spaces import fitting_spaces
from featurecache.runs.held_out import HELD_OUT
from featurecache.stages.heads.ensemble import HOW
from featurecache.stages.recipes.recipe_checks import (
    check_alike,
    check_classes,
    check_held_out,
    check_stacked,
)
from featurecache.training.settings import STRICT

Names = str | Annotated[list[str], Field(min_length=1)]


class Featurize(pydantic.BaseModel):
    """A step of `featurecache featurize`."""

    model_config = STRICT

    backbone: Names
    policy: Names = "none"
    weights: str | None = None
    input_size: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    layer: str | None = None
    pooling: str | None = None
    precision: str = "f32"
    seed: int = Field(default=0, ge=0)


class TrainHead(pydantic.BaseModel):
    """A step of `featurecache train-head`, once with each of `seeds`."""

    model_config = STRICT

    schedule: str = Field(min_length=1)
    seeds: list[int] | None = Field(default=None, min_length=1)  # None: the schedule's own

    @pydantic.field_validator("seeds")
    @classmethod
    def _seeds(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"a seed is listed twice in {value}")
        if any(not 0 <= seed < 2**32 for seed in value or ()):
            raise ValueError("seeds must be 0 or more, and below 2**32")
        return value


class Evaluate(pydantic.BaseModel):
    """A step of `featurecache evaluate`, of every run that the steps above it trained."""

    model_config = STRICT

    split: str = "val"
    view: str = "none"
    tta: str | list[str] = []


class Ensemble(Evaluate):
    """A step of `featurecache ensemble`, of the runs of some schedules above it. Of several the
    runs stand together seed by seed; of one all its seeds do."""

    how: str | None = None
    of: list[str] | None = Field(default=None, min_length=1)  # None: of all schedules above


class Report(pydantic.BaseModel):
    """A step of `featurecache report`, of some schedules above it, each by its first seed."""

    model_config = STRICT

    name: str = Field(default="report.html", pattern=r"^[\w-]+\.html$")  # in the folder of runs
    split: str = "val"
    view: str = "none"
    of: list[str] | None = Field(default=None, min_length=1)  # None: of all schedules above


class Baselines(pydantic.BaseModel):
    """A step of `featurecache baselines`."""

    model_config = STRICT

    backbone: Names
    split: str = "val"
    view: str = "none"
    input_size: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    layer: str | None = None
    pooling: str | None = None
    precision: str | None = None
    seed: int = Field(default=0, ge=0)


Step = Featurize | TrainHead | Evaluate | Ensemble | Report | Baselines
COMMANDS: dict[str, type[Step]] = {
    "featurize": Featurize,
    "train-head": TrainHead,
    "evaluate": Evaluate,
    "ensemble": Ensemble,
    "report": Report,
    "baselines": Baselines,
}


class RecipeFile(pydantic.BaseModel):
    """The top of a recipe. `data`, `cache` and `runs` count from the working folder, as in every
    command; schedules, policy and weights files from the recipe's own."""

    model_config = STRICT

    description: str = ""
    data: str = "data"
    cache: str = "data/cache"
    runs: str = "runs"
    steps: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read: its steps, and the file and content of every schedule by its name
    there. Policies and weights of the steps are paths from the working folder."""

    path: Path
    file: RecipeFile
    steps: list[tuple[str, Step]]  # where it stands, for errors
    schedules: dict[str, tuple[Path, Schedule]]


def read_recipe(recipe: str | Path) -> Recipe:
    """The recipe in a YAML file, with its schedules. A BadInput names the step, and every wrong
    option with the nearest right one. No dataset, cache or network is looked at."""
    path = Path(recipe)
    file = yaml_files.validate(RecipeFile, yaml_files.plain_value(yaml_files.read_yaml(path)), path)
    steps: list[tuple[str, Step]] = []
    schedules: dict[str, tuple[Path, Schedule]] = {}
    reports: set[str] = set()
    for number, given in enumerate(file.steps, 1):
        at = f"{path}, step {number}"
        if len(given) != 1:
            raise BadInput(f"{at}: expected one command with its options, as `evaluate: {{}}`")
        ((command, options),) = given.items()
        if command not in COMMANDS:
            raise UnknownName("step", command, COMMANDS, at)
        at = f"{at}, {command}"
        step = yaml_files.validate(COMMANDS[command], {} if options is None else options, at)
        step = _from_here(step, path.parent)
        if isinstance(step, TrainHead):
            if step.schedule in schedules:
                raise BadInput(f"{at}: {step.schedule} is trained above; give all seeds there")
            where = find_schedule(_beside(path.parent, step.schedule))
            schedule = read_schedule(where)
            if schedule.sweep is not None:
                settings_of(schedule, where)
                if step.seeds is not None:
                    raise BadInput(f"{at}: {step.schedule} is a sweep; give its seeds there")
            for name, (other, twin) in schedules.items():
                if (other.stem, twin) == (where.stem, schedule):
                    raise BadInput(f"{at}: {step.schedule} trains the same runs as {name} above")
            schedules[step.schedule] = where, schedule
        elif isinstance(step, Evaluate | Report):
            above = [s for _, s in steps if isinstance(s, TrainHead)]
            _check_runs(step, above, at)
            for group in held_out_groups(step, above, schedules):
                if isinstance(step, Ensemble) and step.how == "stack":
                    check_stacked(step.split, group, at)
                check_alike(group, at)
            if isinstance(step, Report) and step.name in reports:
                raise BadInput(f"{at}: name: {step.name} is written above; give another")
            reports |= {step.name} if isinstance(step, Report) else set()
        steps.append((at, step))
    return Recipe(path, file, steps, schedules)


def _check_runs(step: Evaluate | Report, above: Sequence[TrainHead], at: str) -> None:
    """That the steps above give runs to evaluate."""
    if not above:
        raise BadInput(f"{at}: there is no train-head step above it, and so no run")
    if not isinstance(step, Ensemble | Report):
        return
    seeds = {train.schedule: len(train.seeds or [None]) for train in above}
    for name in step.of or ():
        if name not in seeds:
            raise UnknownName("schedule", name, seeds, f"{at}: of the train-head steps above")
    if len(set(step.of or ())) < len(step.of or ()):
        raise BadInput(f"{at}: of: a schedule is listed twice in {step.of}")
    if isinstance(step, Report):
        return
    if step.how is not None and step.how not in HOW:
        raise UnknownName("ensemble", step.how, HOW, at)
    counts = [seeds[name] for name in step.of or seeds]
    if counts == [1]:
        raise BadInput(f"{at}: one run is no ensemble; give more schedules or seeds")
    if len(set(counts)) > 1:
        raise BadInput(f"{at}: schedules of {counts} seeds can't stand together seed by seed")


def held_out_groups(
    step: Evaluate | Report,
    above: Sequence[TrainHead],
    schedules: Mapping[str, tuple[Path, Schedule]],
) -> list[list[Schedule]]:
    """The schedules, with their seeds, of runs that a step needs images of which all have held out:
    for a stack, or to look at such images. Of an ensemble of several schedules they stand together
    seed by seed, of one all its seeds; of a report the first seeds do."""
    stacked = isinstance(step, Ensemble) and step.how == "stack"
    if not isinstance(step, Ensemble | Report) or not (stacked or step.split == HELD_OUT):
        return []
    seeds = {train.schedule: train.seeds for train in above}
    of_names = []
    for name in step.of or list(seeds):
        _, schedule = schedules[name]
        given = seeds[name] or [schedule.seed]
        of_names.append([schedule.model_copy(update={"seed": seed}) for seed in given])
    if isinstance(step, Report):
        return [[of_name[0] for of_name in of_names]]
    return (
        of_names if len(of_names) == 1 else [list(group) for group in zip(*of_names, strict=True)]
    )


def _from_here(step: Step, folder: Path) -> Step:
    """The step with paths of policy and weights files from the working folder."""

    def view(name: str) -> str:
        parts = ViewName.parse(name)
        if not parts.is_file:
            return name
        return str(replace(parts, policy=_beside(folder, parts.policy)))

    changed: dict[str, Any] = {}
    for key in ("policy", "view", "tta"):
        if hasattr(step, key):
            given = getattr(step, key)
            changed[key] = view(given) if isinstance(given, str) else [view(n) for n in given]
    if isinstance(step, Featurize) and step.weights is not None:
        changed["weights"] = _beside(folder, step.weights)
    return step.model_copy(update=changed)


def _beside(folder: Path, name: str) -> str:
    return str(folder / name) if (folder / name).is_file() else name


def check_recipe(recipe: Recipe, data: str | Path, cache: str | Path, engine: str) -> None:
    """Raise BadInput for what would stop a step that is not the first."""
    dataset, opened = open_dataset(data), Cache(cache)
    held = opened.spaces()
    to_come: list[Space] = []
    trained: dict[str, Schedule] = {}
    steps_above: list[TrainHead] = []
    for at, step in recipe.steps:
        if isinstance(step, Featurize):
            to_come += _spaces_of(step, opened, engine)
        elif isinstance(step, TrainHead):
            schedule = recipe.schedules[step.schedule][1]
            if schedule.validation.split is not None:
                _check_split(dataset, schedule.validation.split, at)
            views = [find_view(name, schedule.augment_seed) for name in schedule.views()]
            _check_vectors(held, to_come, schedule.backbone, views, at)
            check_classes(schedule, dataset, at)
            trained[step.schedule] = schedule
            steps_above.append(step)
        elif isinstance(step, Evaluate | Report):
            if step.split != HELD_OUT:
                _check_split(dataset, step.split, at)
            of = list(trained)
            if isinstance(step, Ensemble | Report) and step.of:
                of = step.of
            for group in held_out_groups(step, steps_above, recipe.schedules):
                check_held_out(group, dataset, at)
            for schedule in (trained[name] for name in of):
                views = [find_view(name, schedule.augment_seed) for name in views_of_step(step)]
                _check_vectors(held, to_come, schedule.backbone, views, at)
        else:
            _check_split(dataset, step.split, at)
            given = step.model_dump(exclude={"backbone", "split", "view", "seed"})
            choices = [
                yaml_files.validate(BackboneChoice, {"name": name, **given}, at)
                for name in listed(step.backbone)
            ]
            _check_vectors(held, to_come, choices, [find_view(step.view, step.seed)], at)


def _spaces_of(step: Featurize, cache: Cache, engine: str) -> Iterator[Space]:
    """The spaces that a step will fill. Builds its networks and tries its policies."""
    names = listed(step.backbone)
    if step.weights is not None and len(names) > 1:
        raise BadInput("weights belong to one backbone; give each a featurize step of its own")
    choose_engine(engine, step.precision)
    views = [find_view(name, step.seed) for name in listed(step.policy)]
    for view in views:
        view.check()
    for name in names:
        backbone = load_backbone(
            name,
            step.weights,
            input_size=step.input_size,
            crop=step.crop,
            interpolation=step.interpolation,
            layer=step.layer,
            pooling=step.pooling,
        )
        for view in views:
            key = keys.vector_key(view.key(), backbone.key(), step.precision)
            yield cache.space(key, view.name, backbone.name)


def _check_split(dataset: Dataset, split: str, at: str) -> None:
    if any(sample.label is None for sample in dataset.split(split)):
        raise BadInput(f"{at}: split {split!r} of {dataset.root} has no labels; take another")


def _check_vectors(
    held: Sequence[Space],
    to_come: Sequence[Space],
    choices: Sequence[BackboneChoice],
    views: Sequence[View],
    at: str,
) -> None:
    """That the steps above make these views of these backbones, and that each choice means one
    setting, of them and of what the cache holds."""
    for choice in choices:
        above = fitting_spaces(to_come, choice, f"{at}: the recipe")
        fitting_spaces([*held, *to_come], choice, f"{at}: with this recipe the cache")
        found = [keys.canonical(space.key["view"]) for space in above]
        for view in views:
            if keys.canonical(view.key()) not in found:
                asked = choice.model_dump(exclude_none=True)
                raise BadInput(f"{at}: no featurize step above makes view {view.name} of {asked}")


def views_of_step(step: Evaluate | Report | Baselines) -> list[str]:
    """The views that a step looks through."""
    return [step.view, *(listed(step.tta) if isinstance(step, Evaluate) else ())]


def listed(names: Names) -> list[str]:
    """One name as a list of it, a list as it is."""
    return [names] if isinstance(names, str) else names
