"""The record of a run of fit-generator, `run.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from featurecache.errors import BadInput
from featurecache.json_files import MAX_RUN_JSON, Open, read_model
from featurecache.runs.record import RUN_FILE, GeneratorRun, RunRecord, read_record
from featurecache.training.epoch_metrics import NotNegative


class GeneratorRecord(Open):
    """Everything that determines the training of a generator and, once it is finished, its
    results.

    `data` has, in `train_items`, the root hash of the images that it was fitted on; with folds a
    list with that of each fold. `losses` are the last ones of the curves, per fold.
    """

    model_config = pydantic.ConfigDict(frozen=False)
    format: pydantic.PositiveInt = 1
    identity: str  # hash of the configuration, the classes and the images
    generator: dict[str, Any]  # the configuration
    kind: str
    classes: list[str] = pydantic.Field(min_length=1)
    words: dict[str, str]  # readable names of classes
    rows: str  # hash of items, labels and splits
    data: dict[str, Any]
    versions: dict[str, str]
    started: str
    notes: list[str]
    steps: pydantic.PositiveInt  # per fold
    seconds: NotNegative | None = None
    losses: list[dict[str, float]] | None = None
    backbones: list[dict[str, Any]] | None = None  # of the vectors that it was fitted on

    @property
    def is_finished(self) -> bool:
        return self.losses is not None


def read_run_file(run: Path) -> RunRecord | GeneratorRecord:
    """The record of any run, finished or not. Raises CannotRead, DamagedRun."""
    try:
        return read_record(run)
    except GeneratorRun:
        return read_model(run / RUN_FILE, GeneratorRecord, MAX_RUN_JSON)


def read_generator_record(run: Path) -> GeneratorRecord:
    """The record of a generator's run, finished or not. Raises BadInput for another kind of run,
    CannotRead, DamagedRun."""
    record = read_run_file(run)
    if isinstance(record, RunRecord):
        raise BadInput(f"{run}: a run of train-head or train-network, not of a generator")
    return record
