"""List the runs below a folder with their validation results, best first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import BadInput, CannotRead, DamagedRun, UnknownName
from featurecache.runs.generator_records import GeneratorRecord, read_run_file
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.runs.run_names import RUNS, run_folders
from featurecache.runs.run_names import find_run as find_run  # for the commands


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run: the validation results of its saved head, and what it was trained on.

    `top1`, `loss` and `epoch` are null until the training is finished, and for a generator, whose
    architecture is the `backbone`. `validation` is a split, a
    fraction or a number of folds: top-1 of runs that were validated on different images can't be
    compared. `error` says why a record can't be read; everything else is then null or empty.
    """

    run: str
    top1: float | None = None
    loss: float | None = None
    epoch: int | None = None
    validation: str = ""
    backbone: list[str]
    views: list[str]
    rows: int | None = None  # images that the head was trained or validated on
    classes: int | None = None
    data: str = ""
    started: str = ""
    seconds: float | None = None
    error: str | None = None


# How to sort: the key of a row, and whether the highest comes first.
_ORDERS: dict[str, tuple[Callable[[RunRow], Any], bool]] = {
    "top1": (lambda row: row.top1, True),
    "loss": (lambda row: row.loss, False),
    "started": (lambda row: row.started or None, True),
    "seconds": (lambda row: row.seconds, False),
    "rows": (lambda row: row.rows, True),
    "run": (lambda row: row.run, False),
}


def list_runs(folder: str | Path = RUNS, *, sort: str = "top1") -> list[RunRow]:
    """The runs below a folder, finished or not. `sort` is top1 (best first), loss (lowest first),
    started (latest first), seconds (fastest first), rows (most first) or run (by name); rows
    without that value come last. Raises BadInput for a folder that does not exist.
    """
    if sort not in _ORDERS:
        raise UnknownName("order", sort, _ORDERS, where="--sort")
    if not Path(folder).is_dir():
        raise BadInput(
            f"{folder}: no such folder; train-head makes `{RUNS}`, or give the folder of your runs"
        )
    rows = [_row(path) for path in run_folders(folder)]
    key, is_descending = _ORDERS[sort]
    known = [row for row in rows if key(row) is not None]
    unknown = [row for row in rows if key(row) is None]
    return [*sorted(known, key=key, reverse=is_descending), *unknown]


def _row(path: Path) -> RunRow:
    try:
        record = read_run_file(path)
        if isinstance(record, GeneratorRecord):
            return _generator_row(path, record)
        validation = _validation(record)
    except (DamagedRun, CannotRead) as error:
        return RunRow(run=str(path), backbone=[], views=[], error=str(error))
    last = record.last or {}
    return RunRow(
        run=str(path),
        top1=last.get("top1"),
        loss=last.get("loss"),
        epoch=last.get("epoch"),
        validation=validation,
        backbone=[backbone["name"] for backbone in record.backbones]
        if record.network is None
        else [str(record.network["network"]["name"])],
        views=list(record.spaces) if record.network is None else schedule_of(record).views(),
        rows=record.data.get("rows"),
        classes=len(record.classes),
        data=str(record.data.get("given", "")),
        started=record.started,
        seconds=record.seconds,
    )


def _generator_row(path: Path, record: GeneratorRecord) -> RunRow:
    folds = record.generator.get("validation", {}).get("folds")
    return RunRow(
        run=str(path),
        validation=f"{folds} folds" if folds else "",
        backbone=[str(record.generator["generator"])],
        views=[],
        rows=record.data.get("rows"),
        classes=len(record.classes),
        data=str(record.data.get("given", "")),
        started=record.started,
        seconds=record.seconds,
    )


def _validation(record: RunRecord) -> str:
    """`val`, `0.2 of train` or `5 folds`. Raises DamagedRun."""
    rule = schedule_of(record).validation
    if rule.split is not None:
        return rule.split
    if rule.fold:
        return f"fold {rule.fold} of {rule.folds}"
    return f"{rule.folds} folds" if rule.folds else f"{rule.fraction:g} of train"
