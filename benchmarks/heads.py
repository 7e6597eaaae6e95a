"""Rows of heads: training small networks on vectors that are in memory."""

from __future__ import annotations

import copy
import itertools
import shutil
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from benchmarks.harness import AGAIN, OURS, Case, Check, Setting, compare, timed
from featurecache.heads import training
from featurecache.heads.epochs import Member
from featurecache.heads.head_networks import build
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import split_items
from featurecache.heads.training import train, train_many
from featurecache.heads.training_set import TrainingSet

DIM, CLASSES, BATCH = 1280, 200, 256
PAPER = {"hidden": [1024], "norm": "batch", "dropout": 0.5}  # the head of paper 000's schedule
LINEAR: dict[str, Any] = {"hidden": [], "norm": "none", "dropout": 0.0}
PLAIN = {"hidden": [1024], "norm": "none", "dropout": 0.0}  # what scikit-learn's MLP is
APART = "one after another"

Pair = tuple[np.ndarray, np.ndarray]  # row numbers to train and to validate on


class Vectors:
    """Made vectors in memory: classes are clouds that overlap, so that a head has errors to
    make."""

    def __init__(self, setting: Setting, rows: int, held: int, classes: int = CLASSES) -> None:
        rng = np.random.default_rng(0)
        self.dim, self.classes = setting.size(DIM, 32), setting.size(classes, 5)
        centres = rng.standard_normal((self.classes, self.dim), np.float32)
        count = rows + held
        labels = rng.integers(0, self.classes, count)
        spread = 0.4 * np.sqrt(self.dim / 5)  # most, not all, are told apart after one epoch
        x = centres[labels] + spread * rng.standard_normal((count, self.dim), np.float32)
        self.all_x, self.all_y = x.astype(np.float32), labels
        self.names = [str(label) for label in range(self.classes)]
        self.items = rng.integers(0, 256, (count, 32), np.uint8)
        self.x, self.y = self.all_x[:rows], labels[:rows]
        self.held_x, self.held_y = self.all_x[rows:], labels[rows:]

    def training_set(self, pairs: Sequence[Pair] | None) -> TrainingSet:
        return TrainingSet(
            vectors={"none": self.all_x}, labels=self.all_y, items=self.items, classes=self.names,
            identity="benchmark", pairs=pairs,
        )  # fmt: skip


def head_epoch(setting: Setting) -> list[Case]:
    """One epoch over 100,000 made vectors of 1,280 in 200 classes, batches of 256, from new weights
    to the accuracy on 2,000 more; as `train-head` runs it, validation and checkpoint included.
    Peers of the paper's head (1,024 wide, batch norm, dropout, AdamW) and of a linear one: a plain
    torch loop over a shuffling DataLoader, whose Dataset reads rows of an HDF5 file (two workers,
    each with the file open) or is a TensorDataset in memory. Peer of the head without norm and
    dropout, by Adam: scikit-learn's MLPClassifier.partial_fit. All of them compute in f32 on the
    same cores, but ours with `precision: bf16` where the case says so.

    The limit of ours: the matrix products of the epoch alone, by torch, in the precision of the
    head. `x PEER that the products allow`: the ratio if ours took no longer than they do."""
    v = Vectors(setting, setting.size(100_000, 600), setting.size(2000, 60))
    file = setting.folder / "vectors.h5"
    with h5py.File(file, "w") as out:
        out.create_dataset("x", data=v.x)
        out.create_dataset("y", data=v.y)
    tensors = TensorDataset(torch.from_numpy(v.x), torch.from_numpy(v.y))
    few = range(len(v.x) // 20)
    cases = []
    for name, head, optimizer, precision in (
        ("paper's head", PAPER, "adamw", None), ("paper's head in bf16", PAPER, "adamw", "bf16"),
        ("linear head", LINEAR, "adamw", None), ("linear head in bf16", LINEAR, "adamw", "bf16"),
        ("plain head", PLAIN, "adam", None),
    ):  # fmt: skip
        schedule = _schedule(head, optimizer, epochs=1)
        schedule = schedule.model_copy(update={"precision": precision})
        products = _products_seconds(v, schedule)
        sides: dict[str, Any] = {OURS: lambda s=schedule: _ours(v, s, setting.folder)}
        warm: dict[str, Any] = {}
        if head is PLAIN:
            sides["MLPClassifier.partial_fit"] = lambda: _sklearn(v)
        else:
            for peer, rows, workers in (
                ("DataLoader over h5py", Rows(file), 2), ("TensorDataset + DataLoader", tensors, 0)
            ):  # fmt: skip
                sides[peer] = lambda s=schedule, r=rows, w=workers: _plain(v, s, r, w)
                warm[peer] = lambda s=schedule, r=rows, w=workers: _plain(v, s, Subset(r, few), w)
        seconds, results = compare(sides, setting.repeats, warm=warm)
        checks = _alike(results, len(v.held_y))
        took = statistics.median(seconds[OURS])
        profile = [f"matrix products alone {products:.2f} s, {products / took:.0%} of ours",
                   *_operators(v, schedule, setting)]  # fmt: skip
        figures = _limits(seconds, products)
        cases.append(Case(name, seconds, len(v.x), "vectors/s", checks, figures, profile))
    return cases


class Rows(Dataset[tuple[np.ndarray, int]]):
    """Rows of an HDF5 file, opened by each worker for itself: an open file must not be shared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: h5py.File | None = None
        with h5py.File(path) as file:
            self.count = len(file["y"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        if self.file is None:
            self.file = h5py.File(self.path)
        return self.file["x"][row], self.file["y"][row]


def _schedule(
    head: dict[str, Any], optimizer: str, epochs: int, validation: dict[str, Any] | None = None
) -> Schedule:
    decay = 0.01 if optimizer == "adamw" else 0.0
    return Schedule.model_validate(
        {
            "backbone": "made",
            "head": head,
            "optimizer": {"name": optimizer, "lr": 1e-3, "weight_decay": decay},
            "batch_size": BATCH,
            "validation": validation or {"split": "val"},
            "phases": [{"views": "none", "epochs": epochs}],
        }
    )


def _ours(v: Vectors, schedule: Schedule, folder: Path, device: str = "cpu") -> float:
    rows = len(v.y) + len(v.held_y)
    pair = (np.arange(len(v.y)), np.arange(len(v.y), rows))
    return _train(v, schedule, folder, [pair], device)[0]


def _alike(results: dict[str, float], rows: int) -> list[Check]:
    """Do the accuracies of the sides, measured on so many rows, agree with ours?"""
    noise = 3 * (0.5 / rows) ** 0.5
    return [
        Check(f"accuracy {results[OURS]:.4f}, {side} {found:.4f} (within {noise:.4f})",
              abs(found - results[OURS]) <= noise)
        for side, found in results.items() if side != OURS
    ]  # fmt: skip


def _train(
    v: Vectors,
    schedule: Schedule,
    folder: Path,
    pairs: Sequence[Pair] | None,
    device: str = "auto",
) -> list[float]:
    """The last validation accuracy of each fold, trained as the stage `train-head` does it."""
    shutil.rmtree(run := folder / "run", ignore_errors=True)
    trained = train(v.training_set(pairs), schedule, run, device=device)
    last = max(row["epoch"] for row in trained.rows)
    return [row["val_top1"] for row in trained.rows if row["epoch"] == last]


def epochs_on(device: str, setting: Setting) -> list[Case]:
    """The row `gpu_head_epoch`, on any device."""
    v = Vectors(setting, setting.size(100_000, 600), setting.size(2000, 60))
    x, y = torch.from_numpy(v.x), torch.from_numpy(v.y)
    resident = x.to(device), y.to(device)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)

    def slices() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(len(x), device=device).split(BATCH):
            yield resident[0][rows], resident[1][rows]

    cases = []
    for name, head in (("paper's head", PAPER), ("linear head", LINEAR)):
        schedule = _schedule(head, "adamw", epochs=1)
        seconds, results = compare(
            {
                OURS: lambda s=schedule: _ours(v, s, setting.folder, device),
                "TensorDataset + DataLoader": lambda s=schedule: _loop(v, s, loader, device),
                "tensors on the device": lambda s=schedule: _loop(v, s, slices(), device),
            },
            setting.repeats,
        )
        cases.append(Case(name, seconds, len(v.x), "vectors/s", _alike(results, len(v.held_y))))
    return cases


def _plain(v: Vectors, schedule: Schedule, rows: Dataset[Any], workers: int) -> float:
    return _loop(v, schedule, DataLoader(rows, BATCH, shuffle=True, num_workers=workers))


def _loop(
    v: Vectors,
    schedule: Schedule,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    device: str = "cpu",
) -> float:
    """The training loop that everyone writes."""
    torch.manual_seed(0)
    head = build(v.dim, v.classes, schedule.head).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    loss_function = nn.CrossEntropyLoss()
    head.train()
    for x, y in batches:
        loss = loss_function(head(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    with torch.inference_mode():
        found = head(torch.from_numpy(v.held_x).to(device)).argmax(1).cpu().numpy()
    return float((found == v.held_y).mean())


def _sklearn(v: Vectors) -> float:
    model = MLPClassifier((1024,), batch_size=BATCH, alpha=0.0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(v.x, v.y, classes=np.arange(v.classes))
    return float(model.score(v.held_x, v.held_y))


def _products(v: Vectors, schedule: Schedule) -> None:
    """The matrix products of every step, in the precision of the head: each layer's forward, for
    its weights, and for the layer before it but for the first."""
    dtype = torch.bfloat16 if schedule.precision == "bf16" else torch.float32
    widths = [v.dim, *schedule.head.hidden, v.classes]
    x = [torch.randn(min(BATCH, len(v.x)), width).to(dtype) for width in widths]
    weights = [torch.randn(b, a).to(dtype) for a, b in itertools.pairwise(widths)]
    with torch.inference_mode():
        for _ in range(-(-len(v.x) // BATCH)):
            for number, weight in enumerate(weights):
                x[number] @ weight.T
                x[number + 1].T @ x[number]
                if number:
                    x[number + 1] @ weight


def _products_seconds(v: Vectors, schedule: Schedule) -> float:
    return statistics.median(timed(lambda: _products(v, schedule)) for _ in range(3))


def _limits(seconds: Mapping[str, Sequence[float]], products: float) -> dict[str, float]:
    """How near ours is to the seconds of its matrix products, and the ratio to each peer if it took
    no longer than they do."""
    medians = {side: statistics.median(spent) for side, spent in seconds.items() if side != AGAIN}
    ours = medians.pop(OURS)
    return {"ours / matrix products alone": ours / products} | {
        f"x {peer} that the products allow": spent / products for peer, spent in medians.items()
    }


def _operators(v: Vectors, schedule: Schedule, setting: Setting, most: int = 6) -> list[str]:
    """The operators with the most time of their own in our epoch, on a tenth of the rows."""
    part = slice(0, max(len(v.x) // 10, 300))
    few = copy.copy(v)
    few.x, few.y = v.x[part], v.y[part]
    few.all_x, few.all_y = np.concatenate([few.x, v.held_x]), np.concatenate([few.y, v.held_y])
    few.items = v.items[: len(few.all_y)]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        _ours(few, schedule, setting.folder)
    events = [e for e in profiler.key_averages() if e.self_cpu_time_total > 0]
    total = sum(e.self_cpu_time_total for e in events)
    top = sorted(events, key=lambda e: -e.self_cpu_time_total)[:most]
    return [f"{e.key} {e.self_cpu_time_total / total:.0%}" for e in top]


def heads_64(setting: Setting) -> list[Case]:
    """64 heads (4 seeds x 4 learning rates x 4 weight decays) on 2,000 vectors of 1,280 in 20
    classes, 2 epochs, validated on 500 more, by one call of `train_many` against a call of `train`
    for each: linear heads, where calls cost more than arithmetic, and the paper's head. Seeds of
    initial weights are the same on both sides; the heads of a sweep share one order of rows, so the
    mean accuracies are compared within three standard errors."""
    v = Vectors(setting, setting.size(2000, 100), setting.size(500, 50), classes=20)
    rows = len(v.y) + len(v.held_y)
    pairs = [(np.arange(len(v.y)), np.arange(len(v.y), rows))]
    grid = list(itertools.product(range(4), (3e-4, 1e-3, 3e-3, 1e-2), (0.0, 1e-4, 1e-2, 0.1)))
    if setting.small:
        grid = grid[::16]
    cases = []
    for name, head in (("linear heads", LINEAR), ("paper's head", PAPER)):
        schedule = _schedule(head, "adamw", epochs=2)

        def together(schedule: Schedule = schedule) -> list[float]:
            shutil.rmtree(run := setting.folder / "run", ignore_errors=True)
            members = [Member(*values) for values in grid]
            trained = train_many(v.training_set(pairs), schedule, members, run)
            return [each.last["top1"] for each in trained]

        def apart(schedule: Schedule = schedule) -> list[float]:
            found = []
            for seed, lr, weight_decay in grid:
                optimizer = schedule.optimizer.model_copy(
                    update={"lr": lr, "weight_decay": weight_decay}
                )
                own = schedule.model_copy(update={"seed": seed, "optimizer": optimizer})
                found += _train(v, own, setting.folder, pairs)
            return found

        seconds, results = compare({OURS: together, APART: apart}, setting.repeats)
        check = _means(results, len(v.held_y))
        products = 2 * len(grid) * _products_seconds(v, schedule)
        profile = _beside_products(v, products, seconds[OURS], schedule)
        # Stacked heads share products, so those of one head after another are no limit.
        figures = _limits(seconds, products) if head is PAPER else {}
        cases.append(Case(name, seconds, len(grid), "heads/s", [check], figures, profile))
    return cases


def folds_5(setting: Setting) -> list[Case]:
    """The five folds of one schedule, the paper's head, 2 epochs on 20,000 vectors of 1,280 in 200
    classes, by `train` as one call, against five calls with a fold each. Folds draw their own
    initial weights and orders, so the mean accuracies of the five are compared within three
    standard errors."""
    v = Vectors(setting, setting.size(20_000, 300), 0)
    schedule = _schedule(PAPER, "adamw", epochs=2, validation={"folds": 5})
    pairs = split_items(v.items, v.y, schedule, v.names)

    def apart() -> list[float]:
        return [top1 for p in pairs for top1 in _train(v, schedule, setting.folder, [p])]

    seconds, results = compare(
        {OURS: lambda: _train(v, schedule, setting.folder, None), APART: apart}, setting.repeats
    )
    products = 2 * 4 * _products_seconds(v, schedule)  # 2 epochs of 5 folds of 4/5 of the rows
    profile = _beside_products(v, products, seconds[OURS], schedule)
    check, figures = _means(results, len(v.y)), _limits(seconds, products)
    return [Case("5 folds", seconds, checks=[check], figures=figures, profile=profile)]


def _beside_products(
    v: Vectors, products: float, spent: Sequence[float], schedule: Schedule
) -> list[str]:
    """Where many heads spend their time: how much of it their matrix products would take alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    at_once = training._at_once(schedule, v.dim, v.classes, device)
    share = products / statistics.median(spent)
    return [
        f"up to {at_once} heads in a stack, on {device.type}; their matrix products one after "
        f"another, by torch on the CPU, take {products:.2f} s, {share:.0%} of our time"
    ]


def _means(results: dict[str, list[float]], rows: int) -> Check:
    """Do the mean accuracies agree, measured on so many rows in all?"""
    ours, apart = (float(np.mean(results[side])) for side in (OURS, APART))
    noise = 3 * (0.5 / rows) ** 0.5
    said = f"mean accuracy of the heads {ours:.4f}, {APART} {apart:.4f} (within {noise:.4f})"
    return Check(said, abs(ours - apart) <= noise)
