"""Training of one stack of networks, from initial weights or a checkpoint to the final weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads import inputs
from featurecache.heads.curricula import Curriculum, RowLosses
from featurecache.heads.drawn import Array, Drawn
from featurecache.heads.epochs import (
    Data,
    Fold,
    Job,
    Member,
    distinct,
    one_epoch,
    row_losses,
    validate,
)
from featurecache.heads.head_networks import build
from featurecache.heads.schedules import Schedule
from featurecache.heads.settings import HeadSettings
from featurecache.heads.stacks import Stack, State
from featurecache.heads.windows import Windowed
from featurecache.json_files import fit
from featurecache.text import one_line
from featurecache.training.checkpoints import Checkpoint
from featurecache.training.curriculum import Phase
from featurecache.training.devices import torch_seeded
from featurecache.training.epoch_metrics import Epoch, EpochRow
from featurecache.training.minibatches import epoch_rng
from featurecache.training.stopping import lowest_index, should_stop

_REFERENCE_EPOCHS = 5  # of the reference head whose losses order the rows


@dataclass(frozen=True)
class Lost:
    """A network whose loss is no longer finite; `reason` says where."""

    reason: str


@dataclass
class _Record:
    """The state of a group's training besides its stack. All of it is saved in the checkpoint."""

    rows: list[list[EpochRow]]  # of each network, one per epoch
    lost: dict[int, str]  # networks whose loss is no longer finite, and the reason to report
    best_states: dict[int, State]  # weights of the best epoch so far, with early stopping
    errors: torch.Tensor | None = None  # (M, C), of the last validation

    def state_dict(self) -> dict[str, Any]:
        """The fields by their names in a checkpoint."""
        state = dict(vars(self))
        return {"kept": state.pop("best_states"), **state}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _Record:
        """The record that `state_dict` described. Raises KeyError or TypeError for other fields."""
        fields = dict(state)
        return cls(best_states=fields.pop("kept"), **fields)

    def so_far(self) -> list[list[float]]:
        """The validation losses of each network."""
        return [[row["val_loss"] for row in rows] for rows in self.rows]


def train_group(
    data: Data,
    group: Sequence[Job],
    schedule: Schedule,
    classes: Sequence[str],
    checkpoint: Checkpoint,
    done: Callable[[int, EpochRow], None],
) -> list[nn.Sequential | Lost]:
    """Train the networks of a group as one stack, and return them as modules that take the vectors
    of `data`.

    A network whose loss is no longer finite is returned as Lost. The others continue, unless they
    are other folds of the same member.
    """
    fitted = None
    if schedule.input is not None:
        (fold,) = distinct(group)  # fitted on the training rows of this fold
        fitted = inputs.fit(schedule.input, _training_rows(data, fold, schedule))
        data = Data(_after(fitted, data.views), data.labels)
    width = data.views[schedule.validation.view].shape[1]
    stack = _fresh(group, schedule, width, len(classes), data)
    record = _load_record(checkpoint, stack, group)
    epochs_done = max(len(rows) for rows in record.rows)
    for epoch in range(epochs_done):
        for job, rows in zip(group, record.rows, strict=True):
            if epoch < len(rows):
                done(job.member_index, rows[epoch])

    curriculum = _curriculum(data, distinct(group), schedule, classes)
    for planned in curriculum.plan[epochs_done:]:
        running = _running(record, group, schedule)
        if not running:
            break
        if (
            schedule.pruning is not None
            and planned.number > len(schedule.phases)
            and planned.in_phase == 1
        ):
            stack.prune(schedule.pruning.share)
        began = time.perf_counter()
        so_far = record.so_far()
        trained = one_epoch(stack, data, group, curriculum, planned, so_far, record.errors)
        view = schedule.validation.view
        validated, record.errors = validate(stack, data, group, view, len(classes))
        seconds = (time.perf_counter() - began) / len(running)
        for network in running:
            job, member = group[network], group[network].member
            rate = curriculum.rate(planned, member.lr, member.weight_decay, 0.0, so_far[network])
            row: EpochRow = {
                "fold": job.fold.number,
                "epoch": planned.epoch,
                "phase": planned.number,
                "views": planned.phase.shares(planned.in_phase),
                "lr": rate.lr,
                "train_loss": trained[network][0],
                "train_top1": trained[network][1],
                "val_loss": validated[network][0],
                "val_top1": validated[network][1],
                "seconds": seconds,
            }
            if not (np.isfinite(row["train_loss"]) and np.isfinite(row["val_loss"])):
                record.lost[network] = _no_longer_finite(job, row)
                continue
            record.rows[network].append(row)
            if schedule.early_stopping is not None:
                losses = [*so_far[network], row["val_loss"]]
                if lowest_index(losses) == len(losses) - 1:
                    record.best_states[network] = stack.snapshot(network)
        ended = planned is curriculum.plan[-1] or not _running(record, group, schedule)
        if checkpoint.due() or ended:
            checkpoint.save({"stack": stack.state_dict(), "record": record.state_dict()})
        for network in running:
            if network not in record.lost:
                done(group[network].member_index, record.rows[network][-1])
    return _finite_heads(record, stack, width, len(classes), fitted)


def _load_record(checkpoint: Checkpoint, stack: Stack, group: Sequence[Job]) -> _Record:
    """Load the checkpoint into the stack and return its record; without a checkpoint, an empty one.

    Raises DamagedRun for a state that this training did not write.
    """
    state = checkpoint.load()
    if state is None:
        return _Record([[] for _ in group], {}, {})
    try:
        return _resumed(state, stack, group)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"not the state of this training ({one_line(error)})"
        raise checkpoint.damaged(checkpoint.path, what) from error


def _finite_heads(
    record: _Record, stack: Stack, width: int, classes: int, fitted: inputs.Fitted | None
) -> list[nn.Sequential | Lost]:
    """The networks of a trained stack, with `fitted` folded into them; Lost for those whose loss is
    no longer finite."""
    for network, state in record.best_states.items():
        stack.restore(network, state)
    heads = [stack.head(network, width, classes) for network in range(len(record.rows))]
    if fitted is not None:
        heads = [fitted.within(head) for head in heads]
    return [
        Lost(record.lost[network]) if network in record.lost else head
        for network, head in enumerate(heads)
    ]


def _resumed(state: dict[str, Any], stack: Stack, group: Sequence[Job]) -> _Record:
    """Load the state of a checkpoint into the stack and return its record. Raises ValueError,
    KeyError and the like for a state that no training writes."""
    stack.load_state_dict(state["stack"])
    record = _Record.from_state(state["record"])
    for job, rows in zip(group, record.rows, strict=True):
        for epoch, row in enumerate(rows, 1):
            if (job.fold.number, epoch) != (row["fold"], fit(Epoch, row).epoch):
                raise ValueError("rows of other epochs")
    for network, saved in record.best_states.items():
        stack.check(saved, stack.snapshot(network))
    if not all(network in range(len(group)) for network in record.lost):
        raise ValueError("a network that is not of the group")
    if not isinstance(record.errors, torch.Tensor | None):
        raise TypeError("errors are not a tensor")
    return record


def _running(record: _Record, group: Sequence[Job], schedule: Schedule) -> list[int]:
    """The indexes of the networks still in training: not lost, not stopped early, and not a fold of
    a member that has lost another fold."""
    if record.lost and len({job.member_index for job in group}) == 1:
        return []
    patience = None if schedule.early_stopping is None else schedule.early_stopping.patience
    return [
        network
        for network, losses in enumerate(record.so_far())
        if network not in record.lost and not (patience and should_stop(losses, patience))
    ]


def _no_longer_finite(job: Job, row: EpochRow) -> str:
    return (
        f"fold {row['fold']}, epoch {row['epoch']}: the loss is no longer finite at lr "
        f"{row['lr']:g} (seed {job.member.seed}, weight_decay {job.member.weight_decay:g})"
    )


def _fresh(group: Sequence[Job], schedule: Schedule, width: int, classes: int, data: Data) -> Stack:
    fresh = []
    for job in group:
        # Epochs count from 1, so epoch 0 is free to seed the initial weights.
        with torch_seeded(epoch_rng(job.member.seed, job.fold.number, 0)):
            fresh.append(build(width, classes, schedule.head))
    is_half = schedule.precision == "bf16"
    where = data.labels.device
    return Stack(fresh, schedule.head, schedule.optimizer, where, is_half=is_half)


def _after(
    fitted: inputs.Fitted, views: Mapping[str, torch.Tensor | Windowed | Drawn]
) -> dict[str, torch.Tensor | Windowed | Drawn]:
    """The vectors of views that are in memory, after a fitted map."""

    def applied(x: Array) -> Array:
        result: Array = fitted(torch.from_numpy(x).to(fitted.mean.device)).cpu().numpy()
        return result

    changed: dict[str, torch.Tensor | Windowed | Drawn] = {}
    for name, vectors in views.items():
        if isinstance(vectors, torch.Tensor):
            changed[name] = fitted(vectors)
        elif isinstance(vectors, Drawn):
            changed[name] = vectors.changed(applied, fitted.width)
    return changed


def _training_rows(data: Data, fold: Fold, schedule: Schedule) -> torch.Tensor:
    """The training vectors (N, D) of the validation view, which every schedule has."""
    if data.window is not None:
        raise BadInput(
            "`input`, `features` and `mixup` need all training vectors in memory; give a larger "
            "--memory, or omit it"
        )
    return data.draw(schedule.validation.view, fold.number)[fold.train_rows]


def _curriculum(
    data: Data, folds: Sequence[Fold], schedule: Schedule, classes: Sequence[str]
) -> Curriculum:
    by_number = {fold.number: fold for fold in folds}

    def reference(number: int) -> RowLosses:
        return _reference_losses(data, by_number[number], schedule, classes)

    return Curriculum(
        schedule,
        classes,
        {fold.number: data.labels[fold.train_rows] for fold in folds},
        lambda number: _training_rows(data, by_number[number], schedule),
        reference,
    )


def _reference_losses(
    data: Data, fold: Fold, schedule: Schedule, classes: Sequence[str]
) -> RowLosses:
    """The losses of the fold's training rows, in the validation view, under a linear head trained
    on them for a few epochs."""
    view = schedule.validation.view
    plain = Schedule(
        backbone=schedule.backbone,
        head=HeadSettings(hidden=[]),
        batch_size=schedule.batch_size,
        seed=schedule.seed,
        validation=schedule.validation,
        phases=[Phase(views={view: 1.0}, epochs=_REFERENCE_EPOCHS)],
    )
    member = Member(plain.seed, plain.optimizer.lr, plain.optimizer.weight_decay)
    group = [Job(0, member, fold)]
    width = data.views[view].shape[1]
    stack = _fresh(group, plain, width, len(classes), data)
    curriculum = _curriculum(data, [fold], plain, classes)
    for planned in curriculum.plan:
        one_epoch(stack, data, group, curriculum, planned, [[]])
    return row_losses(stack, data, fold.train_rows, view)
