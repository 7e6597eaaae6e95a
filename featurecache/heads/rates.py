"""Learning rates over a training, and when to end it: pure functions of the losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from featurecache.heads.schedules import Planned
from featurecache.heads.settings import LrSchedule


def lr_factor(
    schedule: LrSchedule | None,
    plan: Sequence[Planned],
    at: Planned,
    through: float,
    losses: Sequence[float],
) -> float:
    """What the learning rate is multiplied by in the epoch `at` of `plan`, when the share `through`
    of its steps is done; `losses` are the validation losses of the epochs before."""
    if schedule is None or schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        if schedule.over == "phase":
            done = (at.in_phase - 1 + through) / at.phase.epochs
        else:
            done = (at.epoch - 1 + through) / len(plan)
        return (1 + math.cos(math.pi * done)) / 2
    factor = schedule.factor or 1.0
    if schedule.name == "step":
        return factor ** ((at.epoch - 1) // (schedule.every or 1))
    return factor ** plateaus(losses, schedule.patience or 1)


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How often `patience` epochs in a row brought no loss below all before them."""
    lowest, waited, found = math.inf, 0, 0
    for loss in losses:
        if loss < lowest:
            lowest, waited = loss, 0
            continue
        waited += 1
        if waited == patience:
            found, waited = found + 1, 0
    return found


def lowest(losses: Sequence[float]) -> int:
    """The place of the lowest loss, of equals the earliest."""
    return min(range(len(losses)), key=lambda at: (losses[at], at))


def stopped(losses: Sequence[float], patience: int) -> bool:
    """Did the last `patience` epochs bring no loss below all before them?"""
    return len(losses) - 1 - lowest(losses) >= patience if losses else False
