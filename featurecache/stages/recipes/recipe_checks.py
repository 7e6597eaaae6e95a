"""Checks of schedules and dataset that a recipe's training and stacking steps need to pass before
the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from featurecache import keys
from featurecache.errors import BadInput, UnknownName, located
from featurecache.features.spaces import Space
from featurecache.features.timm_models import find_model
from featurecache.heads.schedules import BackboneChoice, Schedule
from featurecache.heads.splits import check_fraction
from featurecache.images.datasets import Dataset
from featurecache.images.views import View
from featurecache.lookup.held_spaces import ambiguity, fitting_spaces, hint_about_runs, is_alike
from featurecache.lookup.labelled_rows import labelled_rows, training_rows
from featurecache.networks.configs import read_config
from featurecache.runs.held_out import HELD_OUT
from featurecache.runs.training_data import split_rows
from featurecache.text import counted

_REMEDY = "train with validation: {folds: 5}, or with one fraction and one seed"


def check_stacked(split: str, group: Sequence[Schedule], where: str) -> None:
    """Raise BadInput for members whose stack would be tested on the images it is fitted on."""
    if split in (*_validated(group), HELD_OUT):
        raise BadInput(
            f"{where}: how: stack: its members are validated on images of split {split}, so the "
            f"stack can't be tested on them; {_REMEDY}, and evaluate another split"
        )


def check_alike(group: Sequence[Schedule], where: str) -> None:
    """Raise BadInput for members that cannot hold out an image in common in any dataset."""
    splits = _validated(group)
    if len(splits) > 1:
        raise BadInput(
            f"{where}: its members are validated on images of {len(splits)} splits, so none is "
            f"held out by all of them; {_REMEDY}"
        )


def _validated(group: Sequence[Schedule]) -> set[str]:
    """The splits that contain the held-out images of these schedules."""
    return {schedule.validation.split or "train" for schedule in group}


def check_held_out(group: Sequence[Schedule], dataset: Dataset, where: str) -> None:
    """Raise BadInput if these members hold out no image in common. Hashes the training images if
    fractions or seeds differ."""
    parts = {
        (schedule.validation.fraction, schedule.seed): schedule
        for schedule in group
        if schedule.validation.fraction is not None
    }
    if len(parts) < 2:
        return
    rows = training_rows(dataset, ["train"], labelled_rows(dataset, ["train"]), []).rows
    held_out = [
        set(split_rows(rows, schedule, dataset.classes)[0][1].tolist())
        for schedule in parts.values()
    ]
    if not set.intersection(*held_out):
        fractions = ", ".join(f"{fraction} with seed {seed}" for fraction, seed in parts)
        raise BadInput(
            f"{where}: its members hold out fractions ({fractions}) that have no image in "
            f"common; {_REMEDY}"
        )


def check_network(path: Path, dataset: Dataset) -> None:
    """Raise BadInput for a configuration whose layers do not fit its network. The network is built
    only where the configuration divides it, which takes a second."""
    config = read_config(path)
    with located(path):
        find_model(config.network.name)
    if config.init_head is not None or not (config.pretrain or config.trainable != "all"):
        return
    from featurecache.runs.network_parts import network_parts  # torch

    with located(path):
        network_parts(config, dataset.classes)


def check_classes(schedule: Schedule, dataset: Dataset, where: str) -> None:
    """Raise BadInput for classes that a schedule names and the dataset lacks, and for classes with
    too few images for its validation. (Copies count here, so a training may find fewer still.)"""
    if isinstance(schedule.class_weights, dict):
        unknown = [name for name in schedule.class_weights if name not in dataset.classes]
        if unknown:
            raise UnknownName("class of class_weights", unknown[0], dataset.classes, where)
    if schedule.validation.split is not None:
        return
    needed = schedule.validation.folds or 2
    samples = [sample for sample in dataset.split("train") if not sample.origin]
    counts = Counter(sample.label for sample in samples)
    for label, name in enumerate(dataset.classes):
        if 0 < counts[label] < needed:
            raise BadInput(
                f"{where}: class {name!r} has {counted(counts[label], 'image')}, but this "
                f"validation needs at least {needed} in every class"
            )
    fraction = schedule.validation.fraction
    if fraction is not None and not any(sample.group for sample in samples):
        try:
            check_fraction(fraction, counts.total(), len(counts))
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error


def check_split(dataset: Dataset, split: str, where: str) -> None:
    """Raise BadInput for a split without labels."""
    if any(sample.label is None for sample in dataset.split(split)):
        raise BadInput(f"{where}: split {split!r} of {dataset.root} has no labels; choose another")


def check_vectors(
    cached: Sequence[Space],
    planned: Sequence[Space],
    choices: Sequence[BackboneChoice],
    views: Sequence[View],
    where: str,
) -> None:
    """Raise BadInput unless the earlier steps make these views with these backbones, and each
    choice is unambiguous among the spaces they make and those in the cache."""
    for choice in choices:
        matches = fitting_spaces(planned, choice, f"{where}: the recipe")
        caption = f"{where}: with this recipe the cache"
        spaces = fitting_spaces([*cached, *planned], choice, caption)
        if matches and not is_alike(spaces[0], matches[0]):
            raise ambiguity(caption, choice, [matches[0], spaces[0]])
        made_views = [keys.canonical(space.key["view"]) for space in matches]
        for view in views:
            if keys.canonical(view.key()) not in made_views:
                hint = "" if matches else hint_about_runs(planned, choice)
                raise BadInput(
                    f"{where}: no featurize step above makes view {view.name} of "
                    f"{choice.model_dump(exclude_none=True)}{hint}"
                )
