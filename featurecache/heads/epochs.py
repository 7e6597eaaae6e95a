"""One epoch of a stack of networks on cached vectors: order, mixture, steps, validation.

Every random number of an epoch (order, mixture, dropout) depends only on (seed, fold, epoch). A
training that was killed and resumed therefore gives the same numbers as an uninterrupted one, on
the same kind of machine with the same number of threads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from featurecache.heads.curricula import DROPPING, Curriculum, RowLosses
from featurecache.heads.drawn import Drawn
from featurecache.heads.mixup_and_noise import Perturbation
from featurecache.heads.stacks import Stack
from featurecache.heads.streams import windowed
from featurecache.heads.windows import Windowed
from featurecache.training.curriculum import Planned
from featurecache.training.losses import cross_entropy, hits
from featurecache.training.minibatches import batches, epoch_rng, mixture

_ROWS_AT_ONCE = 1 << 22  # in validation: rows x width x members


@dataclass(frozen=True)
class Member:
    """The settings in which the heads of a stack may differ.

    `seed` draws the initial weights and dropout. The order of the rows, mixtures and splits are
    drawn from the schedule's seed and are the same for all members. A phase that sets lr or
    weight_decay overrides it for every member.
    """

    seed: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Fold:
    number: int  # from 1
    train_rows: torch.Tensor  # row numbers, int64, on the device
    val_rows: torch.Tensor


@dataclass(frozen=True)
class Job:
    """One network to train: a member on a fold. `member_index` counts from 0."""

    member_index: int
    member: Member
    fold: Fold


@dataclass(frozen=True)
class Data:
    """The rows of all views and folds, on the device."""

    views: Mapping[str, torch.Tensor | Windowed | Drawn]  # (N, D) each
    labels: torch.Tensor  # (N,)

    def draw(self, view: str, fold: int, epoch: int = 1) -> torch.Tensor | Windowed:
        """The vectors of a view in a fold and an epoch, both from 1."""
        vectors = self.views[view]
        if isinstance(vectors, Drawn):
            return torch.from_numpy(vectors.make(fold, epoch)).to(self.labels.device)
        return vectors

    @property
    def window(self) -> int | None:
        """The number of rows of a window; None if all vectors are in memory."""
        vectors = next(iter(self.views.values()))
        return vectors.window if isinstance(vectors, Windowed) else None


class Minibatch(NamedTuple):
    """Rows for all networks, x (B, D) with target (B,), or for each, (M, B, D) with (M, B).

    With mixup, `mixed` holds the labels of the rows mixed in, shaped like `target`, and the share
    of the original rows, (1, 1) or (M, 1).
    """

    x: torch.Tensor
    target: torch.Tensor
    mixed: tuple[torch.Tensor, torch.Tensor] | None = None


def one_epoch(
    stack: Stack,
    data: Data,
    group: Sequence[Job],
    curriculum: Curriculum,
    planned: Planned,
    so_far: Sequence[list[float]],
    errors: torch.Tensor | None = None,
) -> list[tuple[float, float]]:
    """Train one epoch in place; return each network's mean training loss and top1.

    Networks on several folds see different rows, in minibatches that may differ in size. `so_far`
    are the validation losses of each network, `errors` (M, C) those of the last validation.
    """
    where = data.labels.device
    schedule = curriculum.schedule
    shares = planned.phase.shares(planned.in_phase)
    folds = distinct(group)
    vectors_by_fold = [
        [data.draw(view, fold.number, planned.epoch) for view in shares] for fold in folds
    ]
    orders: list[torch.Tensor] = []
    view_indices: list[torch.Tensor] = []
    for fold in folds:
        rng = epoch_rng(schedule.seed, fold.number, planned.epoch)
        own_losses = functools.partial(
            row_losses, stack, data, fold.train_rows, schedule.validation.view
        )
        positions = curriculum.row_positions(fold.number, len(fold.train_rows), planned, own_losses)
        if data.window is None:
            order = torch.from_numpy(positions[rng.permutation(len(positions))]).to(where)
        else:
            order = torch.from_numpy(windowed(positions, data.window, rng)).to(where)
        orders.append(fold.train_rows[order])
        if len(shares) > 1:
            mixed_views = torch.from_numpy(mixture(shares, len(fold.train_rows), rng)).to(where)
            view_indices.append(mixed_views[order])
    perturbations = [curriculum.perturbation(fold.number, planned) for fold in folds]
    weights = curriculum.weights(errors)
    if weights is not None:
        weights = weights.to(where).expand(len(group), -1)
    dropping = [_dropping(job, planned.epoch, where) for job in group]
    # Summed on the device: reading a number back at every step would wait for every step.
    loss = torch.zeros(len(group), dtype=torch.float64, device=where)
    right = torch.zeros(len(group), dtype=torch.int64, device=where)
    cuts = [batches(len(order), schedule.batch_size) for order in orders]
    fold_indices = [0 if len(folds) == 1 else network for network in range(len(group))]

    def step(part: Stack, networks: slice, number: int, rows: Minibatch) -> None:
        rates = [
            curriculum.rate(
                planned, job.member.lr, job.member.weight_decay, number / len(cuts[f]), losses
            )
            for job, f, losses in list(zip(group, fold_indices, so_far, strict=True))[networks]
        ]
        loss_function = functools.partial(
            cross_entropy,
            smoothing=schedule.label_smoothing or 0.0,
            weights=None if weights is None else weights[networks],
            mixed=rows.mixed,
        )
        sums = part.step(rows.x, rows.target, rates, dropping[networks], loss_function)
        loss[networks] += sums[0]
        right[networks] += sums[1]

    parts = [stack.part(network) for network in range(len(group))] if len(folds) > 1 else [stack]
    for number, spans in enumerate(itertools.zip_longest(*cuts, fillvalue=(0, 0))):
        if data.window is not None and spans[0][0] % data.window == 0:
            start = spans[0][0]  # of a window; streamed groups have one fold (training._groups)
            for vectors in vectors_by_fold[0]:
                if isinstance(vectors, Windowed):
                    vectors.hold(orders[0][start : start + data.window])
        rows = [
            _minibatch(
                data,
                vectors_by_fold[f],
                orders[f][a:b],
                view_indices[f][a:b] if view_indices else None,
                perturbations[f],
            )
            for f, (a, b) in enumerate(spans)
        ]
        if len({len(minibatch.target) for minibatch in rows}) == 1:
            step(stack, slice(None), number, _stacked(rows))
            continue
        for network, minibatch in enumerate(rows):
            if len(minibatch.target) > 0:
                step(parts[network], slice(network, network + 1), number, minibatch)
    counts = [len(orders[f]) for f in fold_indices]
    return [
        (total / count, number / count)
        for total, number, count in zip(loss.tolist(), right.tolist(), counts, strict=True)
    ]


def validate(
    stack: Stack, data: Data, group: Sequence[Job], view: str, classes: int
) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """Each network's mean loss and top1 over its validation rows, and its error rate per class,
    (M, C) float64, NaN for a class without rows."""
    if len(distinct(group)) > 1:
        results = [
            validate(stack.part(network), data, [job], view, classes)
            for network, job in enumerate(group)
        ]
        return [pair for pairs, _ in results for pair in pairs], torch.cat([e for _, e in results])
    val_rows, vectors = group[0].fold.val_rows, data.draw(view, group[0].fold.number)
    loss = torch.zeros(len(stack), dtype=torch.float64, device=val_rows.device)
    right = torch.zeros(len(stack), classes, dtype=torch.float64, device=val_rows.device)
    with torch.inference_mode():
        for rows in torch.split(val_rows, _rows_at_once(stack)):
            logits, target = stack.logits(vectors[rows]), data.labels[rows]
            loss += cross_entropy(logits, target).sum(1)
            right.index_add_(1, target, hits(logits, target).double())
    counts = torch.bincount(data.labels[val_rows], minlength=classes)
    shares = [
        (total / len(val_rows), number / len(val_rows))
        for total, number in zip(loss.tolist(), right.sum(1).tolist(), strict=True)
    ]
    return shares, 1 - right / counts


def row_losses(stack: Stack, data: Data, rows: torch.Tensor, view: str) -> RowLosses:
    """The validation loss (B,) of each of the rows (B,) under a stack of one network."""
    with torch.inference_mode():
        vectors = data.draw(view, 1)
        losses = [
            cross_entropy(stack.logits(vectors[block]), data.labels[block])[0]
            for block in torch.split(rows, _rows_at_once(stack))
        ]
        return torch.cat(losses).double().cpu().numpy()


def gather(
    views: Sequence[torch.Tensor | Windowed],
    rows: torch.Tensor,
    view_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vectors (B, D): each of `rows` from the view at its index in `view_indices`."""
    result = views[0].index_select(0, rows)
    if view_indices is not None:
        for index, vectors in enumerate(views[1:], 1):
            # torch.where, since a boolean index would wait for the GPU to count its rows.
            result = torch.where(
                (view_indices == index)[:, None], vectors.index_select(0, rows), result
            )
    return result


def distinct(group: Sequence[Job]) -> list[Fold]:
    """The folds of a group in order: one for all networks, or one per network."""
    return list({job.fold.number: job.fold for job in group}.values())


def _minibatch(
    data: Data,
    vectors_by_view: Sequence[torch.Tensor | Windowed],
    rows: torch.Tensor,
    view_indices: torch.Tensor | None,
    perturbation: Perturbation | None,
) -> Minibatch:
    x, target = gather(vectors_by_view, rows, view_indices), data.labels[rows]
    if perturbation is None or len(rows) == 0:
        return Minibatch(x, target)
    x = perturbation.vectors(x)
    if perturbation.alpha is None:
        return Minibatch(x, target)
    x, partners, share = perturbation.mix(x, perturbation.alpha)
    return Minibatch(x, target, (target[partners], torch.full((1, 1), share, device=x.device)))


def _stacked(rows: Sequence[Minibatch]) -> Minibatch:
    """Minibatches of equal size stacked into one. The only minibatch of a single fold is returned
    as it is: all members share it."""
    if len(rows) == 1:
        return rows[0]
    x, target = (
        torch.stack([batch.x for batch in rows]),
        torch.stack([batch.target for batch in rows]),
    )
    mixed = [batch.mixed for batch in rows if batch.mixed is not None]
    if not mixed:
        return Minibatch(x, target)
    others, shares = zip(*mixed, strict=True)
    return Minibatch(x, target, (torch.stack(others), torch.cat(shares)))


def _rows_at_once(stack: Stack) -> int:
    widest = max(tensor.shape[1] for tensor in stack.state.values() if tensor.dim() > 1)
    return max(64, _ROWS_AT_ONCE // (widest * len(stack)))


def _dropping(job: Job, epoch: int, device: torch.device) -> torch.Generator:
    """The random generator of a network's dropout in an epoch."""
    key = (job.fold.number, epoch, DROPPING)
    seed = np.random.SeedSequence(job.member.seed, spawn_key=key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) >> 1)
