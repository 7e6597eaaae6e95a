"""Learning-rate schedules: pure functions of the epoch and the validation losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from featurecache.training.curriculum import Planned
from featurecache.training.settings import LrSchedule, Rate


def lr_factor(
    schedule: LrSchedule | None,
    epoch: int,
    epochs: int,
    epoch_in_phase: int,
    epochs_in_phase: int,
    progress: float,
    losses: Sequence[float],
) -> float:
    """The factor of the learning rate when the share `progress` of the epoch's steps is done.

    `epoch` counts from 1 over all phases, `epoch_in_phase` from 1 within its phase. `losses` are
    the validation losses of the previous epochs.
    """
    if schedule is None or schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        if schedule.over == "phase":
            share = (epoch_in_phase - 1 + progress) / epochs_in_phase
        else:
            share = (epoch - 1 + progress) / epochs
        return (1 + math.cos(math.pi * share)) / 2
    factor = schedule.factor or 1.0
    if schedule.name == "step":
        return factor ** ((epoch - 1) // (schedule.every or 1))
    return factor ** plateaus(losses, schedule.patience or 1)


def rate_at(
    schedule: LrSchedule | None,
    epochs: int,
    planned: Planned,
    base: Rate,
    progress: float,
    losses: Sequence[float],
) -> Rate:
    """The learning rate and weight decay at one step, of a network whose own are `base`; the
    phase's settings override them. The other arguments are those of `lr_factor`."""
    optimizer = planned.phase.optimizer
    factor = lr_factor(
        schedule, planned.epoch, epochs, planned.in_phase, planned.phase.epochs, progress, losses
    )
    return Rate(
        (base.lr if optimizer.lr is None else optimizer.lr) * factor,
        base.weight_decay if optimizer.weight_decay is None else optimizer.weight_decay,
    )


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How many times `patience` consecutive epochs brought no loss below all earlier ones."""
    lowest, waited, count = math.inf, 0, 0
    for loss in losses:
        if loss < lowest:
            lowest, waited = loss, 0
            continue
        waited += 1
        if waited == patience:
            count, waited = count + 1, 0
    return count
