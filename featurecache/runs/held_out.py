"""Held-out images: those of a dataset that a run was validated on, and those it was trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.heads.trained_items import FILE, TrainedItems
from featurecache.images.datasets import Dataset
from featurecache.lookup.labelled_rows import LabelledRow, labelled_rows, rows_digest, training_rows
from featurecache.runs.record import RunRecord, schedule_of

HELD_OUT = "held-out"  # as a split: the images that a run was validated on, whatever their split


def trained_items(
    run: str | Path,
    record: RunRecord,
    dataset: Dataset,
    cache: Cache,
    progress: Progress = silent,
) -> TrainedItems:
    """Which images a run was trained on. An older run has not written them down: they follow from
    its schedule as long as the dataset is the same. Raises BadInput where it is not."""
    loaded = TrainedItems.load(Path(run))
    if loaded is not None:
        return loaded
    from featurecache.heads.splits import checked_pairs, split_items  # scikit-learn

    schedule = schedule_of(record)
    val = schedule.validation.split
    splits = ["train"] if val is None else ["train", val]
    spaces_by_name = {space.name: space for space in cache.spaces()}
    spaces = [
        spaces_by_name[name]
        for names in record.spaces.values()
        for name in names
        if name in spaces_by_name
    ]
    try:
        rows = labelled_rows(dataset, splits, progress)
        rows = training_rows(dataset, splits, rows, spaces, progress).rows
    except BadInput:
        rows = []  # the dataset has other splits now, or none of these images
    if rows_digest(rows) != record.rows:
        raise BadInput(
            f"{run} was trained on other images or labels than {dataset.root} has now, so what "
            "it was not trained on is not known; train it again"
        )
    items = np.frombuffer(b"".join(row.item for row in rows), np.uint8).reshape(-1, 32)
    labels = np.array([row.label for row in rows], np.int64)
    if val is None:
        pairs = split_items(items, labels, schedule, record.classes)
    else:
        of_val = np.array([row.split != "train" for row in rows])
        pairs = [(np.flatnonzero(~of_val), np.flatnonzero(of_val))]
    return TrainedItems.from_pairs(
        items, checked_pairs(pairs, items, labels, schedule, record.classes)
    )


def held_out_rows(
    dataset: Dataset,
    opened: Sequence[RunRecord],
    trained: Sequence[TrainedItems],
    without: Collection[bytes] = (),
    progress: Progress = silent,
) -> list[LabelledRow]:
    """The rows of a dataset that every one of these runs was validated on, but for the items
    `without`. Raises BadInput for none."""
    named = [schedule_of(record).validation.split or "train" for record in opened]
    splits = [split for split in dict.fromkeys(named) if split in dataset.splits]
    rows = labelled_rows(dataset, splits, progress)
    items = [row.item for row in rows]
    held_out = np.all([of_run.folds_of(items) > 0 for of_run in trained], axis=0)
    matches = [
        row
        for row, is_held in zip(rows, held_out.tolist(), strict=True)
        if is_held and row.item not in without
    ]
    if matches:
        return matches
    if len(opened) == 1:
        raise BadInput(f"{dataset.root} has none of the images that this run held out")
    raise BadInput(
        "no image was held out for all of these runs; train them with validation: {folds: 5}, "
        "which holds every image out once, or with a fraction and the same seed"
    )


def networks_of(trained: TrainedItems, rows: Sequence[LabelledRow]) -> npt.NDArray[np.int64]:
    """(N,) for each held-out row the index of the network that was not trained on it."""
    return trained.folds_of([row.item for row in rows]) - 1


def trained_on_note(
    run: str | Path,
    record: RunRecord,
    dataset: Dataset,
    cache: Cache,
    rows: Sequence[LabelledRow],
    split: str,
) -> list[str]:
    """A note where a run was trained on some of these rows, which makes its accuracy too good."""
    if split != "train" and not (Path(run) / FILE).exists():
        return []  # an older run; of such a split its own dataset has no training image (law 8)
    try:
        trained = trained_items(run, record, dataset, cache)
    except BadInput:
        return [
            f"{run} may have been trained on some of these images; which is not known, since "
            f"{dataset.root} has changed since then"
        ]
    folds = trained.folds_of([row.item for row in rows])
    networks = trained.networks
    seen = int((folds == 0).sum() if networks == 1 else (folds >= 0).sum())
    if not seen:
        return []
    by = (
        "trained on"
        if networks == 1
        else f"trained on by {networks - 1} of its {networks} networks"
    )
    return [
        f"{seen:,} of these {len(rows):,} images were {by} in {run}, so its accuracy here is too "
        f"good; --split {HELD_OUT} takes the images that it was not trained on"
    ]
