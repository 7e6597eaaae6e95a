"""The images of a dataset that a run held out for validation, and those it was trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.heads.defaults import VALIDATED
from featurecache.heads.splits import checked_pairs, split_items
from featurecache.heads.trained_items import FILE, TrainedItems
from featurecache.images.datasets import Dataset
from featurecache.json_files import damaged_run
from featurecache.lookup.labelled_rows import (
    LabelledRows,
    labelled_rows,
    rows_digest,
    training_rows,
)
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.seen_items import fitted_by_datasets
from featurecache.text import counted

HELD_OUT = "held-out"  # as a split: the images that a run was validated on, whatever their split


def trained_items(
    run: str | Path,
    record: RunRecord,
    dataset: Dataset,
    cache: Cache,
    progress: Progress = silent,
) -> TrainedItems:
    """The images that a run was trained on. An older run did not save them: they are derived from
    its schedule if the dataset is still the same. Raises BadInput if it is not."""
    loaded = TrainedItems.load(Path(run))
    if loaded is not None:
        return loaded
    schedule = schedule_of(record)
    splits = schedule.splits
    spaces_by_name = {space.name: space for space in cache.spaces()}
    spaces = {
        view: [spaces_by_name[name] for name in names if name in spaces_by_name]
        for view, names in record.spaces.items()
    }
    try:
        rows = labelled_rows(dataset, splits, progress)
        all_spaces = [space for view_spaces in spaces.values() for space in view_spaces]
        judged = spaces.get(schedule.validation.view)
        rows = training_rows(dataset, splits, rows, all_spaces, progress, judged).rows
    except BadInput:
        rows = LabelledRows.pack([])  # the dataset now has other splits, or none of these images
    if rows_digest(rows) != record.rows:
        raise BadInput(
            f"{run} was trained on other images or labels than {dataset.root} now has, so its "
            "held-out images are unknown; train it again"
        )
    items, labels = rows.items, rows.labels
    if schedule.validation.split is None:
        pairs = split_items(items, labels, schedule, record.classes, rows.groups)
    else:
        pairs = [(np.flatnonzero(rows.is_train), np.flatnonzero(~rows.is_train))]
    return TrainedItems.from_pairs(
        items, checked_pairs(pairs, items, labels, schedule, record.classes)
    )


def held_out_rows(
    dataset: Dataset,
    opened: Sequence[RunRecord],
    trained: Sequence[TrainedItems],
    without: Collection[bytes],
    progress: Progress,
) -> LabelledRows:
    """The rows of a dataset that all of these runs held out, except the items `without`. Raises
    BadInput if there are none."""
    named = [schedule_of(record).validation.split or "train" for record in opened]
    splits = [split for split in dict.fromkeys(named) if split in dataset.splits]
    rows = labelled_rows(dataset, splits, progress)
    held_out_masks = [run_items.folds_of(rows.items) > 0 for run_items in trained]
    matches = rows.where(np.all(held_out_masks, axis=0) & ~rows.are_in(without))
    if matches:
        return matches
    if len(opened) == 1:
        raise BadInput(
            f"{dataset.root} has none of the images that this run held out; give other --data, or "
            f"one of the splits of this: --split {' or '.join(dataset.splits)}"
        )
    raise BadInput(
        "no image was held out by all of these runs; train them with validation: {folds: 5}, "
        "which holds out every image once, or with a fraction and the same seed"
    )


def validated_folder(run: Path) -> Path:
    """The folder of the head that a run's validation measured: a folder in the run if the run's own
    head was trained on all images, else the run itself."""
    folder = run / VALIDATED
    return folder if folder.is_dir() else run


def seen_by_run(run: Path) -> frozenset[bytes]:
    """The images that the head or the network in a run folder was trained on. Raises DamagedRun if
    they are unknown."""
    trained = TrainedItems.load(run)
    if trained is None:
        raise damaged_run(run / FILE, "missing", "copy it from the run, or train again")
    is_final = validated_folder(run) != run  # trained on the held-out images too
    items = trained.items if is_final else trained.common_items
    return frozenset(row.tobytes() for row in items)


def trained_on_note(
    run: str | Path,
    record: RunRecord,
    dataset: Dataset,
    cache: Cache,
    rows: LabelledRows,
    split: str,
) -> list[str]:
    """A note if a run was trained on some of these rows, which makes its accuracy too high."""
    if split != "train" and not (Path(run) / FILE).exists():
        return []  # an older run; no other split of its dataset has training images (law 8)
    try:
        trained = trained_items(run, record, dataset, cache)
    except BadInput:
        return [
            f"{run} may have been trained on some of these images; which ones is unknown, because "
            f"{dataset.root} has changed since"
        ]
    notes = []
    for source, fitted in fitted_by_datasets({row.origin for row in rows if row.origin}).items():
        if (trained.folds_of(list(fitted)) >= 0).any():
            notes.append(
                f"{source.name}: its generator was fitted on images that {run} was trained on, so "
                "its accuracy on these images says little about others"
            )
    folds = trained.folds_of(rows.items)
    networks = trained.networks
    is_final = validated_folder(Path(run)) != Path(run)  # trained on the held-out images too
    seen = int((folds == 0).sum() if networks == 1 and not is_final else (folds >= 0).sum())
    if not seen:
        return notes
    by = (
        "trained on"
        if networks == 1
        else f"trained on by {networks - 1} of its {networks} networks"
    )
    return [
        *notes,
        f"{seen:,} of these {counted(len(rows), 'image')} {'was' if seen == 1 else 'were'} {by} in "
        f"{run}, so its accuracy here is too high; --split {HELD_OUT} uses the images that it was "
        "not trained on",
    ]
