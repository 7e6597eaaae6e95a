"""The metrics of a training: one row per epoch and fold, and the file that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict, cast

import pydantic

from featurecache.errors import DamagedRun
from featurecache.json_files import Open, Share, damaged_run, read_lines

METRICS_FILE = "metrics.jsonl"  # of a run folder: a line for each epoch and fold

MAX_METRICS = 256 << 20  # bytes; a line has 300
MAX_NUMBER = 10**9  # of epochs, folds and members; far below where floats skip integers

Number = Annotated[int, pydantic.Field(ge=1, le=MAX_NUMBER)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


class EpochRow(TypedDict):
    """An epoch of a network. Losses are in nats."""

    fold: int  # from 1
    epoch: int  # from 1, over all phases
    phase: int  # from 1
    views: dict[str, float]  # their shares
    lr: float | None  # None for a solver without steps
    train_loss: float  # train_loss and train_top1: means while the epoch ran
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float  # of a stack its share


class ValidationMeans(TypedDict):
    """The validation of an epoch: means over the folds."""

    epoch: int
    top1: float
    loss: float


class Results(NamedTuple):
    """The results of a training: the rows whose weights are saved, one per fold; `best`, the epoch
    of the highest top-1 (the earliest of equals); and `last`, the saved weights, whose `epoch` is
    the latest of the folds. The last two are averaged over the folds."""

    saved_rows: list[EpochRow]
    best: ValidationMeans
    last: ValidationMeans


class MemberEpochRow(EpochRow, total=False):
    """An epoch of one of several networks that are trained together."""

    member: int  # from 1


class Epoch(Open):
    """An EpochRow as it is read from a file, and checked. Older runs lack some of the fields."""

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


def _no_metrics(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, f"not the metrics of a run: {what}")


def read_epochs(run: str | Path) -> list[Epoch]:
    """The epochs of a run's head, fold by fold; empty if the folder has no metrics."""
    path = Path(run) / METRICS_FILE
    return read_lines(path, Epoch, MAX_METRICS, _no_metrics) if path.exists() else []


def read_member_epochs(folder: Path) -> list[MemberEpochRow]:
    """The lines of the metrics file of a folder, with the fields that were written."""
    lines = read_lines(folder / METRICS_FILE, MemberEpoch, MAX_METRICS, _no_metrics)
    return [cast(MemberEpochRow, line.model_dump(exclude_unset=True)) for line in lines]


def results_of(rows: Sequence[EpochRow], early: bool) -> Results:
    """The results of a training with these epochs; `early`: with early stopping. In epochs that a
    fold did not reach because it stopped early, its saved row counts."""
    folds = [[row for row in rows if row["fold"] == n] for n in sorted({r["fold"] for r in rows})]
    saved_rows = [
        min(fold_rows, key=lambda row: (row["val_loss"], row["epoch"])) if early else fold_rows[-1]
        for fold_rows in folds
    ]
    means = []
    for epoch in range(1, max(len(fold_rows) for fold_rows in folds) + 1):
        epoch_rows = [
            fold_rows[epoch - 1] if epoch <= len(fold_rows) else saved
            for fold_rows, saved in zip(folds, saved_rows, strict=True)
        ]
        means.append(mean_of(epoch, epoch_rows))
    return Results(
        saved_rows=saved_rows,
        best=max(means, key=lambda mean: (mean["top1"], -mean["epoch"])),
        last=mean_of(max(row["epoch"] for row in saved_rows), saved_rows),
    )


def mean_of(epoch: int, rows: Sequence[EpochRow]) -> ValidationMeans:
    """Validation {epoch, top1, loss}: means over the folds."""
    return {
        "epoch": epoch,
        "top1": sum(row["val_top1"] for row in rows) / len(rows),
        "loss": sum(row["val_loss"] for row in rows) / len(rows),
    }
