"""Recipes: steps that are commands with their options, read and checked before the first step.

A recipe says what to do; where to do it (workers, engine, device) is chosen when it is run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from featurecache import yaml_files
from featurecache.errors import BadInput, UnknownName, located
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import choose_engine
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.generators.configs import read_config as read_generator_config
from featurecache.heads.schedules import (
    Schedule,
    backbone_choice,
    find_schedule,
    read_schedule,
)
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.view_names import ViewName
from featurecache.images.views import View, find_view
from featurecache.networks.configs import read_config
from featurecache.runs.generated_vectors import is_generated
from featurecache.runs.held_out import HELD_OUT
from featurecache.runs.training_pictures import view_in_epoch
from featurecache.stages.heads.ensemble import HOW
from featurecache.stages.recipes.recipe_checks import (
    check_alike,
    check_classes,
    check_held_out,
    check_network,
    check_split,
    check_stacked,
    check_vectors,
)
from featurecache.stages.recipes.recipe_generators import PlannedGenerators
from featurecache.stages.recipes.recipe_steps import (
    BEST_EPOCH,
    COMMANDS,
    Augment,
    DataStep,
    Ensemble,
    Evaluate,
    Featurize,
    FitGenerator,
    MakeStep,
    Measure,
    Names,
    Report,
    RunRecipe,
    Step,
    TrainHead,
    TrainNetwork,
    in_step,
    views_of_step,
)
from featurecache.text import listed
from featurecache.training.curriculum import TrainingPlan
from featurecache.training.settings import YamlModel
from featurecache.training.sweep_settings import distinct_settings


class RecipeFile(YamlModel):
    """The top of a recipe. `data`, `cache` and `runs` are relative to the working folder, as in
    every command; schedule, policy and weights files are relative to the recipe's folder."""

    description: str = ""
    data: Names = "data"
    cache: str = "data/cache"
    runs: str = "runs"
    steps: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The content of a recipe file: its steps, and the path and content of each schedule by its
    name in the recipe. Policies and weights of the steps are relative to the working folder."""

    path: Path
    file: RecipeFile
    steps: list[tuple[str, Step]]  # each with its location, for errors
    schedules: dict[str, tuple[Path, Schedule]]


def read_recipe(recipe: str | Path, is_inner: bool = False) -> Recipe:
    """Read a recipe and its schedules. A BadInput names the step, and each wrong option with the
    nearest valid one. Datasets, caches and networks are not opened. An inner recipe, which another
    one runs, runs none itself."""
    path = Path(recipe)
    file = yaml_files.validate(RecipeFile, yaml_files.read_mapping(path), path)
    steps: list[tuple[str, Step]] = []
    schedules: dict[str, tuple[Path, Schedule]] = {}
    reports: set[str] = set()
    for number, entry in enumerate(file.steps, 1):
        where = f"{path}, step {number}"
        if len(entry) != 1:
            raise BadInput(
                f"{where}: expected one command with its options, for example `evaluate: {{}}`"
            )
        ((command, options),) = entry.items()
        if command not in COMMANDS:
            raise UnknownName("step", command, COMMANDS, where)
        where = f"{where}, {command}"
        step = yaml_files.validate(COMMANDS[command], {} if options is None else options, where)
        step = _from_here(step, path.parent)
        if isinstance(step, TrainHead | TrainNetwork):
            if step.schedule in schedules:
                raise BadInput(f"{where}: {step.schedule} is trained above; list all seeds there")
            with located(where):
                file_path, schedule = _schedule_of(step, path.parent, where)
            for name, (other_path, twin) in schedules.items():
                if isinstance(step, TrainHead) and (other_path.stem, twin) == (
                    file_path.stem,
                    schedule,
                ):
                    raise BadInput(f"{where}: {step.schedule} trains the same runs as {name} above")
            schedules[step.schedule] = file_path, schedule
        elif isinstance(step, FitGenerator):
            with located(where):
                read_generator_config(Path(step.config))
        elif isinstance(step, RunRecipe):
            if is_inner:
                raise BadInput(f"{where}: {path} is run by a recipe, so it can't run another one")
            with located(where):
                read_recipe(step.recipe, is_inner=True)
        elif isinstance(step, Measure):
            trainings = [s for _, s in steps if isinstance(s, TrainHead | TrainNetwork)]
            _check_runs(step, trainings, where)
            for group in held_out_groups(step, trainings, schedules):
                if isinstance(step, Ensemble) and step.how == "stack":
                    check_stacked(step.split, group, where)
                check_alike(group, where)
            if isinstance(step, Report) and step.name in reports:
                raise BadInput(
                    f"{where}: name: {step.name} is written by an earlier step; choose another"
                )
            reports |= {step.name} if isinstance(step, Report) else set()
        steps.append((where, step))
    return Recipe(path=path, file=file, steps=steps, schedules=schedules)


def _schedule_of(step: TrainHead | TrainNetwork, folder: Path, where: str) -> tuple[Path, Schedule]:
    """The file of a training, and what it says. A network's training is given as the schedule of a
    head on it, which has the same plan."""
    if isinstance(step, TrainNetwork):
        path = Path(_beside(folder, step.config))
        config = read_config(path)
        plan = config.as_json(include=set(TrainingPlan.model_fields))
        return path, Schedule.model_validate({"backbone": {"name": config.network.name}, **plan})
    path = find_schedule(_beside(folder, step.schedule))
    schedule = read_schedule(path)
    if schedule.sweep is not None:
        distinct_settings(schedule, path)
        if step.seeds is not None:
            raise BadInput(f"{where}: {step.schedule} is a sweep; list the seeds in its schedule")
    return path, schedule


def _check_runs(step: Measure, trainings: Sequence[TrainHead | TrainNetwork], where: str) -> None:
    """Raise BadInput if the earlier steps do not train the runs that this step needs."""
    if not trainings:
        raise BadInput(f"{where}: there is no train-head step above it, so there are no runs")
    seeds = {train.schedule: len(train.seeds or [None]) for train in trainings}
    if isinstance(step, Evaluate):
        if step.against is not None and step.against not in seeds:
            raise UnknownName("training", step.against, seeds, f"{where}: against")
        return
    for name in step.of or ():
        if name not in seeds:
            raise UnknownName("schedule", name, seeds, f"{where}: of the train-head steps above")
    if len(set(step.of or ())) < len(step.of or ()):
        raise BadInput(f"{where}: of: a schedule is listed twice in {step.of}")
    if isinstance(step, Report):
        return
    if step.how is not None and step.how not in HOW:
        raise UnknownName("ensemble", step.how, HOW, where)
    counts = [seeds[name] for name in step.of or seeds]
    if counts == [1]:
        raise BadInput(f"{where}: an ensemble needs at least two runs; add schedules or seeds")
    if len(set(counts)) > 1 and not step.all_seeds:
        raise BadInput(
            f"{where}: schedules with {counts} seeds can't be combined seed by seed; give them the "
            "same number, or write all_seeds: true"
        )


def held_out_groups(
    step: Measure,
    trainings: Sequence[TrainHead | TrainNetwork],
    schedules: Mapping[str, tuple[Path, Schedule]],
) -> list[list[Schedule]]:
    """Groups of schedules, with their seeds, that must hold out images in common: the members of a
    stack, and all runs of a step on held-out images. An ensemble of several schedules has one group
    per seed, one of a single schedule or of all seeds a single group, a report a group of first
    seeds."""
    stacked = isinstance(step, Ensemble) and step.how == "stack"
    if not isinstance(step, Ensemble | Report) or not (stacked or step.split == HELD_OUT):
        return []
    seeds = {train.schedule: train.seeds for train in trainings}
    seeded = []  # of each schedule, its copies with each seed
    for name in step.of or list(seeds):
        _, schedule = schedules[name]
        schedule_seeds = seeds[name] or [schedule.seed]
        seeded.append([schedule.model_copy(update={"seed": seed}) for seed in schedule_seeds])
    if isinstance(step, Report):
        return [[copies[0] for copies in seeded]]
    if step.all_seeds:
        return [[schedule for copies in seeded for schedule in copies]]
    return seeded if len(seeded) == 1 else [list(group) for group in zip(*seeded, strict=True)]


def _from_here(step: Step, folder: Path) -> Step:
    """The step with its policy and weights files made relative to the working folder."""

    def view(name: str) -> str:
        parts = ViewName.parse(name)
        if not parts.is_file:
            return name
        return str(replace(parts, policy=_beside(folder, parts.policy)))

    changed: dict[str, Any] = {}
    for key in ("policy", "view", "tta"):
        if hasattr(step, key):
            value = getattr(step, key)
            changed[key] = view(value) if isinstance(value, str) else [view(n) for n in value]
    if isinstance(step, RunRecipe):
        changed["recipe"] = _beside(folder, step.recipe)
    if isinstance(step, FitGenerator):
        changed["config"] = _beside(folder, step.config)
    if isinstance(step, Featurize) and step.weights is not None:
        changed["weights"] = _beside(folder, step.weights)
    return step.model_copy(update=changed)


def _beside(folder: Path, name: str) -> str:
    return str(folder / name) if (folder / name).is_file() else name


def check_recipe(
    recipe: Recipe, data: DataSource, cache: str | Path, runs: str | Path, engine: str
) -> None:
    """Raise BadInput for anything that would make a later step fail. Policies that name a generator
    that the recipe is going to fit are checked by their steps."""
    own_steps: list[tuple[str, DataStep]] = []
    for where, step in recipe.steps:
        if isinstance(step, RunRecipe):
            with located(where):
                inner, folder = read_recipe(step.recipe), dataset_in(data, step, where)
                check_recipe(inner, folder, cache, runs, engine)
        else:
            own_steps.append((where, step))
    if own_steps:
        generators = PlannedGenerators(runs=runs)
        _check_steps(own_steps, recipe.schedules, data, Cache(cache), generators, engine)


def _check_steps(
    steps: Sequence[tuple[str, DataStep]],
    schedules: Mapping[str, tuple[Path, Schedule]],
    data: DataSource,
    opened: Cache,
    generators: PlannedGenerators,
    engine: str,
) -> None:
    """Check the steps of a recipe on its dataset."""
    dataset = open_dataset(data)
    cached = opened.spaces()
    planned: dict[Path | None, list[Space]] = defaultdict(list)  # by the folder of other data
    stored = {space.name: space for space in cached}  # a space keeps the backbone's first name
    heads: dict[str, Schedule] = {}
    trainings: list[TrainHead | TrainNetwork] = []

    def views_of(names: Iterable[str], seed: int) -> list[View]:
        present = (name for name in names if not generators.has_policy(name))
        return [find_view(name, seed, opened.views) for name in present]

    for where, step in steps:
        with in_step(where, step):
            if isinstance(step, MakeStep):
                generators.add(step, dataset, where)
            elif isinstance(step, Augment | Featurize):
                views = views_of(listed(step.policy), step.seed)
                made = _spaces_of(step, views, opened, engine)
                planned[generators.source(step)] += [stored.setdefault(s.name, s) for s in made]
            elif isinstance(step, TrainHead | TrainNetwork):
                schedule = schedules[step.schedule][1]
                if schedule.validation.split is not None:
                    check_split(dataset, schedule.validation.split, where)
                has_head = isinstance(step, TrainHead)
                names = [name for name in schedule.views() if not is_generated(name)]
                names = [name if has_head else view_in_epoch(name, 1) for name in names]
                views = views_of(names, schedule.augment_seed)
                if not has_head:
                    check_network(schedules[step.schedule][0], dataset)
                    for view in views:
                        view.check()
                else:
                    check_vectors(cached, planned[None], schedule.backbone, views, where)
                    for folder in generators.datasets_of(schedule, opened, where):
                        images = f"{where}: images in {folder.name}"
                        check_vectors(
                            cached, planned[folder], schedule.backbone, [View(None)], images
                        )
                    heads[step.schedule] = schedule
                check_classes(schedule, dataset, where)
                trainings.append(step)
            elif isinstance(step, Measure):
                if step.split not in (HELD_OUT, BEST_EPOCH):
                    check_split(dataset, step.split, where)
                names = list(heads)
                if isinstance(step, Ensemble | Report) and step.of:
                    names = [name for name in step.of if name in heads]
                for group in held_out_groups(step, trainings, schedules):
                    check_held_out(group, dataset, where)
                for schedule in (heads[name] for name in names):
                    views = views_of(views_of_step(step), schedule.augment_seed)
                    check_vectors(cached, planned[None], schedule.backbone, views, where)
            else:
                check_split(dataset, step.split, where)
                choice = {
                    **step.setting(), "precision": step.precision, "jpeg_side": step.jpeg_side
                }  # fmt: skip
                choices = [backbone_choice(name, choice, where) for name in listed(step.backbone)]
                check_vectors(
                    cached, planned[None], choices, views_of([step.view], step.seed), where
                )


def dataset_in(data: DataSource, step: RunRecipe, where: str) -> Path:
    """The dataset of a recipe within a recipe. Raises BadInput if there is none."""
    folder = Path(data) / step.data if isinstance(data, str | Path) else None
    if folder is None or not folder.is_dir():
        raise BadInput(
            f"{where}: data: {folder or step.data} is not a folder; name one in the recipe's data"
        )
    return folder


def _spaces_of(
    step: Augment | Featurize, views: Sequence[View], cache: Cache, engine: str
) -> Iterator[Space]:
    """The spaces of vectors that a step will fill. Checks its policies and builds its networks."""
    views = [replace(view, jpeg_side=step.jpeg_side) for view in views]
    for view in views:
        view.check()
    if isinstance(step, Augment):
        return
    names = listed(step.backbone)
    if step.weights is not None and len(names) > 1:
        raise BadInput(
            "weights fit only one backbone; use a separate featurize step for each backbone"
        )
    choose_engine(engine, step.precision)
    for name in names:
        backbone = load_backbone(name, step.weights, **step.setting(), store=step.store)
        for view in views:
            key = view.vector_key(backbone.key(), step.precision)
            yield cache.space(key, view.name, backbone.name)
