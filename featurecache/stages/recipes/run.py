"""Run a recipe, from images to one table. Like `quickstart`, it only calls other stages."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from featurecache.errors import UnknownName
from featurecache.executors.pool import checked_workers
from featurecache.executors.progress_bars import ProgressOption
from featurecache.heads.schedules import Schedule
from featurecache.images.datasets import DataSource
from featurecache.runs.record import make_folder, read_run
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.baselines import baselines
from featurecache.stages.heads.ensemble import HOW, ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import DEVICES, TrainedRun, TrialRow, train_head
from featurecache.stages.looking.report import report
from featurecache.stages.recipes.recipe_file import (
    Baselines,
    Ensemble,
    Evaluate,
    Featurize,
    Recipe,
    Report,
    Step,
    TrainHead,
    check_recipe,
    read_recipe,
    views_of_step,
)


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


class SweepTrials(TypedDict):
    """The settings of a sweep, and the index of the one whose head was saved."""

    winner: int | None
    trials: list[TrialRow]


@dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """The result of a recipe.

    A sweep that was validated on the evaluated images has one row of `table` per setting, without
    top5. Of any other sweep the winner has a row, and `trials` has the settings as `train-head`
    returns them. `runs` has the run folders of each schedule, one per seed.
    """

    recipe: str
    computed: int  # rows
    hits: int
    failed: list[dict[str, str]]
    seconds: float
    table: list[TableRow]
    trials: dict[str, SweepTrials]
    runs: dict[str, list[str]]
    notes: list[str]


def run(
    recipe: str | Path,
    *,
    data: DataSource | None = None,
    cache: str | Path | None = None,
    runs: str | Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    progress: ProgressOption = False,
) -> RecipeResult:
    """Run the steps of a recipe (a YAML file) in order, except for work that is already done.

    `data`, `cache` and `runs` override the recipe's. Everything is checked before the first step:
    the recipe, its schedules, policies, networks and splits, and that an earlier step makes the
    vectors that each step needs. Raises BadInput if one of them is wrong.
    """
    start = time.perf_counter()
    content = read_recipe(recipe)
    execution = _Execution(
        recipe=content,
        data=content.file.data if data is None else data,
        cache=content.file.cache if cache is None else cache,
        runs_folder=Path(content.file.runs if runs is None else runs),
        workers=workers,
        engine=engine,
        device=device,
        progress=progress,
    )
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    checked_workers(workers)
    check_recipe(content, execution.data, execution.cache, engine)
    make_folder(execution.runs_folder, "--runs")
    for _, step in content.steps:
        STEP_FUNCTIONS[type(step)](step, execution)
    return RecipeResult(
        recipe=str(recipe),
        computed=execution.computed,
        hits=execution.hits,
        failed=list(execution.failed.values()),
        seconds=round(time.perf_counter() - start, 1),
        table=execution.table,
        trials={
            name: {"winner": first.winner, "trials": first.trials}
            for name, (first, *_) in execution.runs.items()
            if first.trials and name not in execution.tabulated
        },
        runs={name: execution.folders(name) for name in execution.runs},
        notes=list(dict.fromkeys([*_training_notes(execution), *execution.notes])),
    )


@dataclass(kw_only=True)
class _Execution:
    """Where a recipe runs, and what its steps have produced so far."""

    recipe: Recipe
    data: DataSource
    cache: str | Path
    runs_folder: Path
    workers: int | None
    engine: str
    device: str
    progress: ProgressOption
    runs: dict[str, list[TrainedRun]] = field(default_factory=dict)  # per schedule
    table: list[TableRow] = field(default_factory=list)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tabulated: set[str] = field(default_factory=set)  # schedules whose trials are in the table
    computed: int = 0
    hits: int = 0

    def folders(self, schedule: str) -> list[str]:
        """The run folders of a schedule, one per seed."""
        return [trained.run for trained in self.runs[schedule]]

    def where(self) -> dict[str, Any]:
        """The keywords that every stage takes."""
        return {"data": self.data, "cache": self.cache, "progress": self.progress}


def _featurize(step: Featurize, execution: _Execution) -> None:
    result = featurize(
        **execution.where(),
        engine=execution.engine,
        workers=execution.workers,
        **step.model_dump(),
    )
    execution.computed += result.computed
    execution.hits += result.hits
    execution.failed |= {row["path"]: row for row in result.failed}


def _train_head(step: TrainHead, execution: _Execution) -> None:
    seeds: Sequence[int | None] = step.seeds or [None]
    execution.runs[step.schedule] = [
        train_head(
            execution.recipe.schedules[step.schedule][0],
            **execution.where(),
            runs=execution.runs_folder,
            seed=seed,
            device=execution.device,
        )
        for seed in seeds
    ]


def _report(step: Report, execution: _Execution) -> None:
    page = report(
        [execution.runs[name][0].run for name in step.of or execution.runs],
        **execution.where(),
        out=execution.runs_folder / step.name,
        split=step.split,
        view=step.view,
    )
    execution.notes += [f"report: {page.path}", *page.notes]


def _evaluate(step: Evaluate, execution: _Execution) -> None:
    """One row per schedule, or per trial of a sweep that was validated on the same images."""
    for name, trained in execution.runs.items():
        _, schedule = execution.recipe.schedules[name]
        if _is_validated_on(schedule, step) and trained[0].trials:
            execution.tabulated.add(name)
            execution.table += _trial_rows(name, trained[0], step)
        else:
            execution.table.append(_mean_row(name, step, execution))


def _is_validated_on(schedule: Schedule, step: Evaluate) -> bool:
    """Was the schedule validated on the images and views that this step evaluates?"""
    validation = schedule.validation
    return (validation.split, [validation.view]) == (step.split, views_of_step(step))


def _trial_rows(name: str, trained: TrainedRun, step: Evaluate) -> list[TableRow]:
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


def _mean_row(name: str, step: Evaluate, execution: _Execution) -> TableRow:
    """The row of a schedule: the means over its seeds."""
    folders = execution.folders(name)
    results = [evaluate(folder, **execution.where(), **step.model_dump()) for folder in folders]
    execution.notes += [f"{name}: {note}" for result in results for note in result.notes]
    seconds = [read_run(folder).seconds or 0.0 for folder in folders]
    return _row(
        f"{name}, its winner" if execution.runs[name][0].trials else name,
        step,
        [result.top1 for result in results],
        [result.top5 for result in results],
        round(float(np.mean(seconds)), 1),
        results[0].interval,
    )


def _ensemble(step: Ensemble, execution: _Execution) -> None:
    """One row per way to combine runs."""
    names = step.of or list(execution.runs)
    folders = [execution.folders(name) for name in names]
    groups = folders if len(names) == 1 else list(zip(*folders, strict=True))
    results = [
        ensemble(list(group), **execution.where(), **step.model_dump(exclude={"of"}))
        for group in groups
    ]
    title = f"the {len(folders[0])} seeds of {names[0]}" if len(names) == 1 else ", ".join(names)
    execution.notes += [f"{title}: {note}" for result in results for note in result.notes]
    correlations = [
        result.correlation[a][b]
        for result in results
        for a, b in itertools.combinations(range(len(result.members)), 2)
    ]
    known = [correlation for correlation in correlations if correlation is not None]
    if known:
        execution.notes.append(
            f"{title}: errors of two members correlate by {min(known):.3f} to {max(known):.3f}"
        )
    for how in HOW:
        if all(how in result.ensembles for result in results):
            rows = [result.ensembles[how] for result in results]
            execution.table.append(
                _row(
                    f"{how} of {title}",
                    step,
                    [row["top1"] for row in rows],
                    [row.get("top5") for row in rows],
                    None,
                    rows[0]["interval"],
                )
            )


def _baselines(step: Baselines, execution: _Execution) -> None:
    result = baselines(**execution.where(), **step.model_dump())
    networks = " + ".join(result.backbone)
    execution.table += [
        _row(
            f"{row['baseline']}, {row['setting']}: {networks}",
            step,
            [row["top1"]],
            [row["top5"]],
            row["seconds"],
            (row["low"], row["high"]),
        )
        for row in result.table
    ]


STEP_FUNCTIONS: dict[type[Step], Callable[[Any, _Execution], None]] = {
    Featurize: _featurize,
    TrainHead: _train_head,
    Evaluate: _evaluate,
    Ensemble: _ensemble,
    Report: _report,
    Baselines: _baselines,
}


def _row(
    what: str,
    step: Evaluate | Baselines,
    top1: Sequence[float],
    top5: Sequence[float | None],
    seconds: float | None,
    image_interval: Sequence[float],
) -> TableRow:
    """A row of the table; `image_interval` is the interval of the first number over images."""
    from featurecache.heads.sweep import interval  # torch

    low, high = image_interval if len(top1) == 1 else interval(np.array(top1))
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


def _training_notes(execution: _Execution) -> Iterator[str]:
    for name, trained in execution.runs.items():
        yield from (f"{name}: {note}" for run in trained for note in run.notes)
