"""Run a recipe, from images to one table. Like `quickstart` it only calls other stages."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import UnknownName
from featurecache.executors import Progress, silent
from featurecache.executors.pool import checked_workers
from featurecache.heads.schedules import Schedule
from featurecache.runs.record import make_folder, read_run
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.baselines import baselines
from featurecache.stages.heads.ensemble import HOW, ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import DEVICES, TrainedRun, train_head
from featurecache.stages.looking.report import report
from featurecache.stages.recipes.recipe_file import (
    Baselines,
    Ensemble,
    Evaluate,
    Featurize,
    Report,
    TrainHead,
    check_recipe,
    read_recipe,
    views_of_step,
)


@dataclass(frozen=True)
class Ran:
    """What a recipe came to.

    A row of `table` is {what, split, view, n, top1, low, high, top5, seconds}: the mean top1 and
    top5 of n seeds, the 95% interval of the mean by Student's t, or for one its bootstrap over
    images, the mean seconds of a training. A sweep that was validated on what is evaluated has a
    row for each setting, without top5; of others the winner has a row, and `trials` the settings as
    `train-head` gives them. `runs` are the run folders of each schedule, a seed each.
    """

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
    check_recipe(wanted, where.data, where.cache, engine)
    make_folder(Path(where.runs), "--runs")
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
        elif isinstance(step, Report):
            first = [made.runs[name][0].run for name in step.of or made.runs]
            page = report(
                first,
                out=Path(where.runs) / step.name,
                split=step.split,
                view=step.view,
                data=where.data,
                cache=where.cache,
                progress=progress,
            )
            made.notes += [f"report: {page.path}", *page.notes]
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


def _validated_so(schedule: Schedule, step: Evaluate) -> bool:
    """Is what an evaluation looks at what the schedule was validated on?"""
    validation = schedule.validation
    return (validation.split, [validation.view]) == (step.split, views_of_step(step))


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
    made.notes += [f"{name}: {note}" for one in found for note in one.notes]
    seconds = [read_run(each).seconds or 0.0 for each in runs]
    what = f"{name}, its winner" if made.runs[name][0].trials else name
    return _row(
        what,
        step,
        [one.top1 for one in found],
        [one.top5 for one in found],
        round(float(np.mean(seconds)), 1),
        found[0].interval,
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
            found[0].ensembles[how]["interval"],
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
            (row["low"], row["high"]),
        )
        for row in found.table
    ]


def _row(
    what: str,
    step: Evaluate | Baselines,
    top1: Sequence[float],
    top5: Sequence[float | None],
    seconds: float | None,
    of_images: Sequence[float],
) -> dict[str, Any]:
    """A row of the table; `of_images` is the interval of the first number, over images."""
    from featurecache.heads.sweep import interval  # torch

    low, high = of_images if len(top1) == 1 else interval(np.array(top1))
    known = [value for value in top5 if value is not None]
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


def _notes(made: _Made) -> Iterator[str]:
    for name, each in made.runs.items():
        yield from (f"{name}: {note}" for one in each for note in one.notes)
