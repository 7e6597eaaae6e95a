"""Training: splits on items, phases, mixtures, folds, and resuming to the bit."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput, DamagedRun, FeatureCacheError
from featurecache.heads import epochs, stack_training, training
from featurecache.heads.curricula import Curriculum
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import drop_shared, split_items
from featurecache.heads.training import train
from featurecache.heads.training_results import Trained
from featurecache.heads.training_set import TrainingSet
from featurecache.training import checkpoints, devices
from featurecache.training.devices import device_of, warn_of_slow_bf16
from featurecache.training.epoch_metrics import EpochRow, results_of
from featurecache.training.minibatches import batches, epoch_rng, mixture
from featurecache.training.settings import Rate

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each epoch, however short it is."""
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)


ROWS, WIDTH = 90, 8


def schedule(**change: Any) -> Schedule:
    smallest = {
        "backbone": "b",
        "head": {"hidden": [16], "dropout": 0.2},
        "optimizer": {"lr": 0.01},
        "batch_size": 16,
        "validation": {"fraction": 0.2},
        "phases": [
            {"views": "none", "epochs": 2},
            {"views": ["none", "color_1"], "epochs": 3, "optimizer": {"lr": 0.005}},
            {"views": "color_1", "epochs": 1},
        ],
    }
    return Schedule.model_validate(smallest | change)


def items_of(numbers: Any) -> np.ndarray:
    """Items (N, 32), equal where the numbers are equal."""
    rows = [np.random.default_rng(int(n)).integers(0, 256, 32, dtype=np.uint8) for n in numbers]
    return np.array(rows, dtype=np.uint8).reshape(-1, 32)


LABELS = np.arange(ROWS, dtype=np.int64) % 3
ITEMS = items_of(range(ROWS))
_RNG = np.random.default_rng(7)
_CENTRES = _RNG.normal(size=(3, WIDTH)) * 3
VECTORS = {
    view: (_CENTRES[LABELS] + _RNG.normal(size=(ROWS, WIDTH))).astype(np.float32)
    for view in ("none", "color_1")
}


def run_train(run: Path, plan: Schedule | None = None, **change: Any) -> Trained:
    rows = {name: change.pop(name) for name in ("identity", "pairs") if name in change}
    return train(training_set(**rows), plan or schedule(), run, **change)


def training_set(**fields: Any) -> TrainingSet:
    """The vectors of this file, with other fields where `fields` has them."""
    plain: dict[str, Any] = {"vectors": VECTORS, "labels": LABELS, "items": ITEMS}
    return TrainingSet(**plain | {"classes": NAMES, "identity": "blobs"} | fields)


def timeless(rows: list[EpochRow]) -> list[EpochRow]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def weights(head: Head) -> list[bytes]:
    return [t.numpy().tobytes() for member in head.members for t in member.state_dict().values()]


class Killed(BaseException):
    """Not an Exception, like a KeyboardInterrupt."""


def killer(after: int) -> Any:
    seen: list[EpochRow] = []

    def on_epoch(row: EpochRow) -> None:
        seen.append(row)
        if len(seen) == after:
            raise Killed

    return on_epoch


# --- splits -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    copies=st.lists(st.integers(1, 3), min_size=18, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    validation=st.sampled_from([{"fraction": 0.3}, {"folds": 3}]),
    shuffle=st.randoms(use_true_random=False),
)
def test_views_of_one_item_are_on_one_side_whatever_the_order_of_rows(
    copies: list[int], seed: int, validation: dict[str, Any], shuffle: random.Random
) -> None:
    numbers = [n for n, count in enumerate(copies) for _ in range(count)]
    plan = schedule(validation=validation, seed=seed)

    def sides(order: list[int]) -> list[tuple[set[int], set[int]]]:
        shown = np.array(order)
        pairs = split_items(items_of(shown), shown % 3, plan, NAMES)
        for kept, held in pairs:
            assert sorted([*kept, *held]) == list(range(len(shown)))
        return [(set(shown[kept].tolist()), set(shown[held].tolist())) for kept, held in pairs]

    first = sides(numbers)
    for kept, held in first:
        assert not kept & held
        assert {n % 3 for n in held} == {0, 1, 2} == {n % 3 for n in kept}
    other = numbers.copy()
    shuffle.shuffle(other)
    assert sides(other) == first
    if "folds" in validation:
        assert sorted(n for _, held in first for n in held) == sorted(set(numbers))


def test_items_that_differ_only_in_trailing_zeros_are_two_items() -> None:
    items = np.zeros((12, 32), dtype=np.uint8)
    items[:, 0] = np.arange(12) // 2
    items[1::2, 31] = 1
    labels = np.arange(12, dtype=np.int64) // 4
    pairs = split_items(items, labels, schedule(validation={"folds": 4}), NAMES)
    assert [len(held) for _, held in pairs] == [3, 3, 3, 3]


def test_the_seed_decides_the_split() -> None:
    def held(seed: int) -> list[int]:
        return split_items(ITEMS, LABELS, schedule(seed=seed), NAMES)[0][1].tolist()

    assert held(0) == held(0) != held(1)
    assert len(held(0)) == 18


@pytest.mark.parametrize("validation", [{"fraction": 0.5}, {"folds": 3}])
def test_a_class_with_too_few_images_is_named(validation: dict[str, Any]) -> None:
    labels = np.array([0] * 8 + [1] * 8 + [2, 2, 2], dtype=np.int64)
    items = items_of([*range(16), 99, 99, 99])  # three rows of `owl`, one image
    with pytest.raises(BadInput, match=r"class 'owl' has 1 distinct image.*add images"):
        split_items(items, labels, schedule(validation=validation), NAMES)


def test_a_fraction_that_leaves_a_side_too_small_is_refused() -> None:
    with pytest.raises(BadInput, match="a fraction nearer"):
        split_items(ITEMS, LABELS, schedule(validation={"fraction": 0.01}), NAMES)


def test_an_item_with_two_labels_stays_on_one_side() -> None:
    numbers = np.arange(40) // 2  # each item twice, with different labels
    labels = np.arange(40, dtype=np.int64) % 2
    kept, held = split_items(items_of(numbers), labels, schedule(), NAMES)[0]
    assert not set(numbers[kept]) & set(numbers[held])


def test_training_rows_shared_with_validation_are_dropped() -> None:
    items = items_of([1, 2, 3, 1, 4, 3])
    kept = drop_shared(items, np.array([0, 1, 2, 3]), np.array([4, 5]))
    assert kept.tolist() == [0, 1, 3]


def test_train_itself_drops_shared_rows(tmp_path: Path) -> None:
    rows = np.arange(ROWS)
    with pytest.raises(BadInput, match="there are no training rows"):
        run_train(tmp_path, schedule(validation={"split": "val"}), pairs=[(rows, rows)])


# --- what training does -----------------------------------------------------------------------


def test_a_curriculum_learns_and_says_how(tmp_path: Path) -> None:
    seen: list[EpochRow] = []
    result = run_train(tmp_path, on_epoch=seen.append)
    assert result.last["top1"] > 0.9
    assert [row["epoch"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["phase"] for row in result.rows] == [1, 1, 2, 2, 2, 3]
    assert [row["lr"] for row in result.rows] == [0.01, 0.01, 0.005, 0.005, 0.005, 0.01]
    assert result.rows[2]["views"] == {"none": 0.5, "color_1": 0.5}
    assert result.rows[-1]["train_loss"] < result.rows[0]["train_loss"]
    assert seen == result.rows
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.rows
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "head.json",
        "head.safetensors",
        "metrics.jsonl",
    ]


def test_the_saved_head_is_that_of_the_last_row(tmp_path: Path) -> None:
    result = run_train(tmp_path)
    _, held = split_items(ITEMS, LABELS, schedule(), NAMES)[0]
    loaded = Head.load(tmp_path)
    named = np.array(NAMES)[LABELS[held]]
    assert loaded.score(VECTORS["none"][held], named) == pytest.approx(result.last["top1"])


def test_best_is_the_earliest_epoch_of_the_highest_top1() -> None:
    def row(fold: int, epoch: int, top1: float) -> EpochRow:
        return {"fold": fold, "epoch": epoch, "val_top1": top1, "val_loss": 1.0}

    rows = [row(1, 1, 0.2), row(1, 2, 0.6), row(1, 3, 0.8), row(1, 4, 0.5)]
    rows += [row(2, 1, 0.2), row(2, 2, 0.8), row(2, 3, 0.6), row(2, 4, 0.5)]
    kept, best, _ = results_of(rows, early=False)
    assert best == {"epoch": 2, "top1": 0.7, "loss": 1.0}
    assert kept == [row(1, 4, 0.5), row(2, 4, 0.5)]


def test_a_fold_that_ended_early_counts_with_the_row_that_was_kept() -> None:
    def row(fold: int, epoch: int, top1: float, loss: float) -> EpochRow:
        return {"fold": fold, "epoch": epoch, "val_top1": top1, "val_loss": loss}

    rows = [row(1, 1, 0.5, 1.0), row(1, 2, 0.4, 2.0)]
    rows += [row(2, 1, 0.1, 3.0), row(2, 2, 0.2, 2.0), row(2, 3, 0.7, 1.0), row(2, 4, 0.7, 4.0)]
    kept, best, _ = results_of(rows, early=True)
    assert best == {"epoch": 3, "top1": 0.6, "loss": 1.0}
    assert kept == [row(1, 1, 0.5, 1.0), row(2, 3, 0.7, 1.0)]


def test_same_seed_same_numbers_other_seed_others(tmp_path: Path) -> None:
    first, again = run_train(tmp_path / "1"), run_train(tmp_path / "2")
    assert timeless(first.rows) == timeless(again.rows)
    assert weights(first.head) == weights(again.head)
    other = run_train(tmp_path / "3", schedule(seed=1))
    assert timeless(other.rows) != timeless(first.rows)


def test_the_global_generators_neither_decide_nor_change(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run_train(tmp_path / "1")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert weights(run_train(tmp_path / "2").head) == weights(first.head)


def test_every_seed_fold_and_epoch_draws_its_own_numbers() -> None:
    places = [(seed, fold, epoch) for seed in (0, 1) for fold in (1, 2) for epoch in (0, 1, 2)]
    drawn = {
        tuple(epoch_rng(seed, fold, epoch).permutation(20).tolist()) for seed, fold, epoch in places
    }
    assert len(drawn) == len(places)


def test_a_mixture_is_drawn_in_its_shares() -> None:
    drawn = mixture({"a": 0.7, "b": 0.3}, 20_000, np.random.default_rng(0))
    assert set(drawn.tolist()) == {0, 1}
    assert np.mean(drawn == 1) == pytest.approx(0.3, abs=0.015)


def test_each_row_of_a_mixture_is_the_row_of_the_view_that_was_drawn_for_it() -> None:
    views = [torch.arange(50.0)[:, None] + 100 * place for place in range(3)]
    drawn = torch.from_numpy(mixture(dict.fromkeys("abc", 1 / 3), 20, np.random.default_rng(0)))
    rows = torch.randperm(50)[:20]
    assert drawn.unique().tolist() == [0, 1, 2]
    assert torch.equal(epochs.gather(views, rows, drawn)[:, 0], rows + 100.0 * drawn)
    assert torch.equal(epochs.gather(views[1:], rows), views[1][rows])


def test_a_phase_changes_the_optimizer_for_its_length_only() -> None:
    plan = schedule(
        phases=[
            {"views": "none", "epochs": 1, "optimizer": {"lr": 0.5, "weight_decay": 0.25}},
            {"views": "none", "epochs": 1},
        ]
    )
    labels = {1: torch.tensor([0, 1, 2])}
    curriculum = Curriculum(plan, NAMES, labels, pytest.fail, pytest.fail)
    rates = [curriculum.rate(at, 0.01, 0.02, 0.0, []) for at in curriculum.plan]
    assert rates == [Rate(0.5, 0.25), Rate(0.01, 0.02)]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_every_optimizer_learns(tmp_path: Path, name: str) -> None:
    plan = schedule(optimizer={"name": name, "lr": 0.02}, head={"hidden": [], "dropout": 0})
    result = run_train(tmp_path, plan)
    assert result.rows[-1]["val_loss"] < result.rows[0]["val_loss"]


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (6, 3, [(0, 3), (3, 6)]),
        (7, 3, [(0, 3), (3, 7)]),
        (8, 3, [(0, 3), (3, 6), (6, 8)]),
        (1, 3, [(0, 1)]),
        (2, 1, [(0, 1), (1, 2)]),
    ],
)
def test_a_single_row_left_over_joins_the_batch_before(
    rows: int, size: int, expected: list[tuple[int, int]]
) -> None:
    assert batches(rows, size) == expected


def test_batch_norm_survives_a_single_row_left_over(tmp_path: Path) -> None:
    _, held = split_items(ITEMS, LABELS, schedule(), NAMES)[0]
    kept = np.setdiff1d(np.arange(ROWS), held)[:33]  # 33 = 2 x 16 + 1
    result = run_train(tmp_path, schedule(validation={"split": "val"}), pairs=[(kept, held)])
    assert len(result.rows) == 6


def test_small_networks_use_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return stack_training.train_group(*arguments)

    monkeypatch.setattr(training, "train_group", spy)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run_train(tmp_path / "small")
        monkeypatch.setattr(devices, "_FEW_PRODUCTS", 0)
        run_train(tmp_path / "large")
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# --- kills ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize("after", [1, 4, 6])
def test_a_killed_training_resumes_to_the_bit(tmp_path: Path, after: int) -> None:
    whole = run_train(tmp_path / "whole")
    with pytest.raises(Killed):
        run_train(tmp_path / "killed", on_epoch=killer(after))
    assert (tmp_path / "killed" / "stack-1.checkpoint").exists()
    seen: list[EpochRow] = []
    resumed = run_train(tmp_path / "killed", on_epoch=seen.append)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert seen == resumed.rows
    assert weights(resumed.head) == weights(whole.head)
    assert not (tmp_path / "killed" / "stack-1.checkpoint").exists()
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.rows


@pytest.mark.slow
@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize(("at_once", "left"), [(1, 3), (2, 2), (3, 1)])
def test_folds_resume_without_training_finished_epochs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, left: int
) -> None:
    """Killed at the third row, of folds trained one after another, by two and by three."""
    monkeypatch.setattr(training, "_at_once", lambda *_: at_once)
    plan = schedule(validation={"folds": 3}, phases=[{"views": ["none", "color_1"], "epochs": 2}])
    whole = run_train(tmp_path / "whole", plan)
    assert [(row["fold"], row["epoch"]) for row in whole.rows] == [
        (fold, epoch) for fold in (1, 2, 3) for epoch in (1, 2)
    ]
    assert len(whole.head.members) == 3
    tops = [row["val_top1"] for row in whole.rows if row["epoch"] == 2]
    assert whole.last == {"epoch": 2, "top1": sum(tops) / 3, "loss": whole.last["loss"]}

    with pytest.raises(Killed):
        run_train(tmp_path / "killed", plan, on_epoch=killer(3))
    trained = []
    one_epoch = stack_training.one_epoch

    def counted(*arguments: Any) -> Any:
        trained.append(1)
        return one_epoch(*arguments)

    monkeypatch.setattr(stack_training, "one_epoch", counted)
    resumed = run_train(tmp_path / "killed", plan)
    assert len(trained) == left
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert weights(resumed.head) == weights(whole.head)
    assert [path.name for path in (tmp_path / "killed").glob("*.checkpoint")] == []
    assert (tmp_path / "killed" / "head-3.safetensors").exists()
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.rows


def test_a_training_killed_before_its_first_checkpoint_starts_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 600.0)
    whole = run_train(tmp_path / "whole")
    with pytest.raises(Killed):
        run_train(tmp_path / "killed", on_epoch=killer(2))
    assert not (tmp_path / "killed" / "stack-1.checkpoint").exists()
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 2
    resumed = run_train(tmp_path / "killed")
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert weights(resumed.head) == weights(whole.head)


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize(
    ("plan", "change"),
    [
        (schedule(optimizer={"lr": 0.02}), {}),
        (schedule(seed=1), {}),
        (schedule(), {"identity": "other vectors"}),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(
    tmp_path: Path, plan: Schedule, change: dict[str, Any]
) -> None:
    with pytest.raises(Killed):
        run_train(tmp_path, on_epoch=killer(2))
    with pytest.raises(BadInput, match=r"stack-1\.checkpoint: the checkpoint of another.*delete"):
        run_train(tmp_path, plan, **change)


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Killed):
        run_train(tmp_path, on_epoch=killer(2))
    path = tmp_path / "stack-1.checkpoint"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-10], "flip": content, "empty": b""}[damage])
    with pytest.raises(DamagedRun, match=r"stack-1\.checkpoint: damaged; delete"):
        run_train(tmp_path)


def _fields(value: Any, depth: int = 5) -> Iterator[tuple[Any, ...]]:
    """The path to every field of a checkpoint."""
    if depth and isinstance(value, dict | list):
        pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:2]))
        for name, inner in pairs:
            yield (name,)
            yield from ((name, *rest) for rest in _fields(inner, depth - 1))


@pytest.mark.slow
@pytest.mark.usefixtures("every_epoch")
def test_any_field_of_a_checkpoint(tmp_path: Path) -> None:
    """With the hash put right: the training goes on, or the file is refused by name."""
    with pytest.raises(Killed):
        run_train(tmp_path / "killed", on_epoch=killer(3))
    name = "stack-1.checkpoint"
    intact = torch.load(
        io.BytesIO((tmp_path / "killed" / name).read_bytes()[32:]), weights_only=True
    )
    values = [None, -1, 10**30, "x", [], {}, torch.zeros(0), torch.full((3, 3), math.nan)]
    refused = 0
    for number, path in enumerate(_fields(intact)):
        changed = copy.deepcopy(intact)
        parent = changed
        for step in path[:-1]:
            parent = parent[step]
        if number % (len(values) + 1) == len(values):
            del parent[path[-1]]
        else:
            parent[path[-1]] = values[number % (len(values) + 1)]
        content = io.BytesIO()
        torch.save(changed, content)
        run = tmp_path / "changed"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "killed", run)
        body = content.getvalue()
        (run / name).write_bytes(hashlib.sha256(body).digest() + body)
        try:
            run_train(run)
        except (BadInput, DamagedRun) as error:
            assert name in str(error), path
            refused += 1
    assert number > 40 and refused > number / 2


# --- refusals ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    plan = schedule(
        head={"hidden": [16, 16], "norm": "none"}, optimizer={"name": "sgd", "lr": 1e30}
    )
    with pytest.raises(FeatureCacheError, match="no longer finite at lr 1e\\+30"):
        run_train(tmp_path, plan)


@pytest.mark.parametrize(
    ("view", "array", "message"),
    [
        ("color_1", None, "there are no vectors of it"),
        ("color_1", np.zeros((ROWS, WIDTH + 1), np.float32), "differ in width"),
        ("color_1", np.zeros((ROWS - 1, WIDTH), np.float32), "expected vectors"),
        ("none", np.full((ROWS, WIDTH), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    tmp_path: Path, view: str, array: np.ndarray | None, message: str
) -> None:
    vectors = {name: v for name, v in (VECTORS | {view: array}).items() if v is not None}
    with pytest.raises(BadInput, match=message):
        train(training_set(vectors=vectors), schedule(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labels", "items", "classes"),
    [
        (LABELS + 1, ITEMS, NAMES),
        (LABELS - 1, ITEMS, NAMES),
        (LABELS[1:], ITEMS, NAMES),
        (LABELS, ITEMS[:, :31], NAMES),
        (LABELS, ITEMS, ["cat", "dog", "dog"]),
        (LABELS[:0], ITEMS[:0], NAMES),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tmp_path: Path, labels: np.ndarray, items: np.ndarray, classes: list[str]
) -> None:
    with pytest.raises(BadInput):
        train(training_set(labels=labels, items=items, classes=classes), schedule(), tmp_path)


def test_devices() -> None:
    assert device_of("cpu") == torch.device("cpu")
    with pytest.raises(BadInput, match="unknown device 'gpu'"):
        device_of("gpu")


@pytest.mark.parametrize(
    ("precision", "device", "capability", "count"),
    [
        ("bf16", "cpu", "AVX2", 1),
        ("bf16", "cpu", "AVX512", 0),
        ("bf16", "cuda", "AVX2", 0),
        ("f32", "cpu", "AVX2", 0),
        (None, "cpu", "AVX2", 0),
    ],
)
def test_bf16_without_instructions_for_it_is_noted(
    monkeypatch: pytest.MonkeyPatch, precision: str | None, device: str, capability: str, count: int
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_slow_bf16(precision, device)
    assert len(caught) == count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_and_resumes_as_the_cpu_does(tmp_path: Path) -> None:
    before = torch.cuda.get_rng_state()
    whole = run_train(tmp_path / "whole", device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with pytest.raises(Killed):
        run_train(tmp_path / "killed", on_epoch=killer(3), device="cuda")
    resumed = run_train(tmp_path / "killed", device="cuda")
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert weights(resumed.head) == weights(whole.head)
    assert whole.last["top1"] > 0.9
