"""Heads that are solved on the training rows of each fold, and measured: those of a `kind`
(closed_forms.py), and linear ones by `optimizer: lbfgs`, solved to the minimum (logistic.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads import inputs
from featurecache.heads.closed_forms import ClosedForm, Layer, solve
from featurecache.heads.defaults import logistic_schedule
from featurecache.heads.epochs import Data, Fold, Job
from featurecache.heads.logistic import Labels, Solver, choose_penalty, parts_of
from featurecache.heads.schedules import Schedule
from featurecache.heads.training_set import TrainingSet
from featurecache.heads.weighted_rows import Index, Rows, Vectors
from featurecache.items import group_numbers
from featurecache.training.epoch_metrics import EpochRow
from featurecache.training.losses import fixed_weights

_ROWS_AT_ONCE = 4096


class Scores(NamedTuple):
    """Mean cross-entropy in nats, and top-1."""

    loss: float
    top1: float


def train_solved(
    data: Data,
    group: Sequence[Job],
    schedule: Schedule,
    training_set: TrainingSet,
    done: Callable[[int, EpochRow], None],
) -> list[nn.Sequential]:
    """The heads of a group, as they take the vectors of `data`; each is one epoch to `done`."""
    kind = schedule.head.kind
    is_lbfgs = not schedule.head.is_solved
    if data.window is not None and is_lbfgs:
        raise BadInput(
            "optimizer lbfgs needs all training vectors in memory; give a larger --memory, or "
            "another optimizer"
        )
    if data.window is not None and (schedule.input is not None or kind == "logistic"):
        part = "input" if schedule.input is not None else "head: {kind: logistic}"
        raise BadInput(f"{part} needs all training vectors in memory; give a larger --memory")
    solve_head = _lbfgs if is_lbfgs else _logistic if kind == "logistic" else _closed_form
    heads = []
    for job in group:
        began = time.perf_counter()
        head, row = solve_head(data, job, schedule, training_set)
        row["seconds"] = time.perf_counter() - began
        heads.append(head)
        done(job.member_index, row)
    return heads


def _logistic(
    data: Data, job: Job, schedule: Schedule, training_set: TrainingSet
) -> tuple[nn.Sequential, EpochRow]:
    """Logistic regression whose penalty is chosen on held-out training rows of one view."""
    views, clean = schedule.phases[0].views, schedule.validation.view
    rows = job.fold.train_rows.cpu().numpy()
    vectors = data.draw(clean if clean in views else next(iter(views)), job.fold.number)[
        job.fold.train_rows
    ]
    y = np.asarray(training_set.labels)[rows].astype(np.int64)
    classes = len(training_set.classes)
    parts = parts_of(y, classes, _groups(training_set, rows))
    penalty = choose_penalty(vectors.cpu().numpy(), y, classes, parts)
    plain = logistic_schedule(schedule, views, penalty.standardise, penalty.weight_decay)
    member = replace(job.member, weight_decay=penalty.weight_decay)
    return _lbfgs(data, replace(job, member=member), plain, training_set)


def _lbfgs(
    data: Data, job: Job, schedule: Schedule, training_set: TrainingSet
) -> tuple[nn.Sequential, EpochRow]:
    """With several views, every row counts once in each of them, weighted by the view's share."""
    classes = training_set.classes
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
    head = nn.Sequential(_linear(Layer(solution.weight, solution.bias)))
    Z, z = vectors(view, fold.val_rows), labels[fold.val_rows.cpu().numpy()]
    row = _epoch_row(job, schedule, _scores(solution.logits(X), y), _scores(solution.logits(Z), z))
    return (head if fitted is None else fitted.within(head)).eval(), row


def _closed_form(
    data: Data, job: Job, schedule: Schedule, training_set: TrainingSet
) -> tuple[nn.Sequential, EpochRow]:
    kind, views, clean = schedule.head.kind, schedule.phases[0].views, schedule.validation.view
    assert kind is not None and kind != "logistic" and kind != "attention"
    train, val = (rows.cpu().numpy() for rows in (job.fold.train_rows, job.fold.val_rows))
    labels = np.asarray(training_set.labels)
    fitted = None
    if schedule.input is not None:
        fitted = inputs.fit(schedule.input, data.draw(clean, job.fold.number)[job.fold.train_rows])

    def reader(view: str, chosen: Index) -> Callable[[Index], Vectors]:
        def read(rows: Index) -> Vectors:
            x = data.draw(view, job.fold.number)[
                torch.from_numpy(chosen[rows]).to(data.labels.device)
            ]
            result: Vectors = (x if fitted is None else fitted(x)).cpu().numpy()
            return result

        return read

    rows = Rows(
        views=[reader(view, train) for view in views],
        shares=list(views.values()),
        labels=labels[train].astype(np.int64),
        classes=len(training_set.classes),
        groups=_groups(training_set, train),
    )
    form = solve(kind, rows, width=schedule.head.width or 1, seed=job.member.seed)

    def measured(view: str, chosen: Index) -> Vectors:
        read = reader(view, chosen)
        every = np.arange(len(chosen))
        parts = [every[n : n + _ROWS_AT_ONCE] for n in range(0, len(every), _ROWS_AT_ONCE)]
        blocks = [form.scale * form.scores(read(part)) for part in parts]
        return np.concatenate(blocks)

    in_training = _scores(
        np.concatenate([measured(view, train) for view in views]),
        np.tile(labels[train], len(views)),
    )
    row = _epoch_row(job, schedule, in_training, _scores(measured(clean, val), labels[val]))
    head = _network(form)
    return (head if fitted is None else fitted.within(head)).eval(), row


def _groups(training_set: TrainingSet, rows: Index) -> Index | None:
    """A number for each row, the same for images that belong together and for copies of an image;
    None if every row is a different image."""
    names = [training_set.groups[row] if training_set.groups else "" for row in rows]
    numbers = group_numbers(training_set.items[rows], names)
    return None if len(np.unique(numbers)) == len(rows) else numbers


def _network(form: ClosedForm) -> nn.Sequential:
    last = Layer(form.last.weight * np.float32(form.scale), form.last.bias * np.float32(form.scale))
    if form.projection is None:
        return nn.Sequential(_linear(last))
    return nn.Sequential(_linear(form.projection), nn.ReLU(), _linear(last))


def _linear(layer: Layer) -> nn.Linear:
    linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(layer.weight))
        linear.bias.copy_(torch.from_numpy(layer.bias))
    return linear


def _epoch_row(job: Job, schedule: Schedule, train_scores: Scores, val_scores: Scores) -> EpochRow:
    """The one epoch of a head that was solved, without its seconds."""
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
    by_class = fixed_weights(schedule.class_weights, torch.from_numpy(y), classes)
    return np.ones(len(y)) if by_class is None else by_class.double().numpy()[0, y]


def _scores(logits: Vectors, labels: Labels) -> Scores:
    """The scores of logits (N, C)."""
    shifted = logits - logits.max(1, keepdims=True)
    label_logits = shifted[np.arange(len(labels)), labels]
    losses = np.log(np.exp(shifted).sum(1)) - label_logits
    return Scores(float(losses.mean()), float((logits.argmax(1) == labels).mean()))
