"""Train a network for each setting, seed and fold of a configuration, here or on an executor's
workers, and make one run of them."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import silent
from featurecache.executors.pool import checked_workers
from featurecache.executors.scheduler import CallQueue, TasksFailed, schedule
from featurecache.features.trained_networks import DESCRIPTION, WEIGHTS
from featurecache.filling.dispatch import Where, open_crew
from featurecache.heads.head_networks import HeadNetworks, side_by_side
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.training import Divergence, TrainingRows
from featurecache.runs.network_data import NetworkData, schedule_of_config
from featurecache.runs.network_parts import NetworkParts
from featurecache.runs.record import (
    RunRecord,
    claimed_training,
    finished_record,
    read_run,
    schedule_of,
    write_run,
)
from featurecache.runs.training_warnings import phase_warnings
from featurecache.stages.networks.network_run import (
    Means,
    NetworkTraining,
    fill_validation,
    new_record,
    save_items,
    train_run,
    write_config,
)
from featurecache.storage import durable
from featurecache.text import counted
from featurecache.training.epoch_metrics import (
    METRICS_FILE,
    MemberEpochRow,
    Results,
    read_epochs,
    read_member_epochs,
    results_of,
)
from featurecache.training.sweep_settings import Setting
from featurecache.training.trials import Trial, trial_of, winner_of


@dataclass(frozen=True, kw_only=True)
class _Folds:
    """The trainings of one setting and one seed: one per fold."""

    config: NetworkConfig
    trainings: list[NetworkTraining]

    def epochs(self) -> list[MemberEpochRow]:
        return [row for training in self.trainings for row in read_member_epochs(training.run)]


class _Ended(NamedTuple):
    """How a training ended: with a finished run, or, if `reason` is not empty, diverged."""

    run: str
    reason: str


def train_settings(
    config: NetworkConfig,
    settings: Sequence[Setting[NetworkConfig]],
    run: Path,
    data: NetworkData,
    parts: NetworkParts,
    means: Means,
    where: Where,
    workers: int | None,
) -> RunRecord:
    """The record of a run with the networks of the best setting, one per fold, and the trials of
    all. `parts` are those of the first setting; `workers` is what the user wrote.

    Each network is trained in a folder of its own, below `sweep/SETTING/seed-N` for a sweep, with
    the seeds of the sweep; all seeds have the same folds.
    """
    folds = data.folds(config)
    groups = [
        [_folds(config, setting.schedule, seed, folds, run, number) for seed in _seeds(config)]
        for number, setting in enumerate(settings, 1)
    ]
    effective = config.as_json()
    identity = data.identity(parts, effective)
    trainings = [training for seeds in groups for group in seeds for training in group.trainings]

    def waiting(why: str) -> None:
        means.progress(0, 1, f"train-network ({why})")

    with claimed_training(run, lambda: finished_record(run, identity), waiting) as done:
        if done is not None:
            return done
        began = time.time()
        record = new_record(data, parts, identity, run, folds)
        record.network = effective
        write_run(run, record)
        write_config(run, effective)
        if where.executor == "local":
            ended = [*_train_here(trainings, data, means)]
        else:
            ended = [*_train_on_workers(trainings, data, means, where, workers)]
        lost = {training.run: training.reason for training in ended if training.reason}
        trials = [
            trial_of(setting.values, [_results(group, lost) for group in seeds])
            for setting, seeds in zip(settings, groups, strict=True)
        ]
        winner = winner_of(trials)
        if winner is None and config.sweep is None:
            raise FeatureCacheError("; ".join(lost.values()))
        if winner is None:
            raise FeatureCacheError("every setting of the sweep diverged: the loss was not finite")
        if config.sweep is not None:
            record.trials, record.winner = [asdict(trial) for trial in trials], winner
        _finish(record, trials[winner], groups[winner][0], run, data, means)
        record.seconds = round(time.time() - began, 3)
        write_run(run, record)
    return record


def _seeds(config: NetworkConfig) -> list[int]:
    return (config.sweep and config.sweep.seeds) or [config.seed]


def _folds(
    config: NetworkConfig,
    setting: NetworkConfig,
    seed: int,
    folds: Sequence[TrainingRows],
    run: Path,
    number: int,
) -> _Folds:
    """The trainings of a setting, the `number`-th, with a seed."""
    folder = run
    if config.sweep is not None:
        folder = run / "sweep" / str(number)
        if config.sweep.seeds is not None:
            folder /= f"seed-{seed}"
    seeded = setting.model_copy(update={"seed": seed})
    trainings = [
        NetworkTraining(
            config=seeded,
            rows=rows,
            run=folder if len(folds) == 1 else folder / f"fold-{rows.fold}",
            is_part=True,
        )
        for rows in folds
    ]
    return _Folds(config=seeded, trainings=trainings)


def _train_here(
    trainings: Sequence[NetworkTraining], data: NetworkData, means: Means
) -> Iterator[_Ended]:
    before, total = 0, sum(sum(training.pictures) for training in trainings)

    def show(number: int, before: int, done: int, _: int, what: str) -> None:
        means.progress(before + done, total, f"{what}, {number} of {len(trainings)}")

    for number, training in enumerate(trainings, 1):
        yield _train(
            training, data, replace(means, progress=functools.partial(show, number, before))
        )
        before += sum(training.pictures)


def _train(training: NetworkTraining, data: NetworkData, means: Means) -> _Ended:
    try:
        train_run(training, data, means)
    except Divergence as error:
        return _Ended(str(training.run), f"{training.run}: {error}")
    return _Ended(str(training.run), "")


def _train_on_workers(
    trainings: Sequence[NetworkTraining],
    data: NetworkData,
    means: Means,
    where: Where,
    workers: int | None,
) -> Iterator[_Ended]:
    """Train each network on a worker. A network whose worker is lost resumes from its last
    checkpoint on another one. Raises FeatureCacheError that names each training that failed, after
    all others are done."""
    import torch

    gpus = 0 if means.device == "cpu" else torch.cuda.device_count()
    means.progress(0, 1, "train-network (starting workers)")
    context = (data, means.device, means.runs, workers)
    with contextlib.closing(open_crew(where, _begin, context, gpus)) as crew:
        watched = _WatchedCrew(crew, trainings, means)
        try:
            yield from (ended for ended, _ in schedule(watched, trainings, watched.add_loss))
            watched.show_epochs()  # all of them, and how many workers were lost
        except TasksFailed as error:
            failed = "; ".join(f"{training.run}: {reason}" for training, reason in error.failed)
            raise FeatureCacheError(
                f"{len(error.failed)} of {len(trainings)} trainings failed; rerun the command to "
                f"resume them: {failed}"
            ) from error


def _begin(context: tuple[NetworkData, str, str | Path, int | None]) -> Any:
    """Start a worker. Returns the function that trains a network."""
    data, device, runs, workers = context
    if not Path(data.cache.root).is_dir():
        raise BadInput(
            f"does not see the cache {data.cache.root}: it must be the same folder, at the same "
            "path, on every machine"
        )
    means = Means(device=device, workers=checked_workers(workers), progress=silent, runs=runs)

    def work(trainings: Iterable[NetworkTraining | None]) -> Iterator[_Ended]:
        return (_train(training, data, means) for training in trainings if training is not None)

    return CallQueue(work)  # one training at a time


class _WatchedCrew:
    """A Crew that shows the epochs of its trainings, from their metrics, while it waits."""

    def __init__(self, crew: Any, trainings: Sequence[NetworkTraining], means: Means) -> None:
        self._crew, self._trainings, self._means = crew, trainings, means
        self._losses = 0
        self.give: Callable[[str, int, Any], None] = crew.give

    def events(self, seconds: float) -> Any:
        self.show_epochs()
        return self._crew.events(seconds)

    def show_epochs(self) -> None:
        epochs = sum(_epochs_done(training.run) for training in self._trainings)
        total = sum(training.config.epochs for training in self._trainings)
        lost = f", {counted(self._losses, 'worker')} lost" if self._losses else ""
        self._means.progress(epochs, total, f"train-network (epochs{lost})")

    @property
    def stranded(self) -> str:
        return str(self._crew.stranded)

    def add_loss(self, reason: str) -> None:
        self._losses += 1


def _epochs_done(run: Path) -> int:
    try:
        return (run / METRICS_FILE).read_bytes().count(b"\n")
    except OSError:
        return 0


def _results(group: _Folds, lost: dict[str, str]) -> Results | None:
    """The results of a setting and a seed; None if a training of it diverged."""
    if any(str(training.run) in lost for training in group.trainings):
        return None
    return results_of(group.epochs(), group.config.early_stopping is not None)


def _finish(
    record: RunRecord, trial: Trial, group: _Folds, run: Path, data: NetworkData, means: Means
) -> None:
    """Put the networks of a setting into the run, and their results into its record."""
    assert trial.best is not None and trial.last is not None
    folders = [training.run for training in group.trainings]
    networks = [run]
    if len(folders) > 1:
        networks = [run / f"fold-{number}" for number in range(1, len(folders) + 1)]
    for folder, network in zip(folders, networks, strict=True):
        names = [WEIGHTS, DESCRIPTION]
        if network != run:
            names += [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if folder != network:
            network.mkdir(exist_ok=True)
            for name in names:
                shutil.copyfile(folder / name, network / name)
    heads = [HeadNetworks.load(folder) for folder in folders]
    (heads[0] if len(heads) == 1 else side_by_side(heads)).save(run)
    durable.replace(
        run / METRICS_FILE, b"".join(keys.canonical(row) + b"\n" for row in group.epochs())
    )
    save_items(run, data, [training.rows for training in group.trainings])
    plan = schedule_of_config(group.config, str(run))
    record.schedule = plan.as_json()
    record.backbones = [
        {**read_run(folder).backbones[0], "name": str(network)}
        for folder, network in zip(folders, networks, strict=True)
    ]
    record.notes += read_run(folders[0]).notes[len(data.training.notes) :]
    record.best, record.last = dict(trial.best), dict(trial.last)
    fill_validation(record, networks, run, data, means)
    record.warnings = phase_warnings(schedule_of(record), read_epochs(run))
