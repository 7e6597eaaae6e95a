"""What each epoch of a training takes: which rows, changed how, counted how much, at what rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from featurecache.heads.perturb import Perturbation, spread
from featurecache.heads.schedules import Planned, Schedule
from featurecache.heads.settings import Order
from featurecache.heads.splits import Index
from featurecache.heads.stacks import Rate
from featurecache.training.losses import balanced, by_errors, named
from featurecache.training.lr_schedules import lr_factor

RowLosses = npt.NDArray[np.float64]

# Places in a SeedSequence's key; (fold, epoch) alone is the order of the rows, epoch 0 the initial
# weights, and DROPPING a network's dropout.
DROPPING, _PERTURBING, _RANDOM_ORDER = 1, 2, 3


class Curriculum:
    """A schedule on the training rows of some folds. All draws come from (seed, fold, epoch)."""

    def __init__(
        self,
        schedule: Schedule,
        classes: Sequence[str],
        labels: Mapping[int, torch.Tensor],
        rows: Callable[[int], torch.Tensor],
        reference: Callable[[int], RowLosses],
    ) -> None:
        """For the number of each fold `labels` (N,) of its training side, and, asked if needed, its
        vectors `rows` (N, D) and the losses `reference` (N,) of a head trained before.
        """
        self.schedule = schedule
        self.plan = schedule.plan()
        perturbed = schedule.features is not None or schedule.mixup is not None
        self._spread = {n: spread(rows(n)) for n in labels} if perturbed else {}
        self._weights = self._fixed_weights(classes, labels)
        orders = [phase.order for phase in schedule.phases if phase.order is not None]
        wanted = labels if any(order.by == "reference" for order in orders) else ()
        self._reference = {n: reference(n) for n in wanted}

    def row_positions(
        self, fold: int, rows: int, planned: Planned, own_losses: Callable[[], RowLosses]
    ) -> Index:
        """The positions of the training rows that the epoch takes. `own_losses` gives the losses
        under the head itself."""
        order = planned.phase.order
        if order is None:
            return np.arange(rows)
        if order.by == "random":
            of_losses = None
        else:
            of_losses = own_losses() if order.by == "self" else self._reference[fold]
        key = (fold, 0, _RANDOM_ORDER)  # one order for all epochs: the control of a fixed ranking
        rng = np.random.default_rng(np.random.SeedSequence(self.schedule.seed, spawn_key=key))
        ranked = ranking(order, of_losses, rows, rng)
        return ranked[: taken(order, planned.in_phase, planned.phase.epochs, rows)]

    def perturbation(self, fold: int, planned: Planned) -> Perturbation | None:
        """What changes the vectors of the fold's minibatches in the epoch; None: nothing does."""
        if not self._spread:
            return None
        key = (fold, planned.epoch, _PERTURBING)
        sequence = np.random.SeedSequence(self.schedule.seed, spawn_key=key)
        schedule = self.schedule
        return Perturbation(schedule.features, schedule.mixup, self._spread[fold], sequence)

    def weights(self, errors: torch.Tensor | None) -> torch.Tensor | None:
        """What rows of each class count, (M, C) or (1, C), after a validation with these errors
        (M, C); None: all the same."""
        if self.schedule.class_weights == "errors":
            return None if errors is None else by_errors(errors)
        return self._weights

    def rate(
        self, planned: Planned, lr: float, decay: float, through: float, so_far: list[float]
    ) -> Rate:
        """For a network with this rate and weight decay, when the share `through` of the epoch's
        steps is done; `so_far` are its validation losses. A phase's own values go before them."""
        optimizer = planned.phase.optimizer
        factor = lr_factor(
            self.schedule.lr_schedule,
            planned.epoch,
            len(self.plan),
            planned.in_phase,
            planned.phase.epochs,
            through,
            so_far,
        )
        return Rate(
            (lr if optimizer.lr is None else optimizer.lr) * factor,
            decay if optimizer.weight_decay is None else optimizer.weight_decay,
        )

    def _fixed_weights(
        self, classes: Sequence[str], labels: Mapping[int, torch.Tensor]
    ) -> torch.Tensor | None:
        wanted = self.schedule.class_weights
        where = next(iter(labels.values())).device
        if wanted == "balanced":
            by_fold = [balanced(of_fold, len(classes)) for of_fold in labels.values()]
            return torch.cat(by_fold).to(where)
        if isinstance(wanted, dict):
            return named(wanted, classes).to(where)
        return None


def ranking(order: Order, losses: RowLosses | None, rows: int, rng: np.random.Generator) -> Index:
    """The positions of `rows` training rows, in the order in which a phase adds them.

    `losses` (rows,) are those that `order` goes by; rows of equal loss keep their order. A random
    order needs none, and is drawn from `rng`.
    """
    if losses is None:
        return rng.permutation(rows)
    return np.argsort(losses if order.first == "easy" else -losses, kind="stable")


def taken(order: Order, epoch: int, epochs: int, rows: int) -> int:
    """How many of `rows` rows the `epoch` (from 1) of a phase of so many takes: the share `start`
    in the first, all in the last, and evenly more between; at least 2, for batch norm's sake."""
    over = (epoch - 1) / (epochs - 1) if epochs > 1 else 1.0
    share = order.start + (1 - order.start) * over
    return min(rows, max(2, math.ceil(share * rows)))
