"""What the precision of a training costs in accuracy (law 9, "f32 unless asked")."""

from __future__ import annotations

import tempfile
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


def precision_cost(
    schedule: Schedule,
    training: TrainingData,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    device: str,
) -> list[str]:
    """A sentence about the difference in top-1 between two short trainings with the same seed, on
    the first fold, one in the precision of the schedule and one in f32; empty for f32."""
    if schedule.precision is None:
        return []
    warn_of_slow_bf16(schedule.precision, device_of(device).type)
    train_rows, validation = pairs[0]
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
    rights = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trained").mkdir()
        for precision in (schedule.precision, None):
            same = short.model_copy(update={"precision": precision})
            outcome = outcome_of(
                Path(folder), precision or "f32", same, training, [(chosen, validation)],
                device, lambda epochs: None,
            )  # fmt: skip
            rights.append(outcome.array()[None])
    half, exact = rights
    cost = difference(half, exact)
    return [
        f"{schedule.precision} instead of f32: top-1 {100 * cost.difference:+.1f} points "
        f"({100 * cost.low:+.1f} to {100 * cost.high:+.1f}) on {len(validation):,} validation "
        f"images, after {_EPOCHS} epochs on {len(chosen):,} training images with the same seed"
    ]
