"""Run a recipe, from images to one table. Like `quickstart`, it only calls other stages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.executors.pool import checked_workers
from featurecache.executors.progress_bars import ProgressOption
from featurecache.filling.fill import Filled
from featurecache.heads.schedules import Schedule
from featurecache.images.datasets import DataSource
from featurecache.runs.held_out import HELD_OUT
from featurecache.runs.record import make_folder, read_run
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.generators.fit_generator import fit_generator
from featurecache.stages.generators.generate import generate
from featurecache.stages.heads.baselines import baselines
from featurecache.stages.heads.ensemble import HOW, ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import TrainedRun, train_head
from featurecache.stages.looking.report import report
from featurecache.stages.networks.train_network import TrainedNetworkRun, train_network
from featurecache.stages.recipes.recipe_file import Recipe, check_recipe, dataset_in, read_recipe
from featurecache.stages.recipes.recipe_steps import (
    BEST_EPOCH,
    Augment,
    Baselines,
    Ensemble,
    Evaluate,
    Featurize,
    FitGenerator,
    Generate,
    Measure,
    Report,
    RunRecipe,
    Step,
    TrainHead,
    TrainNetwork,
    in_step,
    views_of_step,
)
from featurecache.stages.recipes.recipe_tables import (
    GainRow,
    SweepTrials,
    TableRow,
    gain_rows,
    table_row,
    trial_rows,
)
from featurecache.text import counted
from featurecache.training.settings import check_device


@dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """The result of a recipe.

    A sweep that was validated on the evaluated images has one row of `table` per setting, without
    top5. Of any other sweep the winner has a row, and `trials` has the settings as `train-head`
    returns them. `runs` has the run folders of each schedule, one per seed.
    """

    recipe: str
    computed: int  # rows, of vectors or pictures
    hits: int
    failed: list[dict[str, str]]
    seconds: float
    table: list[TableRow]
    trials: dict[str, SweepTrials]
    runs: dict[str, list[str]]
    notes: list[str]
    gains: list[GainRow] = field(default_factory=list)  # of evaluate steps with `against`


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
    check_device(device)
    checked_workers(workers)
    check_recipe(content, execution.data, execution.cache, execution.runs_folder, engine)
    make_folder(execution.runs_folder, "folder as runs" if runs is None else "--runs")
    for where, step in content.steps:
        with in_step(where, step):
            STEP_FUNCTIONS[type(step)](step, execution)
    heads = {  # the first seed of each schedule
        name: runs[0] for name, runs in execution.runs.items() if isinstance(runs[0], TrainedRun)
    }
    training_notes = [
        f"{name}: {note}"
        for name, trained in execution.runs.items()
        for run in trained
        for note in run.notes
    ]
    return RecipeResult(
        recipe=str(recipe),
        computed=execution.computed,
        hits=execution.hits,
        failed=list(execution.failed.values()),
        seconds=round(time.perf_counter() - start, 1),
        table=execution.table,
        trials={
            name: {"winner": first.winner, "trials": first.trials}
            for name, first in heads.items()
            if first.trials and name not in execution.tabulated
        },
        runs={name: execution.folders(name) for name in execution.runs} | execution.inner_runs,
        gains=execution.gains,
        notes=list(dict.fromkeys([*training_notes, *execution.notes])),
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
    # Per schedule or configuration.
    runs: dict[str, Sequence[TrainedRun | TrainedNetworkRun]] = field(default_factory=dict)
    inner_runs: dict[str, list[str]] = field(default_factory=dict)  # of recipes in the recipe
    gains: list[GainRow] = field(default_factory=list)
    table: list[TableRow] = field(default_factory=list)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tabulated: set[str] = field(default_factory=set)  # schedules whose trials are in the table
    computed: int = 0
    hits: int = 0

    def add(self, filled: Filled | RecipeResult) -> None:
        """Count the rows of a step or of a recipe within the recipe."""
        self.computed += filled.computed
        self.hits += filled.hits
        self.failed |= {row["path"]: row for row in filled.failed}

    def folders(self, schedule: str) -> list[str]:
        """The run folders of a schedule, one per seed."""
        return [trained.run for trained in self.runs[schedule]]

    def filling(self, step: Augment | Featurize) -> dict[str, Any]:
        """The keywords of a step that fills the cache."""
        options = step.model_dump(exclude={"data"} if step.data is None else None)
        return self.where() | {"workers": self.workers} | options

    def where(self) -> dict[str, Any]:
        """The keywords that every stage takes."""
        return {"data": self.data, "cache": self.cache, "progress": self.progress}


def _augment(step: Augment, execution: _Execution) -> None:
    execution.add(augment(**execution.filling(step)))


def _featurize(step: Featurize, execution: _Execution) -> None:
    execution.add(featurize(**execution.filling(step), engine=execution.engine))


def _fit_generator(step: FitGenerator, execution: _Execution) -> None:
    fitted = fit_generator(
        step.config,
        **execution.where(),
        out=step.out,
        device=execution.device,
        workers=execution.workers,
    )
    execution.notes += [f"{step.out}: {note}" for note in fitted.notes]


def _generate(step: Generate, execution: _Execution) -> None:
    made = generate(
        step.generator,
        out=step.out,
        per_class=step.per_class,
        runs=execution.runs_folder,
        workers=execution.workers,
        progress=execution.progress,
    )
    images = counted(made.images, "image")
    execution.notes.append(f"{made.out}: {images}, {step.per_class:,} of each class")


def _train(step: TrainHead | TrainNetwork, execution: _Execution) -> None:
    seeds: Sequence[int | None] = step.seeds or [None]
    is_head = isinstance(step, TrainHead)
    train: Any = train_head if is_head else partial(train_network, workers=execution.workers)
    execution.runs[step.schedule] = [
        train(
            execution.recipe.schedules[step.schedule][0],
            **execution.where(),
            runs=execution.runs_folder,
            seed=seed,
            device=execution.device,
        )
        for seed in seeds
    ]


def _run_recipe(step: RunRecipe, execution: _Execution) -> None:
    """The steps of another recipe; its results get the name of its dataset."""
    result = run(
        step.recipe,
        data=dataset_in(execution.data, step, step.recipe),
        cache=execution.cache,
        runs=execution.runs_folder,
        workers=execution.workers,
        engine=execution.engine,
        device=execution.device,
        progress=execution.progress,
    )
    execution.table += [{**row, "what": f"{step.data}: {row['what']}"} for row in result.table]
    execution.gains += [{**row, "what": f"{step.data}: {row['what']}"} for row in result.gains]
    execution.inner_runs |= {f"{step.data}: {name}": runs for name, runs in result.runs.items()}
    execution.notes += [f"{step.data}: {note}" for note in result.notes]
    execution.add(result)


def _featurize_networks(step: Measure, execution: _Execution) -> None:
    """Compute the vectors that a step needs of the networks that the recipe trained."""
    names = step.of if isinstance(step, Ensemble | Report) and step.of else list(execution.runs)
    for trained in (trained for name in names for trained in execution.runs[name]):
        if step.split in (HELD_OUT, BEST_EPOCH) or isinstance(trained, TrainedRun):
            continue  # train-network has computed those of its validation
        views = views_of_step(step)
        options: dict[str, Any] = {"policy": views, "backbone": trained.run, "split": step.split}
        featurize(**execution.where(), workers=execution.workers, **options)


def _report(step: Report, execution: _Execution) -> None:
    _featurize_networks(step, execution)
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
    _featurize_networks(step, execution)
    scores: dict[str, list[float]] = {}
    for name, trained in execution.runs.items():
        _, schedule = execution.recipe.schedules[name]
        first = trained[0]
        if isinstance(first, TrainedRun) and first.trials and _is_validated_on(schedule, step):
            execution.tabulated.add(name)
            execution.table += trial_rows(name, first, step)
        else:
            row, scores[name] = _mean_row(name, step, execution)
            execution.table.append(row)
    if step.against is not None:
        execution.gains += gain_rows(step, scores)


def _is_validated_on(schedule: Schedule, step: Evaluate) -> bool:
    """Was the schedule validated on the images and views that this step evaluates?"""
    validation = schedule.validation
    return (validation.split, [validation.view]) == (step.split, views_of_step(step))


def _mean_row(name: str, step: Evaluate, execution: _Execution) -> tuple[TableRow, list[float]]:
    """The row of a schedule, the means over its seeds, and the top-1 of each seed."""
    trained = execution.runs[name]
    folders = execution.folders(name)
    seconds = round(float(np.mean([read_run(folder).seconds or 0.0 for folder in folders])), 1)
    if step.split == BEST_EPOCH:
        best = [run.best["top1"] for run in trained]
        return table_row(name, step, best, [], seconds, None), best
    options = step.model_dump(exclude={"against"})
    results = [evaluate(folder, **execution.where(), **options) for folder in folders]
    execution.notes += [f"{name}: {note}" for result in results for note in result.notes]
    top1 = [result.top1 for result in results]
    row = table_row(
        f"{name}, its winner" if trained[0].trials else name,
        step,
        top1,
        [result.top5 for result in results],
        seconds,
        results[0].interval,
    )
    return row, top1


def _ensemble(step: Ensemble, execution: _Execution) -> None:
    """One row per way to combine runs."""
    _featurize_networks(step, execution)
    names = step.of or list(execution.runs)
    folders = [execution.folders(name) for name in names]
    title = ", ".join(names)
    if step.all_seeds or len(names) == 1:
        groups = [tuple(itertools.chain(*folders))]
        title = f"the {len(groups[0])} {'runs' if step.all_seeds else 'seeds'} of {title}"
    else:
        groups = list(zip(*folders, strict=True))
    results = [
        ensemble(list(group), **execution.where(), **step.model_dump(exclude={"of", "all_seeds"}))
        for group in groups
    ]
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
                table_row(
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
    execution.notes += [f"baselines of {networks}: {note}" for note in result.notes]
    execution.table += [
        table_row(
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
    Augment: _augment,
    Featurize: _featurize,
    FitGenerator: _fit_generator,
    Generate: _generate,
    TrainHead: _train,
    TrainNetwork: _train,
    Evaluate: _evaluate,
    Ensemble: _ensemble,
    Report: _report,
    Baselines: _baselines,
    RunRecipe: _run_recipe,
}
