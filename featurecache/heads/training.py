"""Training heads on cached vectors: splits on items, phases over views, resumable to the bit.

The vectors of a fold lie in memory as tensors and a minibatch is an index into them. Every random
number of an epoch (order, mixture, dropout) comes from (seed, fold, epoch) alone, so a training
that was killed and started again gives the numbers of one that never was, on the same kind of
machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featurecache import durable, records
from featurecache.errors import BadInput, DamagedCache, FeatureCacheError
from featurecache.heads import mlp
from featurecache.heads.schedules import Optimizer, Phase, Schedule
from featurecache.heads.splits import Index, Items, Labels, check_rows, drop_shared, split_items

Vectors = npt.NDArray[np.float32]  # (N, D)
Row = records.Json  # metrics of one epoch of one fold

_ROWS_AT_ONCE = 4096  # in validation


@dataclass(frozen=True)
class Trained:
    """What came out of `train`.

    `rows` are the metrics of every fold and epoch; `best` and `last` are {epoch, top1, loss} of
    the validation, means over the folds: the epoch of the highest top1 (the earliest of equals),
    and the last. The weights of `head` are those of the last epoch.
    """

    head: mlp.Head
    rows: list[Row]
    best: records.Json
    last: records.Json


def mixture(shares: Mapping[str, float], rows: int, rng: np.random.Generator) -> Index:
    """For each of `rows` rows the place in `shares` of the view drawn for it, (rows,) int64."""
    weights = np.array(list(shares.values()), dtype=np.float64)
    return rng.choice(len(weights), size=rows, p=weights / weights.sum())


def train_fold(
    train_x: Mapping[str, Vectors],
    train_y: Labels,
    val_x: Vectors,
    val_y: Labels,
    schedule: Schedule,
    n_classes: int,
    folder: Path,
    fold: int,
    on_epoch: Callable[[Row], None],
    *,
    identity: str,
    device: str = "auto",
) -> tuple[nn.Sequential, list[Row]]:
    """Train one head: the module (on the CPU, for evaluation) and a row for every epoch.

    `train_x` maps each view of the phases to vectors (N, D), all of the same rows, with labels
    `train_y` (N,); `val_x` (M, D) are of the validation view, with `val_y` (M,). A row holds
    fold, epoch (from 1, over all phases), phase (from 1), views, lr, train_loss, train_top1 (the
    means while the epoch ran), val_loss, val_top1, seconds; losses are in nats.

    After each epoch `folder/fold-K.checkpoint` is replaced, then `on_epoch(row)` is called. Where
    that file is there already, `on_epoch` gets its rows at once and training goes on from it; a
    finished fold is only loaded. The file carries `identity`, which must say
    everything that decides the numbers (schedule, vectors, rows); the caller deletes it when the
    run is complete. `device` is auto (CUDA where there is one), cpu or cuda.

    Raises BadInput for a checkpoint of another identity, DamagedCache for an unreadable one,
    FeatureCacheError where the loss is no longer finite.
    """
    if len(train_y) == 0 or len(val_y) == 0:
        side = "training" if len(train_y) == 0 else "validation"
        raise BadInput(f"fold {fold}: there are no {side} rows; see `validation` in the schedule")
    if len(train_y) == 1 and schedule.head.norm == "batch" and schedule.head.hidden:
        raise BadInput(f"fold {fold}: batch norm needs more than one training row")
    where = _device(device)
    x = {view: _tensor(vectors, where) for view, vectors in train_x.items()}
    y = torch.tensor(np.asarray(train_y, dtype=np.int64), device=where)
    held_x = _tensor(val_x, where)
    held_y = torch.tensor(np.asarray(val_y, dtype=np.int64), device=where)

    # Epochs count from 1, which leaves epoch 0 for the seed of the initial weights.
    with _torch_seeded(_epoch_rng(schedule, fold, 0), torch.device("cpu")):
        module = mlp.build(held_x.shape[1], n_classes, schedule.head)
    module = module.to(where)
    optimizer = _optimizer(module, schedule.optimizer)
    checkpoint = _checkpoint_file(folder, fold)
    rows: list[Row] = []
    if checkpoint.exists():
        rows = _resume(checkpoint, identity, module, optimizer)
    for row in rows:
        on_epoch(row)

    plan = [(number, p) for number, p in enumerate(schedule.phases, 1) for _ in range(p.epochs)]
    for epoch, (number, phase) in list(enumerate(plan, 1))[len(rows) :]:
        began = time.perf_counter()
        lr = _enter(phase, schedule, optimizer)
        train_loss, train_top1 = _one_epoch(
            module, optimizer, x, y, phase, schedule.batch_size, _epoch_rng(schedule, fold, epoch)
        )
        val_loss, val_top1 = _validate(module, held_x, held_y)
        if not (np.isfinite(train_loss) and np.isfinite(val_loss)):
            raise FeatureCacheError(
                f"fold {fold}, epoch {epoch}: the loss is no longer finite at lr {lr:g}; "
                "lower optimizer.lr in the schedule"
            )
        row = {
            "fold": fold,
            "epoch": epoch,
            "phase": number,
            "views": dict(phase.views),
            "lr": lr,
            "train_loss": train_loss,
            "train_top1": train_top1,
            "val_loss": val_loss,
            "val_top1": val_top1,
            "seconds": time.perf_counter() - began,
        }
        rows.append(row)
        _save_checkpoint(checkpoint, identity, module, optimizer, rows)
        on_epoch(row)
    return module.cpu().eval(), rows


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
    """Train a head by `schedule`, one member a fold, and save it in the folder `run`.

    `vectors` maps every name of `schedule.views()` to an array (N, D), `labels` (N,) are in
    0..C-1 for the C `classes`, `items` is (N, 32); row i of all of them is one image. `pairs` are
    (train, validation) row numbers for `validation: {split: ...}`, else `split_items` makes them;
    training rows whose item is also a validation item are dropped in any case (law 8).
    `identity` says what the vectors are (their space keys, say), since they are not hashed here.
    `on_epoch` is called with the row of each epoch as it is done, and at once with those resumed;
    `on_done` with the result, before the checkpoints are deleted that could give it again.

    `run` gets `metrics.jsonl` (a row for every epoch and fold, replaced as a whole after each
    epoch), the files of `Head.save`, and while training a checkpoint a fold. A second call after
    a kill trains neither finished folds nor finished epochs again.

    Raises BadInput for arrays, labels or classes that don't fit, and what `train_fold` raises.
    """
    check_rows(items, labels, classes)
    _check_vectors(vectors, len(labels), schedule)
    if pairs is None:
        pairs = split_items(items, labels, schedule, classes)
    pairs = [(drop_shared(items, kept, held), held) for kept, held in pairs]
    run.mkdir(parents=True, exist_ok=True)
    phase_views = list(dict.fromkeys(view for phase in schedule.phases for view in phase.views))
    validated = vectors[schedule.validation.view]
    done: list[Row] = []
    members = []

    def note(row: Row) -> None:
        done.append(row)
        durable.replace(run / "metrics.jsonl", b"".join(records.canonical(r) + b"\n" for r in done))
        if on_epoch is not None:
            on_epoch(row)

    for fold, (kept, held) in enumerate(pairs, 1):
        module, _ = train_fold(
            {view: vectors[view][kept] for view in phase_views},
            labels[kept],
            validated[held],
            labels[held],
            schedule,
            len(classes),
            run,
            fold,
            note,
            identity=_identity(identity, schedule, classes, labels, items, kept, held, device),
            device=device,
        )
        members.append(module)
    head = mlp.Head(members, list(classes), schedule.head)
    head.save(run)
    means = _means(done)
    trained = Trained(head, done, _best(means), means[-1])
    if on_done is not None:
        on_done(trained)
    for fold in range(1, len(pairs) + 1):
        _checkpoint_file(run, fold).unlink()
    return trained


def _check_vectors(vectors: Mapping[str, Vectors], rows: int, schedule: Schedule) -> None:
    for view in schedule.views():
        if view not in vectors:
            raise BadInput(f"the schedule names the view {view!r}, and there are no vectors of it")
        array = vectors[view]
        if array.ndim != 2 or len(array) != rows or array.shape[1] == 0:
            raise BadInput(f"view {view!r}: expected vectors ({rows}, D), not {array.shape}")
        if array.shape != vectors[schedule.views()[0]].shape:
            raise BadInput(f"view {view!r}: its vectors are of another width than the first view's")
        if not np.isfinite(array).all():
            raise BadInput(f"view {view!r}: the vectors hold NaN or infinity")


def _identity(
    vectors: str,
    schedule: Schedule,
    classes: Sequence[str],
    labels: Labels,
    items: Items,
    kept: Index,
    held: Index,
    device: str,
) -> str:
    """Everything that decides the numbers of one fold; the fold itself is in the file's name."""
    rows = hashlib.sha256()
    for array in (labels[kept], items[kept], labels[held], items[held]):
        rows.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return records.digest(
        {
            "vectors": vectors,
            "schedule": schedule.model_dump(mode="json"),
            "classes": list(classes),
            "rows": rows.hexdigest(),
            "device": _device(device).type,
        }
    )


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"unknown device {name!r}; there are: auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("device cuda: torch sees no CUDA device here; take cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def _tensor(vectors: Vectors, device: torch.device) -> torch.Tensor:
    # Writable, since torch warns of memory maps and other arrays that are not.
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"])).to(device)


def _epoch_rng(schedule: Schedule, fold: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(schedule.seed, spawn_key=(fold, epoch)))


@contextlib.contextmanager
def _torch_seeded(rng: np.random.Generator, device: torch.device) -> Iterator[None]:
    """torch's global generators seeded from `rng` (dropout takes no other), then put back.

    Not torch.manual_seed: that one seeds every CUDA device, also those that are not put back.
    """
    seed = int(rng.integers(2**63))
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def _optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    lr, decay = settings.lr, settings.weight_decay
    if settings.momentum is not None:
        return torch.optim.SGD(
            module.parameters(), lr=lr, momentum=settings.momentum, weight_decay=decay
        )
    if settings.name == "adam":
        return torch.optim.Adam(module.parameters(), lr=lr, weight_decay=decay)
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay)


def _enter(phase: Phase, schedule: Schedule, optimizer: torch.optim.Optimizer) -> float:
    """Set what the phase overrides, and the schedule's values for the rest; gives the lr.

    Called at every epoch, so that it is the same whether or not training was resumed within.
    """
    base, own = schedule.optimizer, phase.optimizer
    lr = base.lr if own.lr is None else own.lr
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = base.weight_decay if own.weight_decay is None else own.weight_decay
    return lr


def _one_epoch(
    module: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    x: Mapping[str, torch.Tensor],
    y: torch.Tensor,
    phase: Phase,
    batch_size: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Train one epoch in place; gives the mean loss and top1 over its rows as they were trained."""
    order = torch.from_numpy(rng.permutation(len(y))).to(y.device)
    seen = _mixed(x, phase.views, rng)
    module.train()
    # Summed on the device: asking for a number at every step would wait for every step.
    loss_sum = torch.zeros((), dtype=torch.float64, device=y.device)
    right = torch.zeros((), dtype=torch.int64, device=y.device)
    with _torch_seeded(rng, y.device):
        for start, stop in batches(len(y), batch_size):
            rows = order[start:stop]
            target = y[rows]
            logits = module(seen[rows])
            loss = nn.functional.cross_entropy(logits, target)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += loss.detach() * len(rows)
            right += (logits.detach().argmax(1) == target).sum()
    return float(loss_sum) / len(y), float(right) / len(y)


def batches(rows: int, size: int) -> list[tuple[int, int]]:
    """Starts and stops of minibatches; one row left over joins the last, for batch norm's sake."""
    starts = list(range(0, rows, size))
    if size > 1 and len(starts) > 1 and rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True))


def _mixed(
    x: Mapping[str, torch.Tensor], shares: Mapping[str, float], rng: np.random.Generator
) -> torch.Tensor:
    """Vectors (N, D) of one epoch: each row from the view that was drawn for it."""
    names = list(shares)
    if len(names) == 1:
        return x[names[0]]
    result = torch.empty_like(x[names[0]])
    drawn = mixture(shares, len(result), rng)
    for place, name in enumerate(names):
        rows = torch.from_numpy(np.flatnonzero(drawn == place)).to(result.device)
        result[rows] = x[name][rows]
    return result


def _validate(module: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    module.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=y.device)
    right = torch.zeros((), dtype=torch.int64, device=y.device)
    with torch.inference_mode():
        for start in range(0, len(y), _ROWS_AT_ONCE):
            target = y[start : start + _ROWS_AT_ONCE]
            logits = module(x[start : start + _ROWS_AT_ONCE])
            loss_sum += nn.functional.cross_entropy(logits, target, reduction="sum")
            right += (logits.argmax(1) == target).sum()
    return float(loss_sum) / len(y), float(right) / len(y)


def _checkpoint_file(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold}.checkpoint"


def _save_checkpoint(
    path: Path,
    identity: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: list[Row],
) -> None:
    """One file, led by the SHA-256 of the rest: bytes are checked before torch parses them."""
    content = io.BytesIO()
    torch.save(
        {
            "identity": identity,
            "model": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rows": rows,
        },
        content,
    )
    body = content.getvalue()
    durable.replace(path, hashlib.sha256(body).digest() + body)


def _resume(
    path: Path, identity: str, module: nn.Module, optimizer: torch.optim.Optimizer
) -> list[Row]:
    """Put the state of a checkpoint into `module` and `optimizer`; gives its rows."""
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise DamagedCache(f"{path}: damaged; delete this file to train the fold anew")
    try:
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
        of = state["identity"]
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise DamagedCache(f"{path}: unreadable; delete it to train the fold anew") from error
    if of != identity:
        raise BadInput(
            f"{path}: the checkpoint of another training (schedule, vectors, rows or device "
            "differ); delete this file to train the fold anew, or take another run folder"
        )
    module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    rows: list[Row] = state["rows"]
    return rows


def _means(rows: Sequence[Row]) -> list[records.Json]:
    """Validation {epoch, top1, loss} of each epoch, means over the folds, in epoch order."""
    result = []
    for epoch in sorted({row["epoch"] for row in rows}):
        of_epoch = [row for row in rows if row["epoch"] == epoch]
        result.append(
            {
                "epoch": epoch,
                "top1": sum(row["val_top1"] for row in of_epoch) / len(of_epoch),
                "loss": sum(row["val_loss"] for row in of_epoch) / len(of_epoch),
            }
        )
    return result


def _best(means: Sequence[records.Json]) -> records.Json:
    return max(means, key=lambda mean: (mean["top1"], -mean["epoch"]))
