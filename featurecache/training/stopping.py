"""When to stop a training: pure functions of the losses so far."""

from __future__ import annotations

from collections.abc import Sequence


def lowest_index(losses: Sequence[float]) -> int:
    """The index of the lowest loss, the earliest of equals."""
    return min(range(len(losses)), key=lambda index: (losses[index], index))


def should_stop(losses: Sequence[float], patience: int) -> bool:
    """Did the last `patience` epochs bring no loss below all before them?"""
    return len(losses) - 1 - lowest_index(losses) >= patience if losses else False
