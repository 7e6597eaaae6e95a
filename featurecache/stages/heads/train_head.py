"""Train a head on cached vectors under a curriculum; a killed training goes on where it was."""

from __future__ import annotations

import calendar
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from featurecache import byte_sizes, keys, versions, yaml_files
from featurecache.errors import BadInput, DamagedRun, UnknownName
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.run_files import read_epochs
from featurecache.heads.schedules import BackboneChoice, Schedule, find_schedule, read_schedule
from featurecache.heads.sweep_settings import settings_of
from featurecache.heads.trained_items import TrainedItems
from featurecache.notebook import html_table
from featurecache.runs.record import (
    RUN_FILE,
    STARTED,
    RunBackbone,
    RunRecord,
    read_record,
    read_run,
)
from featurecache.runs.training_data import load_training_data
from featurecache.storage import durable, locks
from featurecache.study.events import check_tensorboard, write_events
from featurecache.training.epoch_metrics import METRICS_FILE

if TYPE_CHECKING:
    from featurecache.heads.sweep import Swept
    from featurecache.heads.training import Trained
from featurecache.runs.record import make_folder, write_run

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainedRun:
    """A run folder and its validation results, each `{epoch, top1, loss}`; folds are averaged.

    `trials` are the settings of a sweep in their order, each with {setting, n, top1, low, high,
    diverged, best, last} (heads/trials.py), and `winner` is the place of the one whose head it is.
    """

    run: str
    best: dict[str, Any]
    last: dict[str, Any]  # of the head that was saved
    notes: list[str]  # what was left out of the training, and why
    trials: list[dict[str, Any]] = field(default_factory=list)
    winner: int | None = None

    def _repr_html_(self) -> str:
        shown = {
            f"{name}, {key}": value
            for name, found in (("best", self.best), ("last", self.last))
            for key, value in found.items()
        }
        notes = {f"note {number}": note for number, note in enumerate(self.notes, 1)}
        return html_table(f"run {self.run}", shown | notes)


def train_head(
    schedule: str | Path,
    *,
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    out: str | Path | None = None,
    runs: str | Path = "runs",
    backbone: str | Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    tensorboard: str | Path | None = None,
    progress: Progress = silent,
) -> TrainedRun:
    """Train the head that a schedule describes (a YAML file's path, or a shipped schedule's name).

    `backbone` (one name or several) and `seed` stand in for the schedule's own. The run folder is
    `out`, or one in `runs` named by the schedule and what it was trained on: the same training is
    never done twice, and a killed one resumes to the same numbers. `tensorboard` is a folder for
    TensorBoard's events of the finished training, in a folder of the run's name. Raises BadInput or
    NotCached before the first step if anything that the schedule names is missing, MissingExtra
    where TensorBoard is. Vectors that take more than `memory` (`4G`; half of the machine's by
    default) stay on the disk, and minibatches are drawn from windows of them (heads/streams.py).
    """
    if tensorboard is not None:
        check_tensorboard()
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    path = find_schedule(str(schedule))
    wanted = overridden(read_schedule(path), backbone, seed)
    settings = [] if wanted.sweep is None else settings_of(wanted, path)
    opened = Cache(cache)
    limit = _half_of_memory() if memory is None else byte_sizes.parse_size(memory, "--memory")
    found = load_training_data(wanted, wanted.views(), data, opened, progress, limit)
    if tensorboard is not None:  # not before the dataset was read, in which it may lie
        make_folder(Path(tensorboard), "--tensorboard")
    plans = [setting.schedule for setting in settings] or [wanted]
    for plan in plans:
        found.check(plan)
    pairs = found.folds(wanted)
    notes = list(found.notes)

    effective = wanted.model_dump(mode="json", exclude_none=True)
    named = found.space_names()
    described: dict[str, Any] = {
        "schedule": effective,
        "classes": list(found.dataset.classes),
        # A plain name where there is one backbone: so earlier runs were found, and still are.
        "spaces": {name: one[0] if len(one) == 1 else one for name, one in named.items()},
        "rows": found.rows_hash(),
    }
    # Windows are another order of the rows, and so another training.
    windows = {} if found.window is None else {"window": found.window}
    identity = keys.digest({**described, "vectors": found.vector_hashes(), **windows})
    run = Path(out or Path(runs) / f"{path.stem}-{identity[:8]}")
    if not opened.note_run(run, [space for one in named.values() for space in one]):
        notes.append(f"{cache} can't be written, so `gc` may not spare what this run stands on")
    done = _earlier(run, identity)
    if done is not None:
        _write_events(run, tensorboard)
        return _result(run, done, notes)
    began = time.time()
    record = RunRecord(
        identity=identity,
        **described | {"spaces": named},
        words=dict(found.dataset.words),
        backbones=[_backbone(space) for space in next(iter(found.spaces.values()))],
        data={"given": str(data), "layout": found.dataset.layout, "rows": len(found.rows)},
        versions=versions.installed_versions("featurecache", "torch", "numpy"),
        started=time.strftime(STARTED, time.gmtime(began)),
        notes=notes,
    )
    seeds = len(wanted.sweep.seeds or [wanted.seed]) if wanted.sweep else 1
    total = sum(plan.epochs for plan in plans) * (wanted.validation.folds or 1) * seeds
    epochs = 0

    def on_epoch(row: dict[str, Any]) -> None:
        nonlocal epochs
        epochs += 1
        progress(epochs, total, f"train-head (top-1 {row['val_top1']:.4f})")

    def on_done(trained: Trained | Swept) -> None:
        TrainedItems.of(found.items, pairs).save(run)
        record.best, record.last = trained.best, trained.last
        if isinstance(trained, Swept):
            record.trials = [asdict(trial) for trial in trained.trials]
            record.winner = trained.winner
        record.seconds = round(time.time() - began, 3)
        write_run(run, record)

    make_folder(run)
    with claimed_run(run, lambda why: progress(0, total, f"train-head ({why})")):
        finished = _earlier(run, identity)  # by the process that was waited for
        if finished is None:
            write_run(run, record)
            text = yaml.safe_dump(effective, sort_keys=False)
            durable.replace(run / "schedule.yaml", text.encode())
            # torch is imported only now, when nothing the user wrote can still be wrong.
            from featurecache.heads.sweep import Swept, train_sweep
            from featurecache.heads.training import train

            (train_sweep if settings else train)(
                found.vectors,
                found.labels,
                found.items,
                wanted,
                found.dataset.classes,
                run,
                identity=identity,
                pairs=pairs,
                on_epoch=on_epoch,
                on_done=on_done,
                device=device,
            )
        _write_events(run, tensorboard)
    return _result(run, finished or record, notes)


def claimed_run(
    run: Path, waiting: Callable[[str], None], name: str = "training"
) -> AbstractContextManager[None]:
    """Only one process at a time trains in the folder of a run. The next one waits, and calls
    `waiting` with what for. Trainings that share a folder have names of their own."""
    return locks.claimed(
        run / f".{name}.lock", lambda holder: waiting(f"waiting for {holder}, which trains it")
    )


def _half_of_memory() -> int | None:
    """Half of the memory of this machine, in bytes; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None


def overridden(
    schedule: Schedule, backbone: str | Sequence[str], seed: int | None = None
) -> Schedule:
    """The schedule with these in place of its own, where they are given. Raises BadInput."""
    changed: dict[str, Any] = {}
    names = [backbone] if isinstance(backbone, str) else list(backbone)
    if names:
        changed["backbone"] = tuple(
            yaml_files.validate(BackboneChoice, {"name": name}, "--backbone") for name in names
        )
    if seed is not None:
        if not 0 <= seed < 2**32:
            raise BadInput(f"seed {seed}: must be 0 or more, and below 2**32")
        changed["seed"] = seed
    return schedule.model_copy(update=changed)


def _backbone(space: Space) -> RunBackbone:
    return {
        "name": str(space.backbone),
        "key": space.key["backbone"],
        "precision": space.key["precision"],
    }


def _earlier(run: Path, identity: str) -> RunRecord | None:
    """The record of the same training, finished before; None if it is to be begun or resumed."""
    if not (run / RUN_FILE).is_file():
        # Hidden files may be left of a run that was killed as it began.
        if run.is_dir() and any(not path.name.startswith(".") for path in run.iterdir()):
            raise BadInput(f"{run}: not empty, and not the folder of a run; give another --out")
        return None
    record = read_record(run)
    if record.identity != identity:
        raise BadInput(
            f"{run}: holds a run of another schedule or other vectors; give another --out"
        )
    return None if record.best is None else record


def _write_events(run: Path, tensorboard: str | Path | None) -> None:
    """The events of a finished run, below a folder of its name. They are made of its metrics, so a
    run that was trained before has them too, and a resumed one has none twice."""
    if tensorboard is None:
        return
    epochs = read_epochs(run)
    if not epochs:
        raise DamagedRun(
            f"{run}: has no {METRICS_FILE} to make events of; train it into another --out"
        )
    began = calendar.timegm(time.strptime(read_run(run).started, STARTED))
    write_events(Path(tensorboard) / run.name, [epoch.model_dump() for epoch in epochs], began)


def _result(run: Path, record: RunRecord, notes: list[str]) -> TrainedRun:
    """`notes` are of the data as it is now, those in the record of when it was trained."""
    assert record.best is not None and record.last is not None  # they are written together
    trials, winner = record.trials or [], record.winner
    return TrainedRun(str(run), record.best, record.last, notes, trials, winner)
