"""Typed models of the files that a training leaves in its run folder: the metrics of its epochs,
and the trials of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from featurecache.errors import DamagedRun
from featurecache.json_files import Json, Open, Share, Strict, damaged_run, fit, read_lines
from featurecache.training.epoch_metrics import MAX_METRICS, METRICS_FILE

MAX_NUMBER = 10**9  # of epochs, folds and members; far below where floats skip integers

Number = Annotated[int, pydantic.Field(ge=1, le=MAX_NUMBER)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


def fitting(model: type[pydantic.BaseModel]) -> pydantic.AfterValidator:
    """A validator for a field that stays a plain dict and must fit `model`."""

    def checked(value: Json) -> Json:
        fit(model, value)
        return value

    return pydantic.AfterValidator(checked)


class Validated(Open):
    """The validation of an epoch: means over the folds."""

    epoch: Number
    top1: Share
    loss: float


Validation = Annotated[Json, fitting(Validated)]


class Epoch(Open):
    """A line of `metrics.jsonl`: an epoch of a fold (`training.train` documents the fields)."""

    model_config = pydantic.ConfigDict(extra="ignore")
    epoch: Number
    fold: Number
    phase: Number
    views: dict[str, NotNegative] = pydantic.Field(default_factory=dict)
    lr: NotNegative | None = None
    train_loss: float
    train_top1: Share
    val_loss: float
    val_top1: Share
    seconds: NotNegative = 0.0


class MemberEpoch(Epoch):
    """A line of the metrics of members that were trained together; `member` counts from 1."""

    model_config = pydantic.ConfigDict(extra="allow")
    member: Number = 1


class TrialFields(Strict):
    """The fields of a trial (heads/sweep.py)."""

    setting: Json
    n: Annotated[int, pydantic.Field(ge=0, le=MAX_NUMBER)]
    top1: Share | None
    low: float | None
    high: float | None
    diverged: Annotated[int, pydantic.Field(ge=0, le=MAX_NUMBER)]
    best: Validation | None
    last: Validation | None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrialFields:
        if len({value is None for value in (self.top1, self.best, self.last)}) > 1:
            raise ValueError("top1, best and last belong together")
        return self


TrialJson = Annotated[Json, fitting(TrialFields)]


class TrialsFile(Strict):
    """`trials.json`: the results of settings that were trained together."""

    identity: str = pydantic.Field(alias="of")  # the hash of everything that decides the trials
    trials: list[TrialJson]


def _no_metrics(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, f"not the metrics of a run: {what}")


def read_epochs(run: str | Path) -> list[Epoch]:
    """The epochs of a run's head, fold by fold; empty if the folder has no metrics."""
    path = Path(run) / METRICS_FILE
    return read_lines(path, Epoch, MAX_METRICS, _no_metrics) if path.exists() else []


def read_member_epochs(folder: Path) -> list[Json]:
    """The lines of the metrics file of a folder, with the fields that were written."""
    lines = read_lines(folder / METRICS_FILE, MemberEpoch, MAX_METRICS, _no_metrics)
    return [line.model_dump(exclude_unset=True) for line in lines]
