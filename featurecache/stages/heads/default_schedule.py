"""What train-head trains without a schedule: the backbone, the split and the views to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from featurecache.errors import BadInput
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.defaults import mixture, network_schedule, validation_of
from featurecache.heads.schedules import Schedule, backbone_choice
from featurecache.images import styles
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.generator_nodes import digests
from featurecache.images.views import find_view
from featurecache.lookup.caches import first_command
from featurecache.lookup.held_spaces import (
    is_drawn_alike,
    side_by_side,
    spaces_like,
)
from featurecache.runs.training_data import TrainingData
from featurecache.text import listed
from featurecache.training.curriculum import Phase


def default_schedule(
    data: DataSource, cache: Cache, backbone: str | Sequence[str], seed: int | None
) -> Schedule:
    """The schedule of a network on the clean vectors of a dataset, scaled to its size.

    `backbone` may be omitted if the cache holds vectors of a single one. Raises BadInput.
    """
    names = listed(backbone) or [_only_backbone(cache, data)]
    dataset = open_dataset(data)
    if dataset.generated:
        raise BadInput(
            f"{dataset.generated[0]}: has generated images, and without a schedule a head is "
            "chosen on training images, which their generator may have seen; give a --schedule"
        )
    rows, classes = len(dataset.split("train")), len(dataset.classes)
    return network_schedule(
        [backbone_choice(name, where="--backbone") for name in names],
        validation_of(dataset.splits, rows, classes),
        rows=rows,
        classes=classes,
        seed=seed or 0,
    )


def _only_backbone(cache: Cache, data: DataSource) -> str:
    names = sorted({str(space.backbone) for space in cache.spaces() if space.backbone is not None})
    if not names:
        command = first_command(cache.root, data)
        raise BadInput(f"{cache.root} holds no vectors; compute them with: {command}")
    if len(names) > 1:
        options = ", ".join(f"--backbone {name}" for name in names)
        raise BadInput(f"{cache.root} holds vectors of {len(names)} backbones; give {options}")
    return names[0]


def with_choice(
    training: TrainingData, cache: Cache, schedule: Schedule, view: str | Sequence[str] | None
) -> tuple[TrainingData, Schedule]:
    """The training data and the schedule from which a head is chosen: with every view of the cache,
    unless the user named a `view`. Raises BadInput if a network was trained on the images that the
    choice is made on."""
    rows = training.rows.where(training.rows.is_train)
    for source, seen in training.fitted.items():
        count = int(rows.are_in(seen).sum()) if source.kind == "network" else 0
        if count:
            raise BadInput(
                f"{source.name}: it was trained on {count:,} of the {len(rows):,} training images, "
                "and without a schedule a head is chosen on some of these; give a --schedule"
            )
    return (training, schedule) if view else with_cached_views(training, cache, schedule)


def with_cached_views(
    training: TrainingData, cache: Cache, schedule: Schedule
) -> tuple[TrainingData, Schedule]:
    """The training data and the schedule with every view that the cache holds of all the images,
    made as it would be made now."""
    if training.window is not None:
        return training, schedule  # too many vectors for memory
    items = training.items
    spaces, vectors = dict(training.spaces), dict(training.vectors)
    clean = training.spaces[schedule.validation.view]
    for name in sorted({space.view for space in cache.spaces() if space.backbone is not None}):
        if name in spaces:
            continue
        view_spaces = _spaces_of_view(name, clean, cache, schedule.augment_seed)
        if view_spaces and not any(
            space.missing(items) or training.rows.are_in(space.failed).any()
            for space in view_spaces
        ):
            spaces[name], vectors[name] = view_spaces, side_by_side(view_spaces, items)
    phase = Phase(
        views=mixture(list(spaces), schedule.validation.view), epochs=schedule.phases[0].epochs
    )
    changed = schedule.model_copy(update={"phases": [phase]})
    return replace(training, spaces=spaces, vectors=vectors), changed


def _spaces_of_view(name: str, clean: Sequence[Space], cache: Cache, seed: int) -> list[Space]:
    """The spaces of a view under the backbones of the clean spaces; none if one is missing."""
    try:
        view = find_view(name, seed, cache.views)
    except BadInput:
        return []  # several policies have the name
    if view.policy is not None and (digests(view.policy.tree) or styles.digests(view.policy.tree)):
        return []  # it may be made of the images on which the head is chosen
    spaces = {space.name: space for space in cache.spaces()}
    view_spaces = []
    for space in clean:
        wanted = spaces_like(cache, {name: view}, space)[name]
        if wanted.name not in spaces or not is_drawn_alike(view, spaces[wanted.name]):
            return []
        view_spaces.append(spaces[wanted.name])
    return view_spaces
