"""Linear heads by `optimizer: lbfgs`: solved to the minimum instead of trained for epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads import inputs
from featurecache.heads.epochs import Data, Fold, Job
from featurecache.heads.logistic import Labels, Solver, Vectors
from featurecache.heads.schedules import Schedule
from featurecache.training.epoch_metrics import EpochRow
from featurecache.training.losses import balanced, named


class Scores(NamedTuple):
    """Mean cross-entropy in nats, and top-1."""

    loss: float
    top1: float


def train_logistic(
    data: Data,
    group: Sequence[Job],
    schedule: Schedule,
    classes: Sequence[str],
    done: Callable[[int, EpochRow], None],
) -> list[nn.Sequential]:
    """The heads of a group, as they take the vectors of `data`. Of several views every row counts
    once through each, weighted by the view's share. Each head is one epoch to `done`."""
    if data.window is not None:
        raise BadInput(
            "optimizer lbfgs needs all training vectors in memory; give a larger --memory, or "
            "another optimizer"
        )
    heads = []
    for job in group:
        head, row = solved(data, job, schedule, classes)
        heads.append(head)
        done(job.member_index, row)
    return heads


def solved(
    data: Data, job: Job, schedule: Schedule, classes: Sequence[str]
) -> tuple[nn.Sequential, EpochRow]:
    """A head, and its one epoch."""
    began = time.perf_counter()
    (phase,) = schedule.phases
    fold, view = job.fold, schedule.validation.view
    labels = data.labels.cpu().numpy()
    fitted = None
    if schedule.input is not None:
        fitted = inputs.fit(schedule.input, _rows(data, view, fold, fold.train_rows))

    def vectors(name: str, rows: torch.Tensor) -> Vectors:
        x = _rows(data, name, fold, rows)
        return (x if fitted is None else fitted(x)).cpu().numpy()

    X = np.concatenate([vectors(name, fold.train_rows) for name in phase.views])
    y = np.tile(labels[fold.train_rows.cpu().numpy()], len(phase.views))
    shares = np.array(list(phase.views.values())) * len(phase.views)
    weights = np.repeat(shares, len(fold.train_rows)) * _class_weights(schedule, y, classes)
    solution = Solver(X, y, len(classes), weights).solve(job.member.weight_decay)
    layer = nn.Linear(X.shape[1], len(classes))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(solution.weight))
        layer.bias.copy_(torch.from_numpy(solution.bias))
    head = nn.Sequential(layer)
    Z, z = vectors(view, fold.val_rows), labels[fold.val_rows.cpu().numpy()]
    row = epoch_row(job, schedule, scores(solution.logits(X), y), scores(solution.logits(Z), z))
    row["seconds"] = time.perf_counter() - began
    return (head if fitted is None else fitted.within(head)).eval(), row


def epoch_row(job: Job, schedule: Schedule, train_scores: Scores, val_scores: Scores) -> EpochRow:
    """The one epoch of a head that was solved; the caller adds the seconds."""
    return {
        "fold": job.fold.number,
        "epoch": 1,
        "phase": 1,
        "views": dict(schedule.phases[0].views),
        "lr": None,
        "train_loss": train_scores.loss,
        "train_top1": train_scores.top1,
        "val_loss": val_scores.loss,
        "val_top1": val_scores.top1,
        "seconds": 0.0,
    }


def _rows(data: Data, view: str, fold: Fold, rows: torch.Tensor) -> torch.Tensor:
    vectors = data.draw(view, fold.number)
    assert isinstance(vectors, torch.Tensor)  # no windows: checked above
    return vectors[rows]


def _class_weights(schedule: Schedule, y: Labels, classes: Sequence[str]) -> np.ndarray:
    """(N,) the weight of each row by its class, as in a training by epochs."""
    wanted = schedule.class_weights
    if wanted is None or wanted == "errors":
        return np.ones(len(y))
    labels = torch.from_numpy(y)
    by_class = balanced(labels, len(classes)) if wanted == "balanced" else named(wanted, classes)
    return np.asarray(by_class.double().cpu().numpy()).reshape(-1)[y]


def scores(logits: Vectors, labels: Labels) -> Scores:
    """The scores of logits (N, C)."""
    shifted = logits - logits.max(1, keepdims=True)
    label_logits = shifted[np.arange(len(labels)), labels]
    losses = np.log(np.exp(shifted).sum(1)) - label_logits
    return Scores(float(losses.mean()), float((logits.argmax(1) == labels).mean()))
