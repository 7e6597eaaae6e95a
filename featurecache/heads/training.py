"""Training of heads on cached vectors: which networks are trained together, and their results.

The vectors are in memory once, as tensors, and a minibatch is an index into them. Heads are trained
in stacks: several small heads in one stack, a large one in a stack by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.heads.closed_form_training import train_solved
from featurecache.heads.drawn import Drawn
from featurecache.heads.epochs import Data, Fold, Job, Member
from featurecache.heads.schedules import Schedule
from featurecache.heads.stack_training import Lost, train_group
from featurecache.heads.streams import Stream
from featurecache.heads.training_results import Trained, member_result
from featurecache.heads.training_set import TrainingSet, Vectors
from featurecache.heads.windows import Windowed
from featurecache.training.checkpoints import Checkpoint
from featurecache.training.devices import device_of, threads_for
from featurecache.training.epoch_metrics import METRICS_FILE, EpochRow
from featurecache.training.metrics_writer import MetricsWriter

# A stack with this many float32 of weights and activations fits, with its gradients and moments,
# into the cache of a CPU. Larger stacks were slower than training their members one by one.
_STACK_FLOATS = 1 << 21
_STACK_FLOATS_CUDA = 1 << 29


def train(
    training_set: TrainingSet,
    schedule: Schedule,
    run: Path,
    *,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    on_done: Callable[[Trained], None] = lambda trained: None,
    device: str = "auto",
) -> Trained:
    """Train a head by `schedule`, one network per fold, and save it in the folder `run`.

    `on_epoch` is called with the row of each epoch when it is done, and immediately with the rows
    of a resumed training. `on_done` is called with the result, before the checkpoints are deleted
    from which it could be restored. `device` is auto (CUDA if there is one), cpu or cuda.

    A row holds fold, epoch (from 1, over all phases), phase (from 1), views, lr, train_loss and
    train_top1 (means during the epoch), val_loss, val_top1, and seconds (for a stack, the network's
    share); losses are in nats. `run` gets `metrics.jsonl` (a row per epoch and fold), the files of
    `Head.save` and, during the training, a checkpoint per stack. After a kill, a second call
    repeats only what the last checkpoint lacks: the epoch in progress, and at most one second of
    work, or twenty times the time it takes to save a checkpoint.

    Raises BadInput for arrays, labels or classes that don't fit and for the checkpoint of another
    training, DamagedCache for an unreadable one, FeatureCacheError if the loss is no longer finite.
    """
    alone = Member(schedule.seed, schedule.optimizer.lr, schedule.optimizer.weight_decay)
    results: list[Trained] = []

    def finish(trained: list[Trained | Lost]) -> None:
        (result,) = trained
        if isinstance(result, Lost):
            raise FeatureCacheError(f"{result.reason}; lower optimizer.lr in the schedule")
        result.head.save(run)
        on_done(result)
        results.append(result)

    train_many(
        training_set,
        schedule,
        [alone],
        run,
        on_epoch=lambda _, row: on_epoch(row),
        on_done=finish,
        device=device,
    )
    return results[0]


def train_many(
    training_set: TrainingSet,
    schedule: Schedule,
    members: Sequence[Member],
    run: Path,
    *,
    on_epoch: Callable[[int, EpochRow], None] = lambda member_index, row: None,
    on_done: Callable[[list[Trained | Lost]], None] = lambda trained: None,
    device: str = "auto",
) -> list[Trained | Lost]:
    """Train a head for each of `members`, in stacks, and return their results in that order.

    Arguments, errors and each result are those of `train`, up to the order of sums. A member whose
    loss is no longer finite is returned as Lost, and the others continue. `on_epoch` gets the
    member's index, from 0, before the row. Metrics and checkpoints are saved; the caller saves the
    heads, in `on_done` to be sure that they exist before the checkpoints are deleted.
    """
    if not members:
        raise BadInput("a sweep needs at least one member")
    pairs = training_set.folds(schedule)
    classes = training_set.classes
    torch_device = device_of(device)
    run.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(training_set.labels, dtype=np.int64)
    data = Data(
        {view: _tensor(training_set.vectors[view], torch_device) for view in schedule.views()},
        torch.tensor(labels, device=torch_device),
    )
    folds = [
        Fold(number, *(torch.from_numpy(rows).to(torch_device) for rows in pair))
        for number, pair in enumerate(pairs, 1)
    ]
    jobs = [Job(index, member, fold) for fold in folds for index, member in enumerate(members)]
    width = training_set.width(schedule)
    products = schedule.batch_size * _weights(schedule, width, len(classes))  # per step
    at_once = _at_once(schedule, width, len(classes), torch_device)
    groups = _groups(jobs, schedule, data.window is not None, at_once)
    networks: dict[tuple[int, int], nn.Sequential | Lost] = {}
    checkpoints = []
    with MetricsWriter(run / METRICS_FILE, numbered=len(members) > 1) as metrics:

        def done(index: int, row: EpochRow) -> None:
            metrics.add(index, row)
            on_epoch(index, row)

        for number, group in enumerate(groups, 1):
            identity = training_set.group_identity(group, pairs, schedule, torch_device.type)
            checkpoint = Checkpoint(run / f"stack-{number}.checkpoint", identity)
            heads: list[nn.Sequential | Lost]
            if schedule.is_solved:
                heads = [*train_solved(data, group, schedule, training_set, done)]
            else:
                with threads_for(len(group) * products):
                    heads = train_group(data, group, schedule, classes, checkpoint, done)
            checkpoints.append(checkpoint)
            for job, head in zip(group, heads, strict=True):
                networks[job.member_index, job.fold.number] = head
            if len(members) == 1 and any(isinstance(head, Lost) for head in heads):
                break  # other folds can't help
    trained = [
        member_result(
            [networks[index, n] for n in range(1, len(folds) + 1) if (index, n) in networks],
            metrics.rows_of(index),
            schedule,
            classes,
        )
        for index in range(len(members))
    ]
    on_done(trained)
    for checkpoint in checkpoints:
        checkpoint.path.unlink(missing_ok=True)  # lbfgs saves none
    return trained


def _at_once(schedule: Schedule, width: int, classes: int, device: torch.device) -> int:
    """How many networks to stack: as many as stay in fast memory."""
    activations = schedule.batch_size * (sum(schedule.head.hidden) + classes)
    floats = _STACK_FLOATS_CUDA if device.type == "cuda" else _STACK_FLOATS
    return max(1, floats // (_weights(schedule, width, classes) + activations))


def _weights(schedule: Schedule, width: int, classes: int) -> int:
    """The number of weights of one network, without biases."""
    widths = [schedule.head.channels or width, *schedule.head.hidden, classes]
    queries = (schedule.head.queries or 0) * width
    return queries + sum(a * b for a, b in itertools.pairwise(widths))


def _groups(
    jobs: Sequence[Job], schedule: Schedule, streamed: bool, at_once: int
) -> list[list[Job]]:
    """Groups of jobs to train together: members on one fold, or one member on several folds.

    Within a fold, jobs are sorted by their rates, since the optimizer handles equal rates in one
    call. Folds are kept apart if input is fitted, because each fold fits its own, or if vectors are
    streamed, because a window holds rows of one fold. Networks that order rows by their own losses
    are all trained separately.
    """
    if any(phase.order is not None and phase.order.by == "self" for phase in schedule.phases):
        at_once = 1
    if len({job.member_index for job in jobs}) == 1 and schedule.input is None and not streamed:
        together = [list(jobs)]
    else:
        together = [
            sorted(fold_jobs, key=lambda job: (job.member.lr, job.member.weight_decay))
            for _, fold_jobs in itertools.groupby(jobs, key=lambda job: job.fold.number)
        ]
    return [
        group[start : start + at_once]
        for group in together
        for start in range(0, len(group), at_once)
    ]


def _tensor(vectors: Vectors, device: torch.device) -> torch.Tensor | Windowed | Drawn:
    if isinstance(vectors, Drawn):
        return vectors
    if isinstance(vectors, Stream):
        return Windowed(vectors, device)
    # Writable, since torch warns about memory maps and other read-only arrays.
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"])).to(device)
