"""Run a recipe: steps that are commands with their options, from images to one table of results.

Like `quickstart` it only calls other stages. A recipe says what is done; where it runs (workers,
engine, device) is said when it is run.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from pydantic import Field

from featurecache import records
from featurecache.errors import BadInput, UnknownName
from featurecache.executors import Progress, checked_workers, silent
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import choose_engine
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice, Schedule, find_schedule, read_schedule
from featurecache.heads.settings import STRICT
from featurecache.heads.sweeps import settings_of
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.views import View, find_view
from featurecache.stages.baselines import baselines
from featurecache.stages.ensemble import HOW, ensemble
from featurecache.stages.evaluate import evaluate
from featurecache.stages.featurize import featurize
from featurecache.stages.find import fitting
from featurecache.stages.train_head import DEVICES, TrainedRun, read_run, train_head

Names = str | list[str]


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
    tta: Names = []


class Ensemble(Evaluate):
    """A step of `featurecache ensemble`, of the runs of some schedules above it. Of several the
    runs stand together seed by seed; of one all its seeds do."""

    how: str | None = None
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


Step = Featurize | TrainHead | Evaluate | Ensemble | Baselines
COMMANDS: dict[str, type[Step]] = {
    "featurize": Featurize,
    "train-head": TrainHead,
    "evaluate": Evaluate,
    "ensemble": Ensemble,
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


@dataclass(frozen=True)
class Ran:
    """What a recipe came to. A row of `table` is {what, split, view, n, top1, low, high, top5,
    seconds}: the mean top1 and top5 of n seeds, the 95% interval of the mean by Student's t (null
    for one), the mean seconds of a training. A sweep that was validated on what is evaluated has a
    row for each setting, without top5; of others the winner has a row, and `trials` the settings as
    `train-head` gives them. `runs` has the run folders of each schedule, one a seed."""

    recipe: str
    computed: int  # rows
    hits: int
    failed: list[dict[str, str]]
    seconds: float
    table: list[dict[str, Any]]
    trials: dict[str, dict[str, Any]]
    runs: dict[str, list[str]]
    notes: list[str]


def run(
    recipe: str | Path,
    *,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    runs: str | Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> Ran:
    """Do the steps of a recipe (a YAML file) in order, but for what is done already.

    `data`, `cache` and `runs` stand in for the recipe's. Everything is checked before the first
    step: the recipe, its schedules, policies, networks and splits, and that a step above makes the
    vectors that each step needs. Raises BadInput for what is wrong there.
    """
    began = time.perf_counter()
    wanted = read_recipe(recipe)
    where = _Where(
        wanted.file.data if data is None else data,
        wanted.file.cache if cache is None else cache,
        wanted.file.runs if runs is None else runs,
    )
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    checked_workers(workers)
    _check(wanted, where, engine)
    made = _Made()
    for _, step in wanted.steps:
        if isinstance(step, Featurize):
            given = step.model_dump()
            result = featurize(
                where.data,
                cache=where.cache,
                engine=engine,
                workers=workers,
                progress=progress,
                **given,
            )
            made.computed += result.computed
            made.hits += result.hits
            made.failed |= {row["path"]: row for row in result.failed}
        elif isinstance(step, TrainHead):
            seeds: Sequence[int | None] = step.seeds or [None]
            made.runs[step.schedule] = [
                train_head(
                    wanted.schedules[step.schedule][0],
                    data=where.data,
                    cache=where.cache,
                    runs=where.runs,
                    seed=seed,
                    device=device,
                    progress=progress,
                )
                for seed in seeds
            ]
        elif isinstance(step, Ensemble):
            made.table += _together(step, made, where, progress)
        elif isinstance(step, Evaluate):
            for name in made.runs:
                _, schedule = wanted.schedules[name]
                if _validated_so(schedule, step) and made.runs[name][0].trials:
                    made.table += _trials(name, step, made)
                else:
                    made.table.append(_evaluated(name, step, made, where, progress))
        else:
            made.table += _baselines(step, where, progress)
    return Ran(
        str(recipe),
        made.computed,
        made.hits,
        list(made.failed.values()),
        round(time.perf_counter() - began, 1),
        made.table,
        {
            name: {"winner": one.winner, "trials": one.trials}
            for name, (one, *_) in made.runs.items()
            if one.trials and name not in made.shown
        },
        {name: [one.run for one in each] for name, each in made.runs.items()},
        list(dict.fromkeys([*_notes(made), *made.notes])),
    )


def read_recipe(recipe: str | Path) -> Recipe:
    """The recipe in a YAML file, with its schedules. A BadInput names the step, and every wrong
    option with the nearest right one. No dataset, cache or network is looked at."""
    path = Path(recipe)
    file = records.validated(RecipeFile, records.plain(records.read_yaml(path)), path)
    steps: list[tuple[str, Step]] = []
    schedules: dict[str, tuple[Path, Schedule]] = {}
    for number, given in enumerate(file.steps, 1):
        at = f"{path}, step {number}"
        if len(given) != 1:
            raise BadInput(f"{at}: expected one command with its options, as `evaluate: {{}}`")
        ((command, options),) = given.items()
        if command not in COMMANDS:
            raise UnknownName("step", command, COMMANDS, at)
        at = f"{at}, {command}"
        step = records.validated(COMMANDS[command], {} if options is None else options, at)
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
            schedules[step.schedule] = where, schedule
        elif isinstance(step, Evaluate):
            _check_runs(step, [s for _, s in steps if isinstance(s, TrainHead)], at)
        steps.append((at, step))
    return Recipe(path, file, steps, schedules)


def _check_runs(step: Evaluate, above: Sequence[TrainHead], at: str) -> None:
    """That the steps above give runs to evaluate."""
    if not above:
        raise BadInput(f"{at}: there is no train-head step above it, and so no run")
    if not isinstance(step, Ensemble):
        return
    if step.how is not None and step.how not in HOW:
        raise UnknownName("ensemble", step.how, HOW, at)
    seeds = {train.schedule: len(train.seeds or [None]) for train in above}
    for name in step.of or ():
        if name not in seeds:
            raise UnknownName("schedule", name, seeds, f"{at}: of the train-head steps above")
    counts = [seeds[name] for name in step.of or seeds]
    if len(set(step.of or ())) < len(step.of or ()):
        raise BadInput(f"{at}: of: a schedule is listed twice in {step.of}")
    if counts == [1]:
        raise BadInput(f"{at}: one run is no ensemble; give more schedules or seeds")
    if len(set(counts)) > 1:
        raise BadInput(f"{at}: schedules of {counts} seeds can't stand together seed by seed")


def _from_here(step: Step, folder: Path) -> Step:
    """The step with paths of policy and weights files from the working folder."""

    def view(name: str) -> str:
        match = re.fullmatch(r"(.+\.ya?ml)(_\d+)?", name)
        return _beside(folder, match[1]) + (match[2] or "") if match else name

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


@dataclass(frozen=True)
class _Where:
    data: str | Path
    cache: str | Path
    runs: str | Path


@dataclass
class _Made:
    """What the steps so far came to."""

    runs: dict[str, list[TrainedRun]] = field(default_factory=dict)  # of each schedule
    table: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)  # schedules whose trials are in the table
    computed: int = 0
    hits: int = 0


def _check(recipe: Recipe, where: _Where, engine: str) -> None:
    """Raise BadInput for what would stop a step that is not the first."""
    dataset, cache = open_dataset(where.data), Cache(where.cache)
    held = cache.spaces()
    to_come: list[Space] = []
    trained: list[Schedule] = []
    for at, step in recipe.steps:
        if isinstance(step, Featurize):
            to_come += _spaces_of(step, cache, engine)
        elif isinstance(step, TrainHead):
            schedule = recipe.schedules[step.schedule][1]
            if schedule.validation.split is not None:
                _check_split(dataset, schedule.validation.split, at)
            views = [find_view(name, schedule.augment_seed) for name in schedule.views()]
            _check_vectors(held, to_come, schedule.backbone, views, at)
            trained.append(schedule)
        elif isinstance(step, Evaluate):
            _check_split(dataset, step.split, at)
            for schedule in trained:
                views = [find_view(name, schedule.augment_seed) for name in _views(step)]
                _check_vectors(held, to_come, schedule.backbone, views, at)
        else:
            _check_split(dataset, step.split, at)
            given = step.model_dump(exclude={"backbone", "split", "view", "seed"})
            choices = [
                records.validated(BackboneChoice, {"name": name, **given}, at)
                for name in _listed(step.backbone)
            ]
            _check_vectors(held, to_come, choices, [find_view(step.view, step.seed)], at)


def _spaces_of(step: Featurize, cache: Cache, engine: str) -> Iterator[Space]:
    """The spaces that a step will fill. Builds its networks and tries its policies."""
    names = _listed(step.backbone)
    if step.weights is not None and len(names) > 1:
        raise BadInput("weights belong to one backbone; give each a featurize step of its own")
    choose_engine(engine, step.precision)
    views = [find_view(name, step.seed) for name in _listed(step.policy)]
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
            key = records.vector_key(view.key(), backbone.key(), step.precision)
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
        above = fitting(to_come, choice, f"{at}: the recipe")
        fitting([*held, *to_come], choice, f"{at}: with this recipe the cache")
        found = [records.canonical(space.key["view"]) for space in above]
        for view in views:
            if records.canonical(view.key()) not in found:
                asked = choice.model_dump(exclude_none=True)
                raise BadInput(f"{at}: no featurize step above makes view {view.name} of {asked}")


def _validated_so(schedule: Schedule, step: Evaluate) -> bool:
    """Is what an evaluation looks at what the schedule was validated on?"""
    validation = schedule.validation
    return (validation.split, [validation.view]) == (step.split, _views(step))


def _trials(name: str, step: Evaluate, made: _Made) -> list[dict[str, Any]]:
    """A row for each setting of a sweep, as its own validation found them."""
    (trained,) = made.runs[name]
    made.shown.add(name)
    members = sum(trial["n"] + trial["diverged"] for trial in trained.trials)
    seconds = round((read_run(trained.run).seconds or 0.0) / members, 1)
    rows = []
    for trial in trained.trials:
        setting = ", ".join(f"{k} {json.dumps(v)}" for k, v in trial["setting"].items())
        row = {"what": f"{name}: {setting}" if setting else name}
        row |= {"split": step.split, "view": step.view}
        row |= {key: trial[key] for key in ("n", "top1", "low", "high")}
        rows.append(row | {"top5": None, "seconds": seconds})
    return rows


def _evaluated(
    name: str, step: Evaluate, made: _Made, where: _Where, progress: Progress
) -> dict[str, Any]:
    """The row of a schedule: the mean over its seeds."""
    runs = [trained.run for trained in made.runs[name]]
    found = [
        evaluate(
            each,
            split=step.split,
            view=step.view,
            tta=step.tta,
            data=where.data,
            cache=where.cache,
            progress=progress,
        )
        for each in runs
    ]
    seconds = [read_run(each).seconds or 0.0 for each in runs]
    what = f"{name}, its winner" if made.runs[name][0].trials else name
    return _row(
        what,
        step,
        [one.top1 for one in found],
        [one.top5 for one in found],
        round(float(np.mean(seconds)), 1),
    )


def _together(
    step: Ensemble, made: _Made, where: _Where, progress: Progress
) -> list[dict[str, Any]]:
    """A row for each way to combine runs."""
    names = step.of or list(made.runs)
    folders = [[trained.run for trained in made.runs[name]] for name in names]
    groups = folders if len(names) == 1 else list(zip(*folders, strict=True))
    found = [
        ensemble(
            list(group),
            how=step.how,
            split=step.split,
            view=step.view,
            tta=step.tta,
            data=where.data,
            cache=where.cache,
            progress=progress,
        )
        for group in groups
    ]
    shown = f"the {len(folders[0])} seeds of {names[0]}" if len(names) == 1 else ", ".join(names)
    made.notes += [f"{shown}: {note}" for each in found for note in each.notes]
    shared = [
        each.correlation[a][b]
        for each in found
        for a, b in itertools.combinations(range(len(each.members)), 2)
    ]
    known = [value for value in shared if value is not None]
    if known:
        least, most = min(known), max(known)
        made.notes.append(f"{shown}: errors of two members correlate by {least:.3f} to {most:.3f}")
    return [
        _row(
            f"{how} of {shown}",
            step,
            [each.ensembles[how]["top1"] for each in found],
            [each.ensembles[how].get("top5") for each in found],
            None,
        )
        for how in HOW
        if all(how in each.ensembles for each in found)
    ]


def _baselines(step: Baselines, where: _Where, progress: Progress) -> list[dict[str, Any]]:
    found = baselines(data=where.data, cache=where.cache, progress=progress, **step.model_dump())
    shown = " + ".join(found.backbone)
    return [
        _row(
            f"{row['baseline']}, {row['setting']}: {shown}",
            step,
            [row["top1"]],
            [row["top5"]],
            row["seconds"],
        )
        for row in found.table
    ]


def _row(
    what: str,
    step: Evaluate | Baselines,
    top1: Sequence[float],
    top5: Sequence[float | None],
    seconds: float | None,
) -> dict[str, Any]:
    from featurecache.heads.trials import interval  # torch

    low, high = interval(np.array(top1))
    known = [value for value in top5 if value is not None]
    return {
        "what": what,
        "split": step.split,
        "view": " + ".join(_views(step)),
        "n": len(top1),
        "top1": float(np.mean(top1)),
        "low": low,
        "high": high,
        "top5": float(np.mean(known)) if known else None,
        "seconds": seconds,
    }


def _views(step: Evaluate | Baselines) -> list[str]:
    return [step.view, *(_listed(step.tta) if isinstance(step, Evaluate) else ())]


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else names


def _notes(made: _Made) -> Iterator[str]:
    for name, each in made.runs.items():
        yield from (f"{name}: {note}" for one in each for note in one.notes)
