"""Train a head on cached vectors under a curriculum; a killed training resumes."""

from __future__ import annotations

import calendar
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from featurecache import byte_sizes, keys, machine, versions
from featurecache.errors import BadInput, DamagedRun
from featurecache.features.settings import keywords_of
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.defaults import VERSION as DEFAULTS
from featurecache.heads.defaults import CandidateRow
from featurecache.heads.gram_memory import check_memory
from featurecache.heads.overrides import (
    Overrides,
    has_network_settings,
    unused_notes,
    with_overrides,
)
from featurecache.heads.schedules import Schedule, backbone_choice, find_schedule, read_schedule
from featurecache.heads.trained_items import TrainedItems
from featurecache.images.datasets import name_of, names_of
from featurecache.notebook import html_table
from featurecache.runs.generated_vectors import with_seen_items
from featurecache.runs.record import (
    STARTED,
    RunBackbone,
    RunRecord,
    claimed_run,
    finished_record,
    has_record,
    make_folder,
    read_run,
    schedule_of,
    write_run,
)
from featurecache.runs.sources import source_fields
from featurecache.runs.training_data import TrainingData, load_training_data
from featurecache.runs.training_warnings import destructive_views, phase_warnings
from featurecache.settings import command_line
from featurecache.stages.heads.default_schedule import default_schedule, with_choice
from featurecache.stages.heads.precision_cost import precision_cost
from featurecache.stages.heads.shared_options import SharedOptions, resolve_options
from featurecache.storage import durable
from featurecache.study.events import check_tensorboard, write_events
from featurecache.text import listed
from featurecache.training.epoch_metrics import METRICS_FILE, EpochRow, ValidationMeans, read_epochs
from featurecache.training.head_shapes import without_unused
from featurecache.training.settings import check_device, with_seed
from featurecache.training.sweep_settings import distinct_settings
from featurecache.yaml_files import yaml_text

if TYPE_CHECKING:
    from featurecache.heads.baseline_heads import Baseline
    from featurecache.heads.default_training import Chosen
    from featurecache.heads.sweep import Swept
    from featurecache.heads.training_results import Trained


class TrialRow(TypedDict):
    """A setting of a sweep, and the results of its trainings (heads/sweep.py)."""

    setting: dict[str, Any]  # by dotted keys of the schedule
    n: int  # folds, or seeds without folds
    top1: float | None
    low: float | None
    high: float | None
    diverged: int
    best: ValidationMeans | None
    last: ValidationMeans | None


class TrainingOptions(SharedOptions, Overrides, total=False):
    """Keywords of train_head beside its own: what to read, and what to override."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run folder and its validation results, each `{epoch, top1, loss}`; folds are averaged.

    `trials` are the settings of a sweep in order, each {setting, n, top1, low, high, diverged,
    best, last} (heads/sweep.py); `winner` is the index of the trial whose head was saved.
    `candidates` are what a training without a schedule chose from, each {head, views, top1, n}:
    top-1 on n held-out training images; `chosen` is the index of the one that was saved.
    `baseline` is the validation {top1} of logistic regression on the same vectors.
    """

    run: str
    best: ValidationMeans
    last: ValidationMeans  # of the saved head
    notes: list[str]  # what was excluded from the training, and phases and views that did harm
    trials: list[TrialRow] = field(default_factory=list)
    winner: int | None = None
    candidates: list[CandidateRow] = field(default_factory=list)
    chosen: int | None = None
    baseline: Baseline | None = None

    def _repr_html_(self) -> str:
        results = {
            f"{name}, {key}": value
            for name, result in (("best", self.best), ("last", self.last))
            for key, value in result.items()
        }
        notes = {f"note {number}": note for number, note in enumerate(self.notes, 1)}
        return html_table(f"run {self.run}", results | notes)


def train_head(
    schedule: str | Path | None = None,
    *,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    backbone: str | Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    tensorboard: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> TrainedRun:
    """Train the head that a schedule describes (a YAML file's path, or a shipped schedule's name).
    Without a schedule, choose between logistic regression and a small network, with and without the
    augmented views in the cache, on a held-out part of the training images.

    `backbone` (one name or several), `seed`, `view`, `epochs` and `settings` override the
    schedule's; with the last two and no schedule, the network is trained. The run folder is `out`,
    or a folder in `runs` named after the schedule and a hash of the training's inputs: the same
    training is never done twice, and a killed one resumes to the same numbers. `tensorboard` is a
    folder; the events of the finished training go to a subfolder with the run's name. Vectors that
    take more than `memory` (`4G`; the default is half of the machine's) stay on disk, and
    minibatches are drawn from windows of them (heads/streams.py). Raises BadInput or NotCached
    before the first step if anything that the schedule names is missing, MissingExtra if
    TensorBoard is.
    """
    data, cache, progress = resolve_options(options, "train_head", TrainingOptions)
    overrides = keywords_of(Overrides, options)
    if tensorboard is not None:
        check_tensorboard()
    check_device(device)
    if out is not None:
        has_record(out)  # raises for what is no folder for a run
    opened = Cache(cache)
    if schedule is None:
        path = Path("default.yaml")
        wanted = default_schedule(data, opened, backbone, seed)
    else:
        path = find_schedule(str(schedule))
        wanted = overridden(read_schedule(path), backbone, seed)
    written, wanted = wanted, with_overrides(wanted, overrides)
    settings = [] if wanted.sweep is None else distinct_settings(wanted, path)
    limit = _half_of_memory() if memory is None else byte_sizes.parse_size(memory, "--memory")
    is_as_written = schedule is not None and not listed(backbone) and not overrides
    training = load_training_data(
        wanted, wanted.views(), data, opened, progress, limit, runs,
        where=path if is_as_written else "",
    )  # fmt: skip
    is_open = schedule is None and not has_network_settings(overrides) and training.window is None
    if is_open:
        training, wanted = with_choice(training, opened, wanted, overrides.get("view"))
    if tensorboard is not None:  # after the dataset was read, which may contain this folder
        make_folder(Path(tensorboard), "--tensorboard")
    plans = [setting.schedule for setting in settings] or [wanted]
    for plan in plans:
        training.check(plan)
    pairs = training.folds(wanted)
    notes = [*training.notes, *unused_notes(written, overrides, plans)]

    effective = wanted.as_json()
    space_names = training.space_names()
    described: dict[str, Any] = {
        "schedule": effective,
        "classes": list(training.dataset.classes),
        # A plain name for a single backbone keeps the identity of existing runs.
        "spaces": {
            view: names[0] if len(names) == 1 else names for view, names in space_names.items()
        },
        "rows": training.rows_hash(),
    }
    # Windows change the order of the rows, and so the training.
    has_windows = training.window is not None and not wanted.is_read_in_blocks
    windows = {"window": training.window} if has_windows else {}
    recipe = _recipe(training) if is_open else {}
    vectors = training.vector_hashes()
    identity = keys.digest({**described, "vectors": vectors, **windows, **recipe})
    run = Path(out or Path(runs) / f"{path.stem}-{identity[:8]}")
    done = finished_record(run, identity)
    if not opened.note_run(run, [name for names in space_names.values() for name in names]):
        notes.append(f"{cache} can't be written, so `gc` cannot know that this run uses it")
    if done is not None:
        _write_events(run, tensorboard)
        return _result(run, done, notes)
    check_memory(plans, training.width, any(training.rows.groups))
    began = time.time()
    first = str(next(iter(training.spaces.values()))[0].backbone)
    dataset = training.dataset
    drift_command = command_line(
        "study drift", data=names_of(data), cache=cache, backbone=first, **dataset.columns
    )
    record = RunRecord(
        identity=identity,
        **described | {"spaces": space_names},
        words=dict(training.dataset.words),
        backbones=[_backbone(space) for space in next(iter(training.spaces.values()))],
        data={
            "given": name_of(data),
            "layout": training.dataset.layout,
            "rows": len(training.rows),
            **source_fields(training.dataset, cache, run),
            **training.generator_fields(),
        },
        versions=versions.installed_versions("featurecache", "torch", "numpy"),
        started=time.strftime(STARTED, time.gmtime(began)),
        notes=notes,
    )
    seeds = len(wanted.sweep.seeds or [wanted.seed]) if wanted.sweep else 1
    total = sum(plan.epochs for plan in plans) * (wanted.validation.folds or 1) * seeds
    # Without a schedule: a network and a logistic regression per mixture of views, then the winner,
    # and the winner on all images.
    mixtures = min(len(wanted.views()), 2) if is_open else 0
    is_repeated = is_open and wanted.validation.fraction is not None
    total += mixtures * (total + 1) + total * is_repeated
    epochs = 0

    def on_epoch(row: EpochRow) -> None:
        nonlocal epochs
        epochs += 1
        progress(epochs, total, f"train-head (top-1 {row['val_top1']:.4f})")

    def on_done(result: Trained | Swept | Chosen) -> None:
        seen = TrainedItems.from_pairs(training.items, pairs)
        with_seen_items(seen, training.seen_items()).save(run)
        trained = result.trained if isinstance(result, Chosen) else result
        if isinstance(result, Chosen):
            record.schedule = result.schedule.as_json()
            record.spaces = {view: space_names[view] for view in result.schedule.views()}
            record.candidates = [dict(candidate.described()) for candidate in result.candidates]
            record.chosen = result.winner
            _write_schedule(run, record.schedule)
        record.best, record.last = dict(trained.best), dict(trained.last)
        if isinstance(trained, Swept):
            record.trials = [asdict(trial) for trial in trained.trials]
            record.winner = trained.winner
        record.seconds = round(time.time() - began, 3)
        views = schedule_of(record).views()
        used = {view: training.vectors[view] for view in views if view in training.vectors}
        record.warnings = [
            *phase_warnings(schedule_of(record), read_epochs(run)),
            *destructive_views(used, training.labels, drift_command),
        ]
        try:
            record.baseline = dict(
                train_baseline(
                    training.training_set(identity, pairs),
                    wanted,
                    run,
                    shared=None if out is not None else Path(runs) / ".baselines",
                    device=device,
                )
            )
        except BadInput as error:
            notes.append(f"no logistic regression to compare with: {error}")
        notes.extend(precision_cost(wanted, training, pairs, device))
        record.notes = list(notes)
        write_run(run, record)

    make_folder(run)
    with claimed_run(run, lambda why: progress(0, total, f"train-head ({why})")):
        finished = finished_record(run, identity)  # by the process that held the lock
        if finished is None:
            write_run(run, record)
            _write_schedule(run, effective)
            # torch is imported here, after every check of what the user wrote.
            from featurecache.heads.baseline_heads import train_baseline
            from featurecache.heads.default_training import Chosen, train_default
            from featurecache.heads.sweep import Swept, train_sweep
            from featurecache.heads.training import train

            train_open = partial(
                train_default,
                on_final=lambda left: progress(total - left, total, "train-head (on all images)"),
            )
            (train_open if is_open else train_sweep if settings else train)(
                training.training_set(identity, pairs),
                wanted,
                run,
                on_epoch=on_epoch,
                on_done=on_done,
                device=device,
            )
        _write_events(run, tensorboard)
    return _result(run, finished or record, notes)


def _recipe(training: TrainingData) -> dict[str, int]:
    """How a head is chosen without a schedule, for the identity of the run."""
    # Earlier runs of grouped images were chosen without regard to the groups.
    has_groups = any(training.rows.groups)
    return {"default": DEFAULTS} | ({"groups": 1} if has_groups else {})


def _write_schedule(run: Path, schedule: dict[str, Any]) -> None:
    head = without_unused(schedule["head"])
    written = {"backbone": None} | schedule | {"head": head}  # the backbone comes first
    durable.replace(run / "schedule.yaml", yaml_text(written).encode())


def _half_of_memory() -> int | None:
    limit = machine.memory()
    return None if limit is None else limit // 2


def overridden(
    schedule: Schedule, backbone: str | Sequence[str], seed: int | None = None
) -> Schedule:
    """The schedule with `backbone` and `seed` overridden, unless empty or None. Raises BadInput."""
    changed: dict[str, Any] = {}
    names = listed(backbone)
    if names:
        changed["backbone"] = tuple(backbone_choice(name, where="--backbone") for name in names)
    return with_seed(schedule.model_copy(update=changed), seed)


def _backbone(space: Space) -> RunBackbone:
    backbone: RunBackbone = {
        "name": str(space.backbone),
        "key": space.key["backbone"],
        "precision": space.key["precision"],
    }
    side = keys.jpeg_side(space.key)
    if side is not None:
        backbone["jpeg_side"] = side
    return backbone


def _write_events(run: Path, tensorboard: str | Path | None) -> None:
    """Write the events of a finished run to a subfolder with its name. They are made from its
    metrics, so older runs have them too, and a resumed run has no duplicates."""
    if tensorboard is None:
        return
    epochs = read_epochs(run)
    if not epochs:
        raise DamagedRun(
            f"{run}: has no {METRICS_FILE} to make events from; train it into another --out"
        )
    began = calendar.timegm(time.strptime(read_run(run).started, STARTED))
    write_events(Path(tensorboard) / run.name, [epoch.model_dump() for epoch in epochs], began)


def _result(run: Path, record: RunRecord, notes: list[str]) -> TrainedRun:
    """`notes` describe the data as it is now; the record's, as it was during the training."""
    assert record.best is not None and record.last is not None  # they are written together
    return TrainedRun(
        run=str(run),
        best=cast(ValidationMeans, record.best),
        last=cast(ValidationMeans, record.last),
        notes=[*notes, *(record.warnings or [])],
        trials=cast(list[TrialRow], record.trials or []),
        winner=record.winner,
        candidates=cast(list[CandidateRow], record.candidates or []),
        chosen=record.chosen,
        baseline=cast("Baseline | None", record.baseline),
    )
