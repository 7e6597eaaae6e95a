"""The epochs of a stack of networks on cached vectors: order, mixture, steps, validation.

Every random number of an epoch (order, mixture, dropout) comes from (seed, fold, epoch) alone, so a
training that was killed and started again gives the numbers of one that never was, on the same kind
of machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featurecache import records
from featurecache.errors import FeatureCacheError
from featurecache.heads import mlp
from featurecache.heads.checkpoints import Checkpoint
from featurecache.heads.schedules import Phase, Schedule
from featurecache.heads.splits import Index
from featurecache.heads.stacks import Rate, Stack, scores

Row = records.Json  # metrics of one epoch of one network

_ROWS_AT_ONCE = 1 << 22  # in validation: rows x width x members


@dataclass(frozen=True)
class Member:
    """What a head of a sweep has of its own. `seed` is of initial weights and dropout; the order of
    the rows, mixtures and splits are drawn from the schedule's seed, the same for all members.
    A phase that sets lr or weight_decay sets it for every member."""

    seed: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Fold:
    number: int  # from 1
    kept: torch.Tensor  # row numbers, int64, on the device
    held: torch.Tensor


@dataclass(frozen=True)
class Job:
    """One network: a member on a fold. `place` is the member's, from 0."""

    place: int
    member: Member
    fold: Fold


@dataclass(frozen=True)
class Data:
    """The rows of all views and folds, on the device."""

    views: Mapping[str, torch.Tensor]  # (N, D) each
    labels: torch.Tensor  # (N,)


def train_stack(
    data: Data,
    group: Sequence[Job],
    schedule: Schedule,
    classes: int,
    checkpoint: Checkpoint,
    done: Callable[[int, Row], None],
) -> Stack:
    """Train the networks of a group together, from the checkpoint if there is one."""
    where = data.labels.device
    width = data.views[schedule.validation.view].shape[1]
    fresh = []
    for job in group:
        # Epochs count from 1, which leaves epoch 0 for the seed of the initial weights.
        with _torch_seeded(epoch_rng(job.member.seed, job.fold.number, 0)):
            fresh.append(mlp.build(width, classes, schedule.head))
    stack = Stack(fresh, schedule.head, schedule.optimizer, where)
    parts = [stack.part(at) for at in range(len(group))]
    rows: list[list[Row]] = []  # of each epoch, of each network
    resumed = checkpoint.load()
    if resumed is not None:
        stack.load_state_dict(resumed["stack"])
        rows = resumed["rows"]
    for of_epoch in rows:
        for job, row in zip(group, of_epoch, strict=True):
            done(job.place, row)

    plan = [(number, p) for number, p in enumerate(schedule.phases, 1) for _ in range(p.epochs)]
    for epoch, (number, phase) in list(enumerate(plan, 1))[len(rows) :]:
        began = time.perf_counter()
        rates = [_rate(phase, job.member) for job in group]
        trained = one_epoch(stack, parts, data, group, phase, schedule, epoch, rates)
        validated = validate(stack, parts, data, group, schedule.validation.view)
        seconds = (time.perf_counter() - began) / len(group)
        of_epoch = [
            {
                "fold": job.fold.number,
                "epoch": epoch,
                "phase": number,
                "views": dict(phase.views),
                "lr": rate.lr,
                "train_loss": train_loss,
                "train_top1": train_top1,
                "val_loss": val_loss,
                "val_top1": val_top1,
                "seconds": seconds,
            }
            for job, rate, (train_loss, train_top1), (val_loss, val_top1) in zip(
                group, rates, trained, validated, strict=True
            )
        ]
        _check_finite(group, of_epoch, rates)
        rows.append(of_epoch)
        if checkpoint.due() or epoch == len(plan):
            checkpoint.save({"stack": stack.state_dict(), "rows": rows})
        for job, row in zip(group, of_epoch, strict=True):
            done(job.place, row)
    return stack


def one_epoch(
    stack: Stack,
    parts: Sequence[Stack],
    data: Data,
    group: Sequence[Job],
    phase: Phase,
    schedule: Schedule,
    epoch: int,
    rates: Sequence[Rate],
) -> list[tuple[float, float]]:
    """Train one epoch in place; gives each network's mean loss and top1 over its rows as they were
    trained. Networks on several folds see rows of their own, in minibatches of their own sizes."""
    where = data.labels.device
    shown = [data.views[view] for view in phase.views]
    orders: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []
    for fold in distinct(group):
        rng = epoch_rng(schedule.seed, fold.number, epoch)
        order = torch.from_numpy(rng.permutation(len(fold.kept))).to(where)
        orders.append(fold.kept[order])
        if len(shown) > 1:
            places = torch.from_numpy(mixture(phase.views, len(order), rng)).to(where)
            drawn.append(places[order])
    dropping = [_dropping(job, epoch, where) for job in group]
    # Summed on the device: asking for a number at every step would wait for every step.
    loss = torch.zeros(len(group), dtype=torch.float64, device=where)
    right = torch.zeros(len(group), dtype=torch.int64, device=where)
    cuts = [batches(len(order), schedule.batch_size) for order in orders]
    for spans in itertools.zip_longest(*cuts, fillvalue=(0, 0)):
        picked = [order[a:b] for order, (a, b) in zip(orders, spans, strict=True)]
        views = [places[a:b] for places, (a, b) in zip(drawn, spans, strict=False)]
        if len(orders) == 1:
            x, target = gather(shown, picked[0], *views), data.labels[picked[0]]
            sums = stack.step(x, target, rates, dropping)
            loss += sums[0]
            right += sums[1]
        elif len({len(rows) for rows in picked}) == 1:
            rows = torch.cat(picked)
            x = gather(shown, rows, *([torch.cat(views)] if views else []))
            shape = (len(group), len(picked[0]))
            sums = stack.step(x.view(*shape, -1), data.labels[rows].view(shape), rates, dropping)
            loss += sums[0]
            right += sums[1]
        else:
            for at, rows in enumerate(picked):
                if len(rows) == 0:
                    continue
                x, target = gather(shown, rows, *views[at : at + 1]), data.labels[rows]
                sums = parts[at].step(x, target, [rates[at]], [dropping[at]])
                loss[at] += sums[0][0]
                right[at] += sums[1][0]
    counts = [len(job.fold.kept) for job in group]
    return [
        (total / count, hits / count)
        for total, hits, count in zip(loss.tolist(), right.tolist(), counts, strict=True)
    ]


def validate(
    stack: Stack, parts: Sequence[Stack], data: Data, group: Sequence[Job], view: str
) -> list[tuple[float, float]]:
    """Each network's mean loss and top1 over its validation rows."""
    if len(distinct(group)) > 1:
        return [
            result
            for part, job in zip(parts, group, strict=True)
            for result in validate(part, [part], data, [job], view)
        ]
    held = group[0].fold.held
    widest = max(tensor.shape[1] for tensor in stack.state.values() if tensor.dim() > 1)
    at_once = max(64, _ROWS_AT_ONCE // (widest * len(stack)))
    loss = torch.zeros(len(stack), dtype=torch.float64, device=held.device)
    right = torch.zeros(len(stack), dtype=torch.int64, device=held.device)
    with torch.inference_mode():
        for rows in torch.split(held, at_once):
            of_rows = scores(stack.logits(data.views[view][rows]), data.labels[rows])
            loss += of_rows[0]
            right += of_rows[1]
    return [
        (total / len(held), hits / len(held))
        for total, hits in zip(loss.tolist(), right.tolist(), strict=True)
    ]


def mixture(shares: Mapping[str, float], rows: int, rng: np.random.Generator) -> Index:
    """For each of `rows` rows the place in `shares` of the view drawn for it, (rows,) int64."""
    weights = np.array(list(shares.values()), dtype=np.float64)
    return rng.choice(len(weights), size=rows, p=weights / weights.sum())


def batches(rows: int, size: int) -> list[tuple[int, int]]:
    """Starts and stops of minibatches; one row left over joins the last, for batch norm's sake."""
    starts = list(range(0, rows, size))
    if size > 1 and len(starts) > 1 and rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True))


def gather(
    views: Sequence[torch.Tensor], rows: torch.Tensor, drawn: torch.Tensor | None = None
) -> torch.Tensor:
    """Vectors (B, D): each of `rows` from the view whose place was drawn for it."""
    result = views[0].index_select(0, rows)
    if drawn is not None:
        for place, vectors in enumerate(views[1:], 1):
            # No list of the rows that were drawn: a GPU would be waited for until it is there.
            result = torch.where((drawn == place)[:, None], vectors.index_select(0, rows), result)
    return result


def distinct(group: Sequence[Job]) -> list[Fold]:
    """The folds of a group in order: one, or one for each network."""
    return list({job.fold.number: job.fold for job in group}.values())


def _rate(phase: Phase, member: Member) -> Rate:
    """What the phase overrides, and the member's values for the rest."""
    own = phase.optimizer
    return Rate(
        member.lr if own.lr is None else own.lr,
        member.weight_decay if own.weight_decay is None else own.weight_decay,
    )


def epoch_rng(seed: int, fold: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(fold, epoch)))


def _dropping(job: Job, epoch: int, device: torch.device) -> torch.Generator:
    """What draws a network's dropout in an epoch."""
    key = (job.fold.number, epoch, 1)
    seed = np.random.SeedSequence(job.member.seed, spawn_key=key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) >> 1)


@contextlib.contextmanager
def _torch_seeded(rng: np.random.Generator) -> Iterator[None]:
    """torch's global CPU generator seeded from `rng` (initial weights take no other), then put
    back. Not torch.manual_seed: that one seeds every CUDA device too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield


def _check_finite(group: Sequence[Job], rows: Sequence[Row], rates: Sequence[Rate]) -> None:
    lost = [
        f"fold {job.fold.number}, epoch {row['epoch']}: the loss is no longer finite at lr "
        f"{rate.lr:g} (seed {job.member.seed}, weight_decay {rate.weight_decay:g})"
        for job, row, rate in zip(group, rows, rates, strict=True)
        if not (np.isfinite(row["train_loss"]) and np.isfinite(row["val_loss"]))
    ]
    if lost:
        raise FeatureCacheError(f"{'; '.join(lost)}; lower optimizer.lr in the schedule")
