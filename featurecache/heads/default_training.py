"""Training without a schedule: candidates are compared on a held-out part of the training images,
and the best one is trained on all of them.

The images that choose are training images; the validation images only judge (law 11, "A number
says how sure it is").
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.heads.defaults import VALIDATED, CandidateRow, logistic_schedule, mixture
from featurecache.heads.logistic import PARTS, Penalty, choose_penalty, parts_of
from featurecache.heads.schedules import Schedule
from featurecache.heads.training import train
from featurecache.heads.training_results import Trained
from featurecache.heads.training_set import TrainingSet
from featurecache.training.curriculum import Phase
from featurecache.training.epoch_metrics import EpochRow

_CHOICE = "choice"  # folder in a run while the candidates are trained
_FINAL = "final"  # folder in a run while the saved head is trained


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule, and which of the N rows that chose it classified correctly."""

    name: str  # logistic or network
    schedule: Schedule
    right: npt.NDArray[np.bool_]  # (N,)

    def described(self) -> CandidateRow:
        return {
            "head": self.name,
            "views": dict(self.schedule.phases[0].views),
            "top1": float(self.right.mean()),
            "n": len(self.right),
        }


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The result of a training without a schedule."""

    trained: Trained
    schedule: Schedule
    candidates: list[Candidate]
    winner: int


def train_default(
    training_set: TrainingSet,
    network: Schedule,
    run: Path,
    *,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    on_final: Callable[[int], None] = lambda epochs: None,
    on_done: Callable[[Chosen], None] = lambda chosen: None,
    device: str = "auto",
) -> Chosen:
    """Choose among logistic regression and `network`, on the clean vectors and on all views, and
    save the best one in `run`. `on_final` gets the number of epochs that are left of the training
    on all images: when it begins, and after each of them.

    `best` and `last` of the result are measured on validation images that no fit has seen. Where
    these are a part of the training images, that head is saved in the folder `validated`, and the
    head of the run is trained on all images.
    """
    ((train_rows, val_rows),) = training_set.folds(network)
    candidates, winner = _choose(training_set, network, train_rows, run, on_epoch, device)
    schedule = candidates[winner].schedule
    trained = train(training_set, schedule, run, on_epoch=on_epoch, device=device)
    if network.validation.fraction is not None:
        (run / VALIDATED).mkdir(exist_ok=True)
        trained.head.save(run / VALIDATED)
        rows = np.sort(np.concatenate([train_rows, val_rows]))
        final = replace(training_set, pairs=[(rows, val_rows)], is_final=True)
        left = schedule.epochs
        on_final(left)
        final_result = train(
            final,
            schedule,
            run / _FINAL,
            on_epoch=lambda row: on_final(left - row["epoch"]),
            device=device,
        )
        final_result.head.save(run)
    chosen = Chosen(trained=trained, schedule=schedule, candidates=candidates, winner=winner)
    on_done(chosen)
    for folder in (_CHOICE, _FINAL):
        shutil.rmtree(run / folder, ignore_errors=True)
    return chosen


def _choose(
    training_set: TrainingSet,
    network: Schedule,
    train_rows: npt.NDArray[np.int64],
    run: Path,
    on_epoch: Callable[[EpochRow], None],
    device: str,
) -> tuple[list[Candidate], int]:
    """The candidates, and the index of the best. The first one is logistic regression on the clean
    vectors; another must be better by more than one standard error of the difference."""
    keys = np.ascontiguousarray(training_set.items[train_rows]).view("V32").ravel()
    rows = train_rows[np.sort(np.unique(keys, return_index=True)[1])]  # copies would leak
    labels = np.asarray(training_set.labels)[rows]
    classes = len(training_set.classes)
    views = list(network.phases[0].views)
    view = network.validation.view
    clean = view if view in views else views[0]
    part_numbers = parts_of(labels, classes, training_set.group_numbers(rows))
    penalty = choose_penalty(_array(training_set, clean)[rows], labels, classes, part_numbers)
    test_rows = part_numbers == PARTS - 1
    test_rows &= np.isin(labels, labels[~test_rows])  # a class of one group can't be tested
    if not test_rows.any():  # the penalty was chosen on other parts
        schedule = _with_penalty(network, {clean: 1.0}, penalty)
        return [
            Candidate(name="logistic", schedule=schedule, right=penalty.right[penalty.test_rows])
        ], 0
    part = replace(training_set, pairs=[(rows[~test_rows], rows[test_rows])])
    mixtures = [{clean: 1.0}]
    if len(views) > 1:
        mixtures.append(mixture(views, clean))
    candidates = []
    for shares in mixtures:
        schedule = _with_penalty(network, shares, penalty)
        candidates.append(_tried(part, "logistic", schedule, run, on_epoch, device))
    for shares in mixtures:
        phase = Phase(views=shares, epochs=network.phases[0].epochs)
        schedule = network.model_copy(update={"phases": [phase]})
        candidates.append(_tried(part, "network", schedule, run, on_epoch, device))
    best = 0
    for index in range(1, len(candidates)):
        gains = candidates[index].right.astype(float) - candidates[best].right
        if gains.mean() > gains.std() / len(gains) ** 0.5:
            best = index
    return candidates, best


def _with_penalty(network: Schedule, shares: dict[str, float], penalty: Penalty) -> Schedule:
    return logistic_schedule(network, shares, penalty.standardise, penalty.weight_decay)


def _tried(
    part: TrainingSet,
    name: str,
    schedule: Schedule,
    run: Path,
    on_epoch: Callable[[EpochRow], None],
    device: str,
) -> Candidate:
    """A candidate that was trained on a part of the training images and tested on the others."""
    assert part.pairs is not None
    folder = run / _CHOICE / f"{name}-{len(schedule.phases[0].views)}"
    trained = train(part, schedule, folder, on_epoch=on_epoch, device=device)
    rows = part.pairs[0][1]
    answers = trained.head.predict_proba(_array(part, schedule.validation.view)[rows]).argmax(1)
    return Candidate(name=name, schedule=schedule, right=answers == np.asarray(part.labels)[rows])


def _array(training_set: TrainingSet, view: str) -> npt.NDArray[np.float32]:
    vectors = training_set.vectors[view]
    assert isinstance(vectors, np.ndarray)  # streams are trained by the network alone
    return vectors
