"""The plan of each epoch: its rows, perturbation, class weights and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from featurecache.heads.mixup_and_noise import Perturbation, mean_and_deviation
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import Index
from featurecache.training.curriculum import Order, Planned
from featurecache.training.losses import by_errors, fixed_weights
from featurecache.training.lr_schedules import rate_at
from featurecache.training.settings import Rate

RowLosses = npt.NDArray[np.float64]

# Third component of a SeedSequence's key. (fold, epoch) without it seeds the order of the rows,
# epoch 0 the initial weights; DROPPING seeds a network's dropout.
DROPPING, _PERTURBING, _RANDOM_ORDER = 1, 2, 3


class Curriculum:
    """A schedule applied to the training rows of some folds.

    All draws are seeded by (seed, fold, epoch).
    """

    def __init__(
        self,
        schedule: Schedule,
        classes: Sequence[str],
        labels: Mapping[int, torch.Tensor],
        rows: Callable[[int], torch.Tensor],
        reference: Callable[[int], RowLosses],
    ) -> None:
        """`labels` maps fold numbers to the labels (N,) of the training rows.

        `rows` returns a fold's training vectors (N, D), and `reference` their losses (N,) under a
        head trained earlier; both are called only if the schedule needs them.
        """
        self.schedule = schedule
        self.plan = schedule.plan()
        perturbed = schedule.features is not None or schedule.mixup is not None
        self._moments = {n: mean_and_deviation(rows(n)) for n in labels} if perturbed else {}
        by_fold = [fixed_weights(schedule.class_weights, y, classes) for y in labels.values()]
        fixed = [weights for weights in by_fold if weights is not None]
        self._weights = torch.cat(fixed) if fixed else None
        orders = [phase.order for phase in schedule.phases if phase.order is not None]
        wanted = labels if any(order.by == "reference" for order in orders) else ()
        self._reference = {n: reference(n) for n in wanted}

    def row_positions(
        self, fold: int, rows: int, planned: Planned, own_losses: Callable[[], RowLosses]
    ) -> Index:
        """The positions of the training rows that the epoch uses.

        `own_losses` returns the losses under the head being trained.
        """
        order = planned.phase.order
        if order is None:
            return np.arange(rows)
        if order.by == "random":
            losses = None
        else:
            losses = own_losses() if order.by == "self" else self._reference[fold]
        # The same order in all epochs, so that it is a control for a fixed ranking.
        key = (fold, 0, _RANDOM_ORDER)
        rng = np.random.default_rng(np.random.SeedSequence(self.schedule.seed, spawn_key=key))
        ranked = ranking(order, losses, rows, rng)
        return ranked[: rows_in_epoch(order, planned.in_phase, planned.phase.epochs, rows)]

    def perturbation(self, fold: int, planned: Planned) -> Perturbation | None:
        """The perturbation of the fold's minibatches in the epoch; None if there is none."""
        if not self._moments:
            return None
        key = (fold, planned.epoch, _PERTURBING)
        sequence = np.random.SeedSequence(self.schedule.seed, spawn_key=key)
        schedule = self.schedule
        return Perturbation(schedule.features, schedule.mixup, self._moments[fold], sequence)

    def weights(self, errors: torch.Tensor | None) -> torch.Tensor | None:
        """The weight of a row of each class, (M, C) or (1, C); None if all rows count the same.

        `errors` (M, C) are those of the last validation.
        """
        if self.schedule.class_weights == "errors":
            return None if errors is None else by_errors(errors)
        return self._weights

    def rate(
        self, planned: Planned, lr: float, decay: float, through: float, so_far: list[float]
    ) -> Rate:
        """The learning rate and weight decay of a network at one step.

        `lr` and `decay` are the network's own; the phase's settings override them. `through` is the
        share of the epoch's steps that are done, and `so_far` the network's validation losses.
        """
        return rate_at(
            self.schedule.lr_schedule, len(self.plan), planned, Rate(lr, decay), through, so_far
        )


def ranking(order: Order, losses: RowLosses | None, rows: int, rng: np.random.Generator) -> Index:
    """The positions of `rows` training rows, in the order in which a phase adds them.

    `losses` (rows,) are the losses to sort by; rows of equal loss keep their order. None means a
    random order, drawn from `rng`.
    """
    if losses is None:
        return rng.permutation(rows)
    return np.argsort(losses if order.first == "easy" else -losses, kind="stable")


def rows_in_epoch(order: Order, epoch: int, epochs: int, rows: int) -> int:
    """How many of the rows are used in `epoch` (from 1) of a phase of `epochs`.

    The share grows linearly from `order.start` in the first epoch to 1 in the last. At least 2
    rows are used, because batch norm needs them.
    """
    progress = (epoch - 1) / (epochs - 1) if epochs > 1 else 1.0
    share = order.start + (1 - order.start) * progress
    return min(rows, max(2, math.ceil(share * rows)))
