"""The images that generators were fitted on, and the folds in which they may be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.generated_items import leak
from featurecache.generator_files import TrainedGenerator
from featurecache.heads.trained_items import TrainedItems
from featurecache.runs.generator_records import read_generator_record

FORWARD = 1  # the version of the code that computes what a generator makes


def generator_folders(run: Path) -> list[Path]:
    """The folders of the generators of a run: those of its folds, or itself. Raises BadInput if it
    is not a finished run of a generator, DamagedRun, CannotRead."""
    record = read_generator_record(run)
    if not record.is_finished:
        raise BadInput(f"{run}: its training is not finished; run the same fit-generator again")
    folds = (record.generator.get("validation") or {}).get("folds", 0)
    return [run / f"fold_{number}" for number in range(1, folds + 1)] or [run]


def generator_key(described: TrainedGenerator) -> keys.Json:
    """All that determines what a generator makes, but for noise and classes."""
    fields = ("kind", "generator", "parameters", "image_size", "weights")
    return {name: getattr(described, name) for name in fields} | {"version": FORWARD}


def generator_without(
    generators: Sequence[TrainedItems], validation: np.ndarray, view: str, fold: int = 0
) -> int:
    """The number, from 0, of the first generator of a view that has seen no validation image, of
    items (M, 32). Raises BadInput if there is none; `fold` is from 1, or 0 without folds."""
    wanted = [item.tobytes() for item in validation]
    counts = [int((seen.folds_of(wanted) == 0).sum()) for seen in generators]
    if 0 in counts:
        return counts.index(0)
    images = "validation images" + (f" of fold {fold}" if fold else "")
    raise leak(
        f"view {view}", min(counts), len(wanted), images, "train with the same folds and seed"
    )
