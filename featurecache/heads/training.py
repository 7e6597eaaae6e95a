"""Training heads on cached vectors: which networks are trained together, and what is kept of them.

The vectors lie in memory as tensors once, and a minibatch is an index into them. Heads are trained
in stacks: several small ones in the calls of one, a large one as a stack of itself.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError
from featurecache.heads import mlp
from featurecache.heads.epochs import Data, Fold, Job, Member, Row, distinct
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import Index, Items, Labels, check_rows, checked_pairs, split_items
from featurecache.heads.stack_training import Lost, train_group
from featurecache.heads.streams import Stream
from featurecache.heads.windows import Windowed
from featurecache.storage import durable
from featurecache.training.checkpoints import Checkpoint, Timer
from featurecache.training.epoch_metrics import METRICS_FILE

Vectors = npt.NDArray[np.float32] | Stream  # (N, D)

# A stack of this many float32 of weights and activations stays, with its gradients and moments, in
# the cache of a CPU; larger ones were slower than their members one after another.
_STACK_FLOATS = 1 << 21
_STACK_FLOATS_CUDA = 1 << 29
_ROWS = 1 << 16  # that are checked at a time


@dataclass(frozen=True)
class Trained:
    """One head that was trained.

    `rows` are the metrics of every fold and epoch; `best` and `last` are {epoch, top1, loss} of
    the validation, means over the folds: the epoch of the highest top1 (the earliest of equals),
    and that of the weights of `head`, one network a fold. That is the last epoch, or with
    early stopping for each fold the one of the lowest loss; then `epoch` is the latest of them.
    `saved_rows` are the rows of those weights, one per fold.
    """

    head: mlp.Head
    rows: list[Row]
    saved_rows: list[Row]
    best: keys.Json
    last: keys.Json


def train(
    vectors: Mapping[str, Vectors],
    labels: Labels,
    items: Items,
    schedule: Schedule,
    classes: Sequence[str],
    run: Path,
    *,
    identity: str,
    pairs: Sequence[tuple[Index, Index]] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    on_done: Callable[[Trained], None] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a head by `schedule`, one network a fold, and save it in the folder `run`.

    `vectors` maps every name of `schedule.views()` to an array (N, D), `labels` (N,) are in
    0..C-1 for the C `classes`, `items` is (N, 32); row i of all of them is one image. `pairs` are
    (train, validation) row numbers for `validation: {split: ...}`, else `split_items` makes them;
    training rows whose item is also a validation item are dropped in any case (law 8).
    `identity` says what the vectors are (their space keys, say), since they are not hashed here.
    `on_epoch` is called with the row of each epoch as it is done, and at once with those resumed;
    `on_done` with the result, before the checkpoints are deleted that could give it again.
    Vectors may be a Stream, which is gone through in windows (streams.py): in another order, so
    `identity` must say the window too.
    `device` is auto (CUDA where there is one), cpu or cuda.

    A row holds fold, epoch (from 1, over all phases), phase (from 1), views, lr, train_loss,
    train_top1 (the means while the epoch ran), val_loss, val_top1, seconds (of a stack its share);
    losses are in nats. `run` gets `metrics.jsonl` (a row for every epoch and fold, replaced as a
    whole about every second and at the end), the files of `Head.save`, and while training a
    checkpoint a stack. A second call after a kill does again what the last checkpoint lacks: the
    epoch that was under way, and what came in a second, or in twenty times what it takes to save.

    Raises BadInput for arrays, labels or classes that don't fit and for the checkpoint of another
    training, DamagedCache for an unreadable one, FeatureCacheError where the loss is no longer
    finite.
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

    _train_all(
        vectors,
        labels,
        items,
        schedule,
        classes,
        [alone],
        run,
        identity=identity,
        pairs=pairs,
        note=lambda index, row: on_epoch(row) if on_epoch is not None else None,
        finish=finish,
        device=device,
    )
    return results[0]


def train_many(
    vectors: Mapping[str, Vectors],
    labels: Labels,
    items: Items,
    schedule: Schedule,
    classes: Sequence[str],
    members: Sequence[Member],
    run: Path,
    *,
    identity: str,
    pairs: Sequence[tuple[Index, Index]] | None = None,
    on_epoch: Callable[[int, Row], None] | None = None,
    on_done: Callable[[list[Trained | Lost]], None] | None = None,
    device: str = "auto",
) -> list[Trained | Lost]:
    """Train a head for each of `members`, in stacks; gives their results in that order.

    Arguments and errors are those of `train`, whose result each is but for the order of sums; but a
    member whose loss is no longer finite is Lost, and the others go on.
    `on_epoch` gets the member's index, from 0, before the row. Saved are metrics and checkpoints;
    the heads are the caller's to save, in `on_done` if they are to outlive the checkpoints.
    """
    if not members:
        raise BadInput("a sweep needs at least one member")
    return _train_all(
        vectors,
        labels,
        items,
        schedule,
        classes,
        members,
        run,
        identity=identity,
        pairs=pairs,
        note=on_epoch or (lambda index, row: None),
        finish=on_done or (lambda trained: None),
        device=device,
    )


def _train_all(
    vectors: Mapping[str, Vectors],
    labels: Labels,
    items: Items,
    schedule: Schedule,
    classes: Sequence[str],
    members: Sequence[Member],
    run: Path,
    *,
    identity: str,
    pairs: Sequence[tuple[Index, Index]] | None,
    note: Callable[[int, Row], None],
    finish: Callable[[list[Trained | Lost]], None],
    device: str,
) -> list[Trained | Lost]:
    check_rows(items, labels, classes)
    _check_vectors(vectors, len(labels), schedule)
    if pairs is None:
        pairs = split_items(items, labels, schedule, classes)
    pairs = checked_pairs(pairs, items, labels, schedule, classes)
    for train_rows, _ in pairs:
        schedule.check_fits(classes, len(train_rows), vectors[schedule.validation.view].shape[1])
    where = device_of(device)
    run.mkdir(parents=True, exist_ok=True)
    data = Data(
        {view: _tensor(vectors[view], where) for view in schedule.views()},
        torch.tensor(np.asarray(labels, dtype=np.int64), device=where),
    )
    folds = [
        Fold(n, torch.from_numpy(train_rows).to(where), torch.from_numpy(val_rows).to(where))
        for n, (train_rows, val_rows) in enumerate(pairs, 1)
    ]
    jobs = [Job(index, member, fold) for fold in folds for index, member in enumerate(members)]
    width = vectors[schedule.validation.view].shape[1]
    groups = _groups(
        jobs, schedule, data.window is not None, _at_once(schedule, width, len(classes), where)
    )
    networks: dict[tuple[int, int], nn.Sequential | Lost] = {}
    checkpoints = []
    with _Metrics(run / METRICS_FILE, len(members) > 1) as metrics:

        def done(index: int, row: Row) -> None:
            metrics.add(index, row)
            note(index, row)

        for number, group in enumerate(groups, 1):
            group_identity = _identity(
                identity, schedule, classes, labels, items, pairs, group, where
            )
            checkpoint = Checkpoint(run / f"stack-{number}.checkpoint", group_identity)
            heads = train_group(data, group, schedule, classes, checkpoint, done)
            checkpoints.append(checkpoint)
            for job, head in zip(group, heads, strict=True):
                networks[job.member_index, job.fold.number] = head
            if len(members) == 1 and any(isinstance(head, Lost) for head in heads):
                break  # other folds can't help
    trained = [
        _trained(
            [networks[index, n] for n in range(1, len(folds) + 1) if (index, n) in networks],
            metrics.rows_of(index),
            schedule,
            classes,
        )
        for index in range(len(members))
    ]
    finish(trained)
    for checkpoint in checkpoints:
        checkpoint.path.unlink()
    return trained


class _Metrics:
    """The rows of all members, in their order whatever order they came in, and their file."""

    def __init__(self, path: Path, numbered: bool) -> None:
        self._path, self._numbered = path, numbered
        self._rows: dict[tuple[int, int, int], Row] = {}
        self._timer = Timer()

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def add(self, index: int, row: Row) -> None:
        self._rows[index, row["fold"], row["epoch"]] = row
        if self._timer.due():
            self._write()

    def rows_of(self, index: int) -> list[Row]:
        return [row for (member, _, _), row in sorted(self._rows.items()) if member == index]

    def _write(self) -> None:
        began = time.monotonic()
        lines = [
            keys.canonical({"member": key[0] + 1, **row} if self._numbered else row)
            for key, row in sorted(self._rows.items())
        ]
        durable.replace(self._path, b"".join(line + b"\n" for line in lines))
        self._timer.done(began)


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


def _check_vectors(vectors: Mapping[str, Vectors], rows: int, schedule: Schedule) -> None:
    for view in schedule.views():
        if view not in vectors:
            raise BadInput(f"the schedule names the view {view!r}, and there are no vectors of it")
        array = vectors[view]
        if array.ndim != 2 or len(array) != rows or array.shape[1] == 0:
            raise BadInput(f"view {view!r}: expected vectors ({rows}, D), not {array.shape}")
        if array.shape != vectors[schedule.views()[0]].shape:
            raise BadInput(f"view {view!r}: its vectors are of another width than the first view's")
        parts = (array[start : start + _ROWS] for start in range(0, rows, _ROWS))
        if not all(np.isfinite(part).all() for part in parts):
            raise BadInput(f"view {view!r}: the vectors hold NaN or infinity")


def _identity(
    vectors: str,
    schedule: Schedule,
    classes: Sequence[str],
    labels: Labels,
    items: Items,
    pairs: Sequence[tuple[Index, Index]],
    group: Sequence[Job],
    device: torch.device,
) -> str:
    """Everything that decides the numbers of a group."""
    rows = hashlib.sha256()
    for fold in distinct(group):
        for side in pairs[fold.number - 1]:
            for array in (labels[side], items[side]):
                rows.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return keys.digest(
        {
            "vectors": vectors,
            "schedule": schedule.model_dump(mode="json"),
            "classes": list(classes),
            "rows": rows.hexdigest(),
            "networks": [[job.fold.number, asdict(job.member)] for job in group],
            "device": device.type,
        }
    )


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


def _trained(
    networks: Sequence[nn.Sequential | Lost],
    rows: list[Row],
    schedule: Schedule,
    classes: Sequence[str],
) -> Trained | Lost:
    """What became of a member: its networks, one a fold, and their rows."""
    finite = []
    for network in networks:
        if isinstance(network, Lost):
            return network
        finite.append(network)
    saved_rows, best = _summary(rows, schedule.early_stopping is not None)
    last = _mean(max(row["epoch"] for row in saved_rows), saved_rows)
    return Trained(mlp.Head(finite, list(classes), schedule.head), rows, saved_rows, best, last)


def _summary(rows: Sequence[Row], early: bool) -> tuple[list[Row], keys.Json]:
    """`saved_rows` and `best` of Trained. A fold that ended early counts with its saved row in the
    epochs that it did not reach."""
    folds = [[row for row in rows if row["fold"] == n] for n in sorted({r["fold"] for r in rows})]
    saved_rows = [
        min(of_fold, key=lambda row: (row["val_loss"], row["epoch"])) if early else of_fold[-1]
        for of_fold in folds
    ]
    means = []
    for epoch in range(1, max(len(of_fold) for of_fold in folds) + 1):
        epoch_rows = [
            of_fold[epoch - 1] if epoch <= len(of_fold) else saved
            for of_fold, saved in zip(folds, saved_rows, strict=True)
        ]
        means.append(_mean(epoch, epoch_rows))
    return saved_rows, max(means, key=lambda mean: (mean["top1"], -mean["epoch"]))


def _mean(epoch: int, rows: Sequence[Row]) -> keys.Json:
    """Validation {epoch, top1, loss}: means over the folds."""
    return {
        "epoch": epoch,
        "top1": sum(row["val_top1"] for row in rows) / len(rows),
        "loss": sum(row["val_loss"] for row in rows) / len(rows),
    }
