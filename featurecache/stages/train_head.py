"""Train a head on cached vectors under a curriculum; a killed training goes on where it was."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featurecache import durable, records
from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice, Schedule, find_schedule, read_schedule
from featurecache.images.datasets import open_dataset
from featurecache.images.views import find_view
from featurecache.stages.resolve import decodable, held_spaces, labelled_rows

RUN = "run.json"


@dataclass(frozen=True)
class TrainedRun:
    """A run folder and its validation results, each `{epoch, top1, loss}`; folds are averaged."""

    run: str
    best: dict[str, Any]
    last: dict[str, Any]  # of the head that was saved
    notes: list[str]  # what was left out of the training, and why


def train_head(
    schedule: str | Path,
    *,
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    out: str | Path | None = None,
    runs: str | Path = "runs",
    backbone: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> TrainedRun:
    """Train the head that a schedule describes (a YAML file's path, or a shipped schedule's name).

    `backbone` (with its own settings) and `seed` stand in for the schedule's. The run folder is
    `out`, or one in `runs` named by the schedule and what it was trained on: the same training is
    never done twice, and a killed one resumes to the same numbers. Raises BadInput or NotCached
    before the first step if anything that the schedule names is missing.
    """
    path = find_schedule(str(schedule))
    wanted = _overridden(read_schedule(path), backbone, seed)
    dataset = open_dataset(data)
    views = {name: find_view(name, wanted.augment_seed) for name in wanted.views()}
    # Only labelled splits take part; what is held out by the dataset stays out of training.
    splits = ["train"] if wanted.validation.split is None else ["train", wanted.validation.split]
    if wanted.validation.split == "train":
        raise BadInput(f"{path}: validation.split: 'train' is what is trained on; take another")
    rows = labelled_rows(dataset, splits)
    spaces = held_spaces(Cache(cache), views, wanted.backbone, [r.item for r in rows], data)
    rows = decodable(rows, spaces.values())
    lost = sum(len(dataset.split(split)) for split in splits) - len(rows)
    notes = [f"{lost} images could not be read or decoded, and were left out"] if lost else []
    items = [row.item for row in rows]
    key = next(iter(spaces.values())).key
    effective = wanted.model_dump(mode="json", exclude_none=True)
    described = {
        "schedule": effective,
        "classes": list(dataset.classes),
        "spaces": {
            name: {"space": space.path.name, "root_hash": space.root_hash}
            for name, space in spaces.items()
        },
        "rows": records.digest([[row.item.hex(), row.label, row.split] for row in rows]),
    }
    identity = records.digest(described)
    run = Path(out or Path(runs) / f"{path.stem}-{identity[:8]}")
    done = _earlier(run, identity)
    if done is not None:
        return done
    began = time.time()
    record = {
        "format": 1,
        "identity": identity,
        **described,
        "data": {"given": str(data), "layout": dataset.layout, "rows": len(rows)},
        "words": dict(dataset.words),
        "backbone": {"name": next(iter(spaces.values())).backbone, "key": key["backbone"]},
        "precision": key["precision"],
        "versions": records.versions("featurecache", "torch", "numpy"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
    }
    vectors = {name: space.vectors(items)[0] for name, space in spaces.items()}
    pairs = None
    if wanted.validation.split is not None:
        held = np.array([row.split != "train" for row in rows])
        pairs = [(np.flatnonzero(~held), np.flatnonzero(held))]
        shared = {i for i, h in zip(items, held, strict=True) if h}
        both = sum(i in shared for i, h in zip(items, held, strict=True) if not h)
        if both:
            notes.append(f"{both} training images are in the validation too, and were left out")
    # torch is imported only now, when nothing the user wrote can still be wrong.
    from featurecache.heads.training import train

    _make(run)
    durable.replace(run / RUN, _pretty(record))
    durable.replace(run / "schedule.yaml", yaml.safe_dump(effective, sort_keys=False).encode())
    total = wanted.epochs * (wanted.validation.folds or 1)
    epochs = 0

    def on_epoch(row: dict[str, Any]) -> None:
        nonlocal epochs
        epochs += 1
        progress(epochs, total, f"train-head (top-1 {row['val_top1']:.4f})")

    trained = train(
        vectors,
        np.array([row.label for row in rows], np.int64),
        np.frombuffer(b"".join(items), np.uint8).reshape(-1, 32),
        wanted,
        dataset.classes,
        run,
        identity=identity,
        pairs=pairs,
        on_epoch=on_epoch,
        device=device,
    )
    record |= {"best": trained.best, "last": trained.last, "notes": notes}
    record |= {"seconds": round(time.time() - began, 3)}
    durable.replace(run / RUN, _pretty(record))
    return TrainedRun(str(run), trained.best, trained.last, notes)


def read_run(run: str | Path) -> dict[str, Any]:
    """The record of a finished run. Raises BadInput if there is none in the folder."""
    path = Path(run) / RUN
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{run}: not the folder of a run (no readable {RUN} in it)") from error
    if "best" not in record:
        raise BadInput(f"{run}: its training is not finished; run the same train-head again")
    return record


def _overridden(schedule: Schedule, backbone: str | None, seed: int | None) -> Schedule:
    changed: dict[str, Any] = {}
    if backbone is not None:
        changed["backbone"] = BackboneChoice(name=backbone)
    if seed is not None:
        if not 0 <= seed < 2**32:
            raise BadInput(f"seed {seed}: must be 0 or more, and below 2**32")
        changed["seed"] = seed
    return schedule.model_copy(update=changed)


def _earlier(run: Path, identity: str) -> TrainedRun | None:
    """The result of the same training, finished before; None if it is to be begun or resumed."""
    if not (run / RUN).is_file():
        if run.is_dir() and any(run.iterdir()):
            raise BadInput(f"{run}: not empty, and not the folder of a run; give another --out")
        return None
    try:
        record = json.loads((run / RUN).read_bytes())
    except ValueError as error:
        raise BadInput(f"{run / RUN} can't be understood; give another --out") from error
    if record.get("identity") != identity:
        raise BadInput(
            f"{run}: holds a run of another schedule or other vectors; give another --out"
        )
    if "best" not in record or not (run / "head.json").is_file():
        return None
    return TrainedRun(str(run), record["best"], record["last"], record.get("notes", []))


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{run} can't be made ({error.strerror}); give another --out") from error


def _pretty(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode() + b"\n"
