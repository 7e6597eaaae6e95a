"""The results of a training: the metrics of its epochs, and its heads with their validation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from featurecache import keys
from featurecache.heads import mlp
from featurecache.heads.schedules import Schedule
from featurecache.heads.stack_training import Lost
from featurecache.storage import durable
from featurecache.training.checkpoints import Timer
from featurecache.training.epoch_metrics import EpochRow, ValidationMeans


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One head that was trained.

    `rows` are the metrics of every fold and epoch. `best` and `last` are {epoch, top1, loss} of the
    validation, averaged over the folds. `best` is the epoch with the highest top1 (the earliest of
    equals). `last` is the epoch whose weights are in `head`, one network per fold: the last epoch,
    or with early stopping each fold's epoch of lowest loss, of which `epoch` is the latest.
    `saved_rows` are the rows of these weights, one per fold.
    """

    head: mlp.Head
    rows: list[EpochRow]
    saved_rows: list[EpochRow]
    best: ValidationMeans
    last: ValidationMeans


class MetricsWriter:
    """The rows of all members in a fixed order, whatever order they came in, and their file. The
    file is replaced as a whole about every second, and at the end."""

    def __init__(self, path: Path, numbered: bool) -> None:
        self._path, self._numbered = path, numbered
        self._rows: dict[tuple[int, int, int], EpochRow] = {}
        self._timer = Timer()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def add(self, member_index: int, row: EpochRow) -> None:
        self._rows[member_index, row["fold"], row["epoch"]] = row
        if self._timer.due():
            self._write()

    def rows_of(self, member_index: int) -> list[EpochRow]:
        """The rows of a member, fold by fold."""
        return [row for (member, _, _), row in sorted(self._rows.items()) if member == member_index]

    def _write(self) -> None:
        began = time.monotonic()
        lines = [
            keys.canonical({"member": key[0] + 1, **row} if self._numbered else row)
            for key, row in sorted(self._rows.items())
        ]
        durable.replace(self._path, b"".join(line + b"\n" for line in lines))
        self._timer.done(began)


def member_result(
    networks: Sequence[nn.Sequential | Lost],
    rows: list[EpochRow],
    schedule: Schedule,
    classes: Sequence[str],
) -> Trained | Lost:
    """The result of a member, from its networks, one per fold, and their rows. Lost if one of the
    networks is."""
    finite = []
    for network in networks:
        if isinstance(network, Lost):
            return network
        finite.append(network)
    saved_rows, best = _summary(rows, schedule.early_stopping is not None)
    last = _mean(max(row["epoch"] for row in saved_rows), saved_rows)
    return Trained(
        head=mlp.Head(finite, list(classes), schedule.head),
        rows=rows,
        saved_rows=saved_rows,
        best=best,
        last=last,
    )


def _summary(rows: Sequence[EpochRow], early: bool) -> tuple[list[EpochRow], ValidationMeans]:
    """`saved_rows` and `best` of Trained. In epochs that a fold did not reach because it stopped
    early, its saved row counts."""
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
        means.append(_mean(epoch, epoch_rows))
    return saved_rows, max(means, key=lambda mean: (mean["top1"], -mean["epoch"]))


def _mean(epoch: int, rows: Sequence[EpochRow]) -> ValidationMeans:
    """Validation {epoch, top1, loss}: means over the folds."""
    return {
        "epoch": epoch,
        "top1": sum(row["val_top1"] for row in rows) / len(rows),
        "loss": sum(row["val_loss"] for row in rows) / len(rows),
    }
