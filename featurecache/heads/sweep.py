"""Train the settings of a sweep; save the result of each, and the head of the winner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from featurecache import keys
from featurecache.errors import BadInput, DamagedRun, FeatureCacheError
from featurecache.heads.epochs import Member
from featurecache.heads.head_networks import HeadNetworks
from featurecache.heads.run_files import TrialsFile
from featurecache.heads.schedules import Schedule
from featurecache.heads.stack_training import Lost
from featurecache.heads.training import train_many
from featurecache.heads.training_results import Trained
from featurecache.heads.training_set import TrainingSet
from featurecache.json_files import MAX_RUN_JSON, damaged_run, read_model
from featurecache.storage import durable
from featurecache.training.devices import device_of
from featurecache.training.epoch_metrics import (
    METRICS_FILE,
    EpochRow,
    Results,
    ValidationMeans,
    read_member_epochs,
)
from featurecache.training.sweep_settings import Setting, settings_of, stackable
from featurecache.training.trials import Trial, trial_of, winner_of

_TRIALS = "trials.json"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The trials in the order of the settings; the index of the trial with the highest top1, and
    its `best` and `last`."""

    trials: list[Trial]
    winner: int
    best: ValidationMeans
    last: ValidationMeans


def train_sweep(
    training_set: TrainingSet,
    schedule: Schedule,
    run: Path,
    *,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    on_done: Callable[[Swept], None] = lambda swept: None,
    device: str = "auto",
) -> Swept:
    """Train every setting of `schedule.sweep` with each of its seeds, and save the winner's head.

    Arguments and errors are those of `training.train`. Members of a sweep see the rows in the same
    order; a seed affects only initial weights and dropout. `run` gets the head and the metrics of
    the winner's first seed. `run/sweep/K` holds the metrics of settings that are trained together
    and, once they are done, their results, from which a killed sweep resumes. Raises
    FeatureCacheError if every setting diverged.
    """
    settings = settings_of(schedule, "schedule")
    assert schedule.sweep is not None
    seeds = schedule.sweep.seeds or [schedule.seed]
    trials_by_index: dict[int, Trial] = {}
    folder_of: dict[int, Path] = {}
    member_of: dict[int, int] = {}  # of its first seed, from 1
    for number, indices in enumerate(stackable(settings), 1):
        folder = run / "sweep" / str(number)
        folder_of.update(dict.fromkeys(indices, folder))
        member_of.update({index: rank * len(seeds) + 1 for rank, index in enumerate(indices)})
        identity_hash = keys.digest(
            {
                "identity": training_set.identity,
                "settings": [settings[index].schedule.model_dump(mode="json") for index in indices],
                "seeds": seeds,
                "device": device_of(device).type,
            }
        )
        if not (folder / _TRIALS).is_file():
            optimizers = [settings[index].schedule.optimizer for index in indices]
            members = [Member(seed, o.lr, o.weight_decay) for o in optimizers for seed in seeds]
            train_many(
                training_set,
                settings[indices[0]].schedule,
                members,
                folder,
                on_epoch=lambda _, row: on_epoch(row),
                on_done=functools.partial(
                    _save,
                    folder,
                    identity_hash,
                    [settings[index] for index in indices],
                    len(seeds),
                ),
                device=device,
            )
        else:
            for row in read_member_epochs(folder):
                on_epoch(row)
        saved = read_model(folder / _TRIALS, TrialsFile, MAX_RUN_JSON, _damaged)
        if saved.identity != identity_hash:
            raise BadInput(
                f"{folder}: holds trials of another sweep (schedule, vectors or device differ); "
                "delete the folder to train them again, or use another run folder"
            )
        if [trial["setting"] for trial in saved.trials] != [settings[n].values for n in indices]:
            raise _damaged(folder / _TRIALS, "trials: their settings don't match the sweep")
        for orphan in folder.glob("stack-*.checkpoint"):  # of a kill right after the trials
            orphan.unlink()
        trials_by_index.update(
            zip(indices, [Trial(**trial) for trial in saved.trials], strict=True)
        )
    ordered = [trials_by_index[index] for index in range(len(settings))]
    winner = winner_of(ordered)
    won = None if winner is None else ordered[winner]
    if winner is None or won is None or won.best is None or won.last is None:
        raise FeatureCacheError("every setting of the sweep diverged: the loss was not finite")
    HeadNetworks.load(folder_of[winner]).save(run)
    _keep_metrics(folder_of[winner], member_of[winner], run)
    swept = Swept(trials=ordered, winner=winner, best=won.best, last=won.last)
    on_done(swept)
    return swept


def _save(
    folder: Path,
    identity_hash: str,
    settings: Sequence[Setting[Schedule]],
    seeds: int,
    trained: Sequence[Trained | Lost],
) -> None:
    """Save the trials of settings that were trained together, and the head of the best one."""
    by_setting = [trained[start : start + seeds] for start in range(0, len(trained), seeds)]
    trials = [
        trial_of(setting.values, [_results(trained_head) for trained_head in of_setting])
        for setting, of_setting in zip(settings, by_setting, strict=True)
    ]
    best = winner_of(trials)
    if best is not None and isinstance(first := by_setting[best][0], Trained):
        first.head.save(folder)
    content = keys.canonical({"of": identity_hash, "trials": [asdict(trial) for trial in trials]})
    durable.replace(folder / _TRIALS, content + b"\n")


def _results(trained: Trained | Lost) -> Results | None:
    if isinstance(trained, Lost):
        return None
    return Results(trained.saved_rows, trained.best, trained.last)


def _damaged(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, what, f"delete {path.parent} to train its settings again")


def _keep_metrics(folder: Path, member: int, run: Path) -> None:
    """Write the metrics of the winner's head to the run, as a training without a sweep does."""
    rows = [row for row in read_member_epochs(folder) if row.pop("member", member) == member]
    durable.replace(run / METRICS_FILE, b"".join(keys.canonical(row) + b"\n" for row in rows))
