"""TensorBoard's event files, written from the metrics of a run. Only this module knows the format.

The file of a series is always written in full, under a fixed name, and the same metrics give the
same bytes. A training that was interrupted and resumed, or repeated, therefore has no event twice.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.errors import MissingExtra
from featurecache.storage import durable

FILE = "events.out.tfevents.0.featurecache"  # TensorBoard reads files with `tfevents` in the name
TAGS = {
    "top1/train": "train_top1",
    "top1/val": "val_top1",
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "lr": "lr",
}


def check_tensorboard() -> None:
    """Raise MissingExtra if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("--tensorboard", "tensorboard", "tensorboard")


def write_events(folder: Path, rows: Sequence[Mapping[str, Any]], began: float) -> None:
    """Write the rows of a run's metrics below `folder`, one series per fold: `fold-1` and so on.
    `began` is the time when the first epoch started, in seconds since 1970."""
    for fold in sorted({row["fold"] for row in rows}):
        (folder / f"fold-{fold}").mkdir(parents=True, exist_ok=True)
        fold_rows = [row for row in rows if row["fold"] == fold]
        durable.replace(folder / f"fold-{fold}" / FILE, _events(fold_rows, began))


def _events(rows: Sequence[Mapping[str, Any]], began: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
    time = began
    for row in rows:
        time += row["seconds"]
        values = [
            Summary.Value(tag=tag, simple_value=row[key])
            for tag, key in TAGS.items()
            if row[key] is not None
        ]
        event = Event(wall_time=time, step=row["epoch"], summary=Summary(value=values))
        writer.write(event.SerializeToString())
    return file.getvalue()
