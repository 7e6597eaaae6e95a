"""The file of a training's metrics, while the training runs."""

from __future__ import annotations

import time
from pathlib import Path

from featurecache import keys
from featurecache.storage import durable
from featurecache.training.checkpoints import Timer
from featurecache.training.epoch_metrics import EpochRow


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
