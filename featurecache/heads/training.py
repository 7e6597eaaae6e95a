"""Training heads on cached vectors: which networks are trained together, and what is kept of them.

The vectors lie in memory as tensors once, and a minibatch is an index into them. Heads are trained
in stacks: several small ones in the calls of one, a large one as a stack of itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.heads.epochs import Data, Fold, Job, Member
from featurecache.heads.logistic_training import train_logistic
from featurecache.heads.schedules import Schedule
from featurecache.heads.stack_training import Lost, train_group
from featurecache.heads.streams import Stream
from featurecache.heads.training_results import MetricsWriter, Trained, member_result
from featurecache.heads.training_set import TrainingSet, Vectors
from featurecache.heads.windows import Windowed
from featurecache.training.checkpoints import Checkpoint
from featurecache.training.epoch_metrics import METRICS_FILE, EpochRow

# A stack of this many float32 of weights and activations stays, with its gradients and moments, in
# the cache of a CPU; larger ones were slower than their members one after another.
_STACK_FLOATS = 1 << 21
_STACK_FLOATS_CUDA = 1 << 29


def train(
    training_set: TrainingSet,
    schedule: Schedule,
    run: Path,
    *,
    on_epoch: Callable[[EpochRow], None] | None = None,
    on_done: Callable[[Trained], None] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a head by `schedule`, one network per fold, and save it in the folder `run`.

    `on_epoch` is called with the row of each epoch as it is done, and at once with those resumed;
    `on_done` with the result, before the checkpoints are deleted that could give it again.
    `device` is auto (CUDA if there is one), cpu or cuda.

    A row holds fold, epoch (from 1, over all phases), phase (from 1), views, lr, train_loss,
    train_top1 (the means while the epoch ran), val_loss, val_top1, seconds (of a stack its share);
    losses are in nats. `run` gets `metrics.jsonl` (a row for every epoch and fold), the files of
    `Head.save`, and during the training a checkpoint per stack. A second call after a kill repeats
    what the last checkpoint lacks: the epoch that was under way, and what was done within a second,
    or within twenty times as long as a checkpoint takes to save.

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
        if on_done is not None:
            on_done(result)
        results.append(result)

    train_many(
        training_set,
        schedule,
        [alone],
        run,
        on_epoch=None if on_epoch is None else lambda _, row: on_epoch(row),
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
    on_epoch: Callable[[int, EpochRow], None] | None = None,
    on_done: Callable[[list[Trained | Lost]], None] | None = None,
    device: str = "auto",
) -> list[Trained | Lost]:
    """Train a head for each of `members`, in stacks, and return their results in that order.

    Arguments and errors are those of `train`, whose result each is but for the order of sums; but a
    member whose loss is no longer finite is Lost, and the others continue.
    `on_epoch` gets the member's index, from 0, before the row. Metrics and checkpoints are saved;
    saving the heads is up to the caller, in `on_done` if they are to outlive the checkpoints.
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
    at_once = _at_once(schedule, training_set.width(schedule), len(classes), torch_device)
    groups = _groups(jobs, schedule, data.window is not None, at_once)
    networks: dict[tuple[int, int], nn.Sequential | Lost] = {}
    checkpoints = []
    with MetricsWriter(run / METRICS_FILE, numbered=len(members) > 1) as metrics:

        def done(index: int, row: EpochRow) -> None:
            metrics.add(index, row)
            if on_epoch is not None:
                on_epoch(index, row)

        for number, group in enumerate(groups, 1):
            identity = training_set.group_identity(group, pairs, schedule, torch_device.type)
            checkpoint = Checkpoint(run / f"stack-{number}.checkpoint", identity)
            heads: list[nn.Sequential | Lost]
            if schedule.optimizer.name == "lbfgs":
                heads = [*train_logistic(data, group, schedule, classes, done)]
            else:
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
    if on_done is not None:
        on_done(trained)
    for checkpoint in checkpoints:
        checkpoint.path.unlink(missing_ok=True)  # lbfgs saves none
    return trained


def _at_once(schedule: Schedule, width: int, classes: int, device: torch.device) -> int:
    """How many networks to stack: as many as stay in fast memory."""
    widths = [width, *schedule.head.hidden, classes]
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    activations = schedule.batch_size * sum(widths[1:])
    floats = _STACK_FLOATS_CUDA if device.type == "cuda" else _STACK_FLOATS
    return max(1, floats // (weights + activations))


def _groups(
    jobs: Sequence[Job], schedule: Schedule, streamed: bool, at_once: int
) -> list[list[Job]]:
    """Jobs that are trained together: of one fold, or of one member on several folds.

    Of one fold those of equal rates are neighbours, since the optimizer takes them in one call.
    Input is fitted for each fold, a window holds rows of one, and a head that orders its rows by
    itself has an order of its own: the first two keep folds apart, and the other all networks.
    """
    if any(phase.order is not None and phase.order.by == "self" for phase in schedule.phases):
        at_once = 1
    if len({job.member_index for job in jobs}) == 1 and schedule.input is None and not streamed:
        together = [list(jobs)]
    else:
        together = [
            sorted(of_fold, key=lambda job: (job.member.lr, job.member.weight_decay))
            for _, of_fold in itertools.groupby(jobs, key=lambda job: job.fold.number)
        ]
    return [
        group[start : start + at_once]
        for group in together
        for start in range(0, len(group), at_once)
    ]


def device_of(name: str) -> torch.device:
    """The device that auto, cpu or cuda means here. Raises BadInput."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"unknown device {name!r}; there are: auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("device cuda: torch sees no CUDA device here; take cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def _tensor(vectors: Vectors, device: torch.device) -> torch.Tensor | Windowed:
    if isinstance(vectors, Stream):
        return Windowed(vectors, device)
    # Writable, since torch warns of memory maps and other arrays that are not.
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"])).to(device)
