"""The results of a training: the metrics of its epochs, and its heads with their validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from featurecache.heads.head_networks import HeadNetworks
from featurecache.heads.schedules import Schedule
from featurecache.heads.stack_training import Lost
from featurecache.training.epoch_metrics import (
    EpochRow,
    ValidationMeans,
    results_of,
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One head that was trained.

    `rows` are the metrics of every fold and epoch. `best` and `last` are {epoch, top1, loss} of the
    validation, averaged over the folds. `best` is the epoch with the highest top1 (the earliest of
    equals). `last` is the epoch whose weights are in `head`, one network per fold: the last epoch,
    or with early stopping each fold's epoch of lowest loss, of which `epoch` is the latest.
    `saved_rows` are the rows of these weights, one per fold.
    """

    head: HeadNetworks
    rows: list[EpochRow]
    saved_rows: list[EpochRow]
    best: ValidationMeans
    last: ValidationMeans


def member_result(
    networks: Sequence[nn.Sequential | Lost],
    rows: list[EpochRow],
    schedule: Schedule,
    classes: Sequence[str],
) -> Trained | Lost:
    """The result of a member, from its networks, one per fold, and their rows. Lost if one of the
    networks is."""
    finite = []
    for network in networks:
        if isinstance(network, Lost):
            return network
        finite.append(network)
    results = results_of(rows, schedule.early_stopping is not None)
    return Trained(
        head=HeadNetworks(members=finite, classes=list(classes), spec=schedule.head.shape),
        rows=rows,
        **results._asdict(),
    )
