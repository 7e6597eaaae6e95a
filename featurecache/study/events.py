"""TensorBoard's event files: the only room that knows them. Metrics of a run in, files out.

The file of a series is written as a whole, with one name and the same bytes for the same metrics:
a training that was stopped and resumed, or asked for again, has no event twice.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.errors import MissingExtra
from featurecache.storage import durable

FILE = "events.out.tfevents.0.featurecache"  # TensorBoard reads what has `tfevents` in its name
TAGS = {
    "top1/train": "train_top1",
    "top1/val": "val_top1",
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "lr": "lr",
}


def check_tensorboard() -> None:
    """Raises MissingExtra where the library is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("--tensorboard", "tensorboard", "tensorboard")


def write_events(folder: Path, rows: Sequence[Mapping[str, Any]], began: float) -> None:
    """Write the rows of a run's metrics below `folder`, a series for each fold: `fold-1`. `began`
    is the time, in seconds since 1970, of the start of its first epoch."""
    for fold in sorted({row["fold"] for row in rows}):
        (folder / f"fold-{fold}").mkdir(parents=True, exist_ok=True)
        of_fold = [row for row in rows if row["fold"] == fold]
        durable.replace(folder / f"fold-{fold}" / FILE, _events(of_fold, began))


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
