"""A stack of heads computes what its members would one by one, and what torch.optim would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import (
    ITEMS,
    LABELS,
    VECTORS,
    Killed,
    run_train,
    schedule,
    timeless,
    training_set,
)
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads import stacks, training
from featurecache.heads.epochs import Member
from featurecache.heads.head_networks import build
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.stacks import Stack
from featurecache.heads.training import train_many
from featurecache.heads.training_results import Trained
from featurecache.training import checkpoints
from featurecache.training.epoch_metrics import EpochRow
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.settings import Optimizer, Rate

CPU = torch.device("cpu")
WIDTH, CLASSES = 6, 4

SPECS = st.builds(
    HeadSpec,
    hidden=st.lists(st.sampled_from([3, 8]), max_size=2),
    dropout=st.sampled_from([0.0, 0.3]),
    input_dropout=st.sampled_from([None, 0.4]),
    drop_connect=st.sampled_from([None, 0.2]),
    l1=st.sampled_from([None, 0.01]),
    l2=st.sampled_from([None, 0.02]),
    norm=st.sampled_from(["batch", "layer", "none"]),
    activation=st.sampled_from(["relu", "gelu", "silu"]),
)
OPTIMIZERS = st.sampled_from(
    [
        Optimizer(name="adamw"),
        Optimizer(name="adam"),
        Optimizer(name="sgd", momentum=0.9),
        Optimizer(name="sgd", momentum=0.0),
        Optimizer(name="sgd", momentum=0.9, nesterov=True),
        Optimizer(name="rmsprop"),
        Optimizer(name="rmsprop", momentum=0.5),
        Optimizer(name="adadelta"),
    ]
)
RATES = st.builds(
    Rate, lr=st.sampled_from([1e-3, 3e-2]), weight_decay=st.sampled_from([0.0, 1e-2, 0.3])
)


def heads(count: int, spec: HeadSpec) -> list[nn.Sequential]:
    """In float64: where a gradient is zero but for rounding, Adam makes a step of the rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(count)
        return [build(WIDTH, CLASSES, spec).double() for _ in range(count)]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def minibatches(sizes: Sequence[int], *members: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(x, target) for each of `sizes`, for all members or for each of that many."""
    rng = np.random.default_rng(0)
    return [
        (
            torch.from_numpy(rng.normal(size=(*members, size, WIDTH))),
            torch.from_numpy(rng.integers(0, CLASSES, (*members, size))),
        )
        for size in sizes
    ]


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-6, atol=1e-6)


# --- steps ------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40)
@given(
    spec=SPECS,
    optimizer=OPTIMIZERS,
    rates=st.lists(RATES, min_size=1, max_size=4),
    sizes=st.lists(st.integers(4, 9), min_size=1, max_size=4),
    own=st.booleans(),
)
def test_a_stack_is_its_members_one_by_one(
    spec: HeadSpec, optimizer: Optimizer, rates: list[Rate], sizes: list[int], own: bool
) -> None:
    count = len(rates)
    stack = Stack(heads(count, spec), spec, optimizer, CPU)
    singles = [Stack([head], spec, optimizer, CPU) for head in heads(count, spec)]
    together, apart = generators(count), generators(count)
    for x, target in minibatches(sizes, *([count] if own else [])):
        loss, right = stack.step(x, target, rates, together)
        for at, single in enumerate(singles):
            rows = (x[at], target[at]) if own else (x, target)
            own_loss, own_right = single.step(*rows, [rates[at]], [apart[at]])
            torch.testing.assert_close(loss[at], own_loss[0])
            assert right[at] == own_right[0]
    for at, single in enumerate(singles):
        for kind, tensors in single.state_dict().items():
            those = {name: t[at : at + 1] for name, t in stack.state_dict()[kind].items()}
            assert_equal(those, tensors)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    spec=SPECS,
    settings_=OPTIMIZERS,
    rate=RATES,
    sizes=st.lists(st.integers(4, 9), min_size=3, max_size=6),
)
def test_a_stack_of_one_is_torch(
    spec: HeadSpec, settings_: Optimizer, rate: Rate, sizes: list[int]
) -> None:
    draws = {"dropout": 0.0, "input_dropout": None, "drop_connect": None}  # we draw otherwise
    spec = spec.model_copy(update=draws)
    (module,) = heads(1, spec)
    stack = Stack([module], spec, settings_, CPU)
    kind = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adadelta": torch.optim.Adadelta,
    }
    own = settings_.model_dump(include={"momentum", "nesterov"}, exclude_none=True)
    more: dict[str, Any] = own
    optimizer = kind[settings_.name](
        module.parameters(), lr=rate.lr, weight_decay=rate.weight_decay, **more
    )
    for x, target in minibatches(sizes):
        logits = module(x)
        loss = nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        weights = [layer.weight for layer in module if isinstance(layer, nn.Linear)]
        penalty = sum(
            (spec.l1 or 0) * w.abs().sum() + (spec.l2 or 0) * (w**2).sum() for w in weights
        )
        torch.autograd.backward(loss + penalty)
        optimizer.step()
        total, right = stack.step(x, target, [rate], generators(1))
        torch.testing.assert_close(total[0] / len(x), loss.detach())
        assert right[0] == (logits.argmax(1) == target).sum()
    trained = stack.head(0, WIDTH, CLASSES)
    assert_equal(trained.state_dict(), module.state_dict())
    ((x, target),) = minibatches([30])
    with torch.inference_mode():
        torch.testing.assert_close(stack.logits(x)[0].T, module.eval()(x))
    assert not trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_part_is_trained_in_the_memory_of_its_stack() -> None:
    spec, optimizer = HeadSpec(hidden=[8], dropout=0.3), Optimizer()
    stack, whole = (Stack(heads(2, spec), spec, optimizer, CPU) for _ in range(2))
    rates, (batch,) = [Rate(0.01, 0.1), Rate(0.02, 0.0)], minibatches([7])
    for at in range(2):
        stack.part(at).step(*batch, [rates[at]], [generators(2)[at]])
    whole.step(*batch, rates, generators(2))
    for kind, tensors in whole.state_dict().items():
        assert_equal(stack.state_dict()[kind], tensors)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1 - 1e-9])
def test_dropout_keeps_its_share_and_the_mean(rate: float) -> None:
    shape = torch.Size([2, 301, 333])
    mask = stacks._dropout_mask(shape, rate, generators(2))
    kept = float((mask[0] > 0).float().mean())
    assert kept == pytest.approx(1 - rate, abs=0.006)
    assert mask.unique().numel() <= 2
    assert float(mask.max()) == pytest.approx(1 / (1 - rate), rel=1e-3) or rate > 0.99
    assert not torch.equal(mask[0], mask[1])
    again = stacks._dropout_mask(torch.Size([1, 301, 333]), rate, generators(2)[1:])
    assert torch.equal(again[0], mask[1])


def test_dropout_of_neighbours_is_independent() -> None:
    """The four features of one random word, rows and columns too, know nothing of each other."""
    kept = (stacks._dropout_mask(torch.Size([1, 400, 400]), 0.5, generators(1))[0] > 0).double()
    for shift in (1, 2, 3, 4, 400):
        flat = kept.flatten() - 0.5
        assert abs(float((flat[shift:] * flat[:-shift]).mean())) < 0.25 * 0.02


def test_penalties_and_drops_are_of_their_layer() -> None:
    spec = HeadSpec(hidden=[8, 8], dropout=[0.0, 0.5], drop_connect=[0.5, 0.0], l1=[0.0, 0.0, 0.1])
    (module,) = heads(1, spec)
    assert [layer.p for layer in module if isinstance(layer, nn.Dropout)] == [0.5]
    stack = Stack([module], spec, Optimizer(name="sgd", momentum=0.0), CPU)
    before = {name: stack.state[name].detach().clone() for name in stack.weights}
    plain = Stack(heads(1, spec), spec.model_copy(update={"l1": None}), stack.optimizer, CPU)
    (batch,) = minibatches([9])
    for one in (stack, plain):
        one.step(*batch, [Rate(0.1, 0.0)], generators(1))
    first, second, last = stack.weights
    torch.testing.assert_close(stack.state[first], plain.state[first])
    torch.testing.assert_close(stack.state[second], plain.state[second])
    expected = plain.state[last] - 0.1 * 0.1 * before[last].sign()
    torch.testing.assert_close(stack.state[last], expected)


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adadelta"])
def test_what_is_pruned_stays_zero(name: str) -> None:
    spec, rates = HeadSpec(hidden=[8], dropout=0.0), [Rate(0.01, 0.1)] * 2
    stack = Stack(heads(2, spec), spec, Optimizer(name=name), CPU)
    for batch in minibatches([9] * 3):
        stack.step(*batch, rates, generators(2))
    sizes = {n: stack.state[n].detach().abs().flatten(1) for n in stack.weights}
    stack.prune(0.75)
    for batch in minibatches([9] * 3):
        stack.step(*batch, rates, generators(2))
    for weight, before in sizes.items():
        gone = stack.state[weight].detach().flatten(1) == 0
        assert gone.float().mean(1).tolist() == [0.75, 0.75]
        for member in range(2):
            assert before[member][gone[member]].max() <= before[member][~gone[member]].min()
    resumed = Stack(heads(2, spec), spec, Optimizer(name=name), CPU)
    resumed.load_state_dict(stack.state_dict())
    for batch in minibatches([9] * 2):
        for one in (stack, resumed):
            one.step(*batch, rates, generators(2))
    for kind, tensors in resumed.state_dict().items():
        assert_equal(stack.state_dict()[kind], tensors)


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adadelta"])
def test_a_step_reads_no_number(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For which a GPU would have to finish its work first."""
    spec = HeadSpec(hidden=[8])
    stack = Stack(heads(2, spec), spec, Optimizer(name=name), CPU)
    ((x, target),) = minibatches([9])
    reads: list[str] = []
    for method in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, method, lambda _, method=method: reads.append(method))
    stack.step(x, target, [Rate(0.1, 0.0), Rate(0.1, 0.1)], generators(2))
    monkeypatch.undo()
    assert reads == []


def test_a_snapshot_brings_back_one_member() -> None:
    spec, optimizer = HeadSpec(hidden=[8], dropout=0.0), Optimizer()
    stack = Stack(heads(2, spec), spec, optimizer, CPU)
    (batch,) = minibatches([9])
    saved = stack.snapshot(1)
    stack.step(*batch, [Rate(0.1, 0.1)] * 2, generators(2))
    other = stack.snapshot(0)
    stack.restore(1, saved)
    assert_equal(stack.snapshot(1), saved)
    assert_equal(stack.snapshot(0), other)


# --- sweeps -----------------------------------------------------------------------------------

MEMBERS = [Member(0, 0.01, 0.01), Member(1, 0.03, 0.0), Member(2, 0.01, 0.01), Member(0, 0.01, 0.3)]


def sweep(
    run: Path, members: Sequence[Member] = MEMBERS, plan: Schedule | None = None, **change: Any
) -> list[Any]:
    return train_many(training_set(), plan or schedule(), members, run, **change)


# Before a batch norm the gradient of a bias is rounding alone, and Adam makes whole steps of it:
# the training is the same, and yet the running means differ. Not so with these.
LAYER = {"hidden": [16], "dropout": 0.2, "norm": "layer"}
SGD = {"name": "sgd", "lr": 0.02}
EVEN = [{"head": LAYER}, {"optimizer": SGD}]


def assert_same(left: Trained, right: Trained) -> None:
    """Equal to float tolerance: the epochs' numbers, and what the heads say."""
    for one, other in zip(timeless(left.rows), timeless(right.rows), strict=True):
        for key, value in one.items():
            exact = key in ("fold", "epoch", "phase", "views", "lr", "val_top1", "train_top1")
            assert other[key] == (value if exact else pytest.approx(value, rel=1e-3)), key
    np.testing.assert_allclose(
        left.head.predict_proba(VECTORS["none"]),
        right.head.predict_proba(VECTORS["none"]),
        atol=1e-3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("validation", [{"fraction": 0.2}, {"folds": 3}])
@pytest.mark.parametrize("even", EVEN)
def test_a_sweep_is_its_trainings_one_by_one(
    tmp_path: Path, validation: dict[str, Any], even: dict[str, Any]
) -> None:
    plan = schedule(validation=validation, **even)
    together = sweep(tmp_path / "all", plan=plan)
    for place, member in enumerate(MEMBERS):
        (alone,) = sweep(tmp_path / str(place), [member], plan)
        assert_same(together[place], alone)
    assert len({trained.rows[-1]["val_loss"] for trained in together}) == len(MEMBERS)
    lines = (tmp_path / "all" / "metrics.jsonl").read_text().splitlines()
    expected = [
        {"member": n, **row} for n, trained in enumerate(together, 1) for row in trained.rows
    ]
    assert [json.loads(line) for line in lines] == expected
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["metrics.jsonl"]
    together[1].head.save(tmp_path)
    probabilities = Head.load(tmp_path).predict_proba(VECTORS["none"])
    assert np.array_equal(probabilities, together[1].head.predict_proba(VECTORS["none"]))


def test_the_sweep_of_a_schedules_own_values_is_its_training(tmp_path: Path) -> None:
    plan = schedule(seed=3)
    own = Member(3, plan.optimizer.lr, plan.optimizer.weight_decay)
    (swept,) = sweep(tmp_path / "1", [own], plan)
    assert timeless(swept.rows) == timeless(run_train(tmp_path / "2", plan).rows)


@pytest.mark.parametrize("even", EVEN)
def test_the_order_of_the_members_changes_nothing(tmp_path: Path, even: dict[str, Any]) -> None:
    plan = schedule(**even)
    forward = sweep(tmp_path / "1", plan=plan)
    backward = sweep(tmp_path / "2", MEMBERS[::-1], plan)
    for left, right in zip(forward, backward[::-1], strict=True):
        assert_same(left, right)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_killed_sweep_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(training, "_at_once", lambda *_: at_once)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    whole = sweep(tmp_path / "whole")
    seen: list[tuple[int, EpochRow]] = []

    def kill(place: int, row: EpochRow) -> None:
        seen.append((place, row))
        if len(seen) == 10:
            raise Killed

    with pytest.raises(Killed):
        sweep(tmp_path / "killed", on_epoch=kill)
    with pytest.raises(BadInput, match="the checkpoint of another training"):
        sweep(tmp_path / "killed", [Member(0, 0.01, 0.02), *MEMBERS[1:]])
    resumed = sweep(tmp_path / "killed")
    for left, right in zip(resumed, whole, strict=True):
        assert timeless(left.rows) == timeless(right.rows)
        assert np.array_equal(
            left.head.predict_proba(VECTORS["none"]), right.head.predict_proba(VECTORS["none"])
        )


@pytest.mark.slow
def test_results_come_before_the_checkpoints_go(tmp_path: Path) -> None:
    there: list[bool] = []

    def saved(results: list[Trained]) -> None:
        assert len(results) == len(MEMBERS)
        there.append((tmp_path / "stack-1.checkpoint").exists())

    sweep(tmp_path, on_done=saved)
    assert there == [True]
    assert not (tmp_path / "stack-1.checkpoint").exists()


def test_a_member_whose_loss_is_not_finite_is_lost_alone(tmp_path: Path) -> None:
    plan = schedule(
        head={"hidden": [16], "norm": "none", "dropout": 0.0},
        optimizer={"name": "sgd", "momentum": 0.0},
        phases=[{"views": "none", "epochs": 3}],
    )
    wild = Member(5, 1e30, 0.25)
    tame = sweep(tmp_path / "tame", MEMBERS, plan)
    *others, lost = sweep(tmp_path / "both", [*MEMBERS, wild], plan)
    assert "no longer finite at lr 1e+30 (seed 5, weight_decay 0.25)" in lost.reason
    for left, right in zip(tame, others, strict=True):
        assert [row["val_top1"] for row in left.rows] == [row["val_top1"] for row in right.rows]
    assert sweep(tmp_path / "wild", [wild], plan) == [lost]


def test_a_sweep_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one member"):
        sweep(tmp_path, [])


# --- folds ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rows", [90, 88, 83])
@pytest.mark.parametrize("batch_size", [15, 16, 30])
@pytest.mark.parametrize("even", EVEN)
def test_folds_together_are_folds_one_after_another(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    batch_size: int,
    even: dict[str, Any],
) -> None:
    """Also where their minibatches differ in size and number: 4 folds of 83 rows are 62 or 63."""
    plan = schedule(validation={"folds": 4}, batch_size=batch_size, **even)
    vectors = {view: array[:rows] for view, array in VECTORS.items()}
    results = []
    for at_once in (1, 3, 4):
        monkeypatch.setattr(training, "_at_once", lambda *_, at_once=at_once: at_once)
        fewer = training_set(vectors=vectors, labels=LABELS[:rows], items=ITEMS[:rows])
        results.append(training.train(fewer, plan, tmp_path / str(at_once)))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_small_heads_are_stacked_and_large_ones_are_not() -> None:
    def at_once(classes: int, **head: Any) -> int:
        return training._at_once(schedule(head=head, batch_size=256), 1280, classes, CPU)

    assert at_once(10, hidden=[]) >= 64
    assert at_once(200, hidden=[]) > 1
    assert at_once(200, hidden=[1024]) == 1
