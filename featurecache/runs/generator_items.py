"""The images that generators were fitted on, and the folds in which they may be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.generator_files import TrainedGenerator
from featurecache.heads.trained_items import TrainedItems
from featurecache.runs.generator_records import read_generator_record
from featurecache.seen_items import leak

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]  # the (train, validation) rows of each fold
VERSION = 1  # of the code that computes what a generator makes


def generator_folders(run: Path) -> list[Path]:
    """The folders of the generators of a run: those of its folds, or itself. Raises BadInput if it
    is not a finished run of a generator, DamagedRun, CannotRead."""
    record = read_generator_record(run)
    if not record.is_finished:
        raise BadInput(f"{run}: its training is not finished; run the same fit-generator again")
    folds = (record.generator.get("validation") or {}).get("folds", 0)
    return fold_folders(run, folds)


def fold_folders(run: Path, folds: int) -> list[Path]:
    """The folders of the generators of a run with so many folds; the run itself without any."""
    return [run / f"fold_{number}" for number in range(1, folds + 1)] or [run]


def generator_key(described: TrainedGenerator) -> keys.Json:
    """All that determines what a generator makes, but for noise and classes."""
    fields = ("kind", "generator", "parameters", "image_size", "weights")
    return {name: getattr(described, name) for name in fields} | {"version": VERSION}


def generators_of_folds(
    view: str, generators: Sequence[TrainedItems], pairs: Pairs, items: np.ndarray
) -> list[int]:
    """For each fold the number, from 0, of the first generator of a view that has seen none of its
    validation images, of items (N, 32). Raises BadInput if there is none."""
    numbers = []
    for fold, (_, validation) in enumerate(pairs, 1):
        counts = [int((seen.folds_of(items[validation]) == 0).sum()) for seen in generators]
        if 0 not in counts:
            images = "validation images" + (f" of fold {fold}" if len(pairs) > 1 else "")
            remedy = "train with the same folds and seed"
            raise leak(f"view {view}", min(counts), len(validation), images, remedy)
        numbers.append(counts.index(0))
    return numbers
