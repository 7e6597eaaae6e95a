"""What the precision of a training costs in accuracy (law 9, "f32 unless asked")."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from featurecache.heads.schedules import Schedule
from featurecache.runs.training_data import TrainingData
from featurecache.stages.heads.outcomes import outcome_of
from featurecache.study.paired import difference
from featurecache.training.curriculum import Phase
from featurecache.training.devices import device_of, warn_of_slow_bf16

_ROWS = 4096  # of the trainings that are compared
_EPOCHS = 3


Pair = tuple[np.ndarray, np.ndarray]  # row numbers to train and to validate on


def precision_cost(
    schedule: Schedule, training: TrainingData, pairs: Sequence[Pair], device: str
) -> list[str]:
    """A sentence about the difference in top-1 between two short trainings with the same seed, on
    the first fold, one in the precision of the schedule and one in f32; empty for f32."""
    if schedule.precision is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trained").mkdir()

        def right(short: Schedule, pair: Pair) -> np.ndarray:
            outcome = outcome_of(
                Path(folder), short.precision or "f32", short, training, [pair], device,
                lambda epochs: None,
            )  # fmt: skip
            return outcome.array()

        return [measured_cost(schedule, pairs[0], device, right)]


def measured_cost(
    schedule: Schedule, pair: Pair, device: str, right: Callable[[Schedule, Pair], np.ndarray]
) -> str:
    """The sentence of `precision_cost`. `right` trains a schedule on a pair, and says which of its
    validation rows are classified correctly, (N,) bool."""
    warn_of_slow_bf16(schedule.precision, device_of(device).type)
    train_rows, validation = pair
    chosen = np.sort(np.random.default_rng(schedule.seed).permutation(train_rows)[:_ROWS])
    last = schedule.phases[-1]
    short = schedule.model_copy(
        update={
            "phases": [Phase(views=last.shares(last.epochs), epochs=_EPOCHS)],
            "sweep": None,
            "early_stopping": None,
            "pruning": None,
        }
    )
    if schedule.validation.folds:
        fold = schedule.validation.model_copy(update={"fold": 1})
        short = short.model_copy(update={"validation": fold})
    half, exact = (
        right(short.model_copy(update={"precision": precision}), (chosen, validation))[None]
        for precision in (schedule.precision, None)
    )
    cost = difference(half, exact)
    return (
        f"{schedule.precision} instead of f32: top-1 {100 * cost.difference:+.1f} points "
        f"({100 * cost.low:+.1f} to {100 * cost.high:+.1f}) on {len(validation):,} validation "
        f"images, after {_EPOCHS} epochs on {len(chosen):,} training images with the same seed"
    )
