"""Heads of a `kind`: solved on the training rows of each fold (closed_forms.py), and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads import inputs
from featurecache.heads.closed_forms import ClosedForm, Layer, solve
from featurecache.heads.defaults import logistic_schedule
from featurecache.heads.epochs import Data, Job
from featurecache.heads.logistic import choose_penalty, parts_of
from featurecache.heads.logistic_training import epoch_row, scores, solved
from featurecache.heads.schedules import Schedule
from featurecache.heads.training_set import TrainingSet
from featurecache.heads.weighted_rows import Index, Rows, Vectors
from featurecache.items import group_numbers
from featurecache.training.epoch_metrics import EpochRow

_ROWS_AT_ONCE = 4096


def train_closed_forms(
    data: Data,
    group: Sequence[Job],
    schedule: Schedule,
    training_set: TrainingSet,
    done: Callable[[int, EpochRow], None],
) -> list[nn.Sequential]:
    """The heads of a group, as they take the vectors of `data`; each is one epoch to `done`."""
    if data.window is not None and (schedule.input is not None or schedule.head.kind == "logistic"):
        part = "input" if schedule.input is not None else "head: {kind: logistic}"
        raise BadInput(f"{part} needs all training vectors in memory; give a larger --memory")
    heads = []
    for job in group:
        train = _logistic if schedule.head.kind == "logistic" else _closed_form
        head, row = train(data, job, schedule, training_set)
        heads.append(head)
        done(job.member_index, row)
    return heads


def _logistic(
    data: Data, job: Job, schedule: Schedule, training_set: TrainingSet
) -> tuple[nn.Sequential, EpochRow]:
    """Logistic regression whose penalty is chosen on held-out training rows of one view."""
    began = time.perf_counter()
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
    head, row = solved(data, replace(job, member=member), plain, training_set.classes)
    row["seconds"] = time.perf_counter() - began
    return head, row


def _closed_form(
    data: Data, job: Job, schedule: Schedule, training_set: TrainingSet
) -> tuple[nn.Sequential, EpochRow]:
    began = time.perf_counter()
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

    in_training = scores(
        np.concatenate([measured(view, train) for view in views]),
        np.tile(labels[train], len(views)),
    )
    row = epoch_row(job, schedule, in_training, scores(measured(clean, val), labels[val]))
    row["seconds"] = time.perf_counter() - began
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
