"""Which validation images a head gets right after a training whose files are not kept."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from featurecache.errors import DamagedRun
from featurecache.heads.schedules import Schedule
from featurecache.json_files import MAX_RUN_JSON, Strict, damaged_run, read_model
from featurecache.runs.training_data import TrainingData
from featurecache.storage import durable
from featurecache.training.epoch_metrics import NotNegative

if TYPE_CHECKING:
    from featurecache.heads.training_results import Trained
    from featurecache.runs.network_outcomes import NetworkOutcomes


class Outcome(Strict):
    """A file in `trained/`: one training, and which validation images its head gets right."""

    schedule: dict[str, Any]
    images: pydantic.PositiveInt
    right: str = pydantic.Field(pattern=r"^[0-9a-f]*$")  # one bit per image, fold by fold
    seconds: NotNegative

    @pydantic.model_validator(mode="after")
    def _check_length(self) -> Outcome:
        if len(self.right) != 2 * -(-self.images // 8):
            raise ValueError(f"expected one bit for each of {self.images} images")
        return self

    def array(self) -> np.ndarray:
        """(images,) bool."""
        packed = np.frombuffer(bytes.fromhex(self.right), np.uint8)
        return np.unpackbits(packed, count=self.images).astype(bool)


def outcome_of(
    run: Path,
    key: str,
    schedule: Any,
    training: TrainingData | NetworkOutcomes,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    device: str,
    show: Callable[[int], None],
) -> Outcome:
    """The outcome of one training: read from its file if there is one, else trained and saved."""
    path, scratch = run / "trained" / f"{key[:16]}.json", run / f"training-{key[:16]}"
    if not path.is_file():

        def keep(right: np.ndarray, seconds: float) -> None:
            outcome = Outcome(
                schedule=schedule.as_json(),
                images=len(right),
                right=np.packbits(right).tobytes().hex(),
                seconds=round(seconds, 3),
            )
            durable.replace(path, outcome.model_dump_json().encode() + b"\n")

        if isinstance(training, TrainingData):
            # torch is imported only now, when nothing the user wrote can still be wrong.
            from featurecache.heads.training import train

            data, rows = training, itertools.count(1)
            train(
                training.training_set(key, _pairs_in_training(schedule, data.labels, pairs)),
                schedule,
                scratch,
                on_epoch=lambda row: show(next(rows)),
                on_done=lambda trained: keep(
                    _right(trained, schedule, data, pairs),
                    sum(row["seconds"] for row in trained.rows),
                ),
                device=device,
            )
        else:
            keep(*training.right(schedule, scratch, device, show))
    shutil.rmtree(scratch, ignore_errors=True)  # also after a killed run
    outcome = read_model(path, Outcome, MAX_RUN_JSON, _damaged)
    if outcome.schedule != schedule.as_json():
        raise _damaged(path, "schedule: does not match the hash in the file name")
    images = sum(len(validation) for _, validation in pairs)
    if outcome.images != images:
        raise _damaged(path, f"images: {outcome.images}, but there are {images} validation images")
    return outcome


def _damaged(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, what, "delete it and rerun to train it again")


def _pairs_in_training(
    schedule: Schedule, labels: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs with one validation image per class, unless the training depends on them: only the
    validation of the last epoch counts, and one takes as long as an epoch on few images."""
    if schedule.is_steered:
        return list(pairs)
    return [(fit, val[np.unique(labels[val], return_index=True)[1]]) for fit, val in pairs]


def _right(
    trained: Trained,
    schedule: Schedule,
    training: TrainingData,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """(N,) bool: whether the validation rows of all folds are classified correctly by the head of
    their fold."""
    vectors, head = training.vectors[schedule.validation.view], trained.head
    parts = []
    for fold, (_, validation) in enumerate(pairs):
        probabilities = head.network(fold).predict_proba(vectors[validation])
        parts.append(probabilities.argmax(1) == training.labels[validation])
    return np.concatenate(parts)
