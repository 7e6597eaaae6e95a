"""Heads that are trained in bf16: near those of f32, saved in f32, and with their cost told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import yaml

import featurecache
from featurecache.errors import FeatureCacheWarning
from featurecache.heads.head_networks import build
from featurecache.heads.schedules import Schedule
from featurecache.heads.stacks import Stack
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import TrainedRun, train_head
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.settings import Optimizer, Rate

PHASES = [{"views": "none", "epochs": 3}]
PLAIN: dict[str, Any] = {"backbone": "efficientnet_lite0", "phases": PHASES}


def stack_of(members: int, *, is_half: bool) -> Stack:
    spec = HeadSpec(hidden=[32], dropout=0.0)
    heads = []
    for seed in range(members):
        torch.manual_seed(seed)
        heads.append(build(24, 5, spec))
    return Stack(heads, spec, Optimizer(), torch.device("cpu"), is_half=is_half)


@pytest.mark.parametrize("members", [1, 3])
def test_steps_in_bf16_are_near_those_in_f32(members: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x, target = torch.randn(64, 24, generator=rng), torch.randint(0, 5, (64,), generator=rng)
    losses = []
    for is_half in (False, True):
        stack = stack_of(members, is_half=is_half)
        dropping = [torch.Generator().manual_seed(1) for _ in range(members)]
        rates = [Rate(1e-2, 0.0)] * members
        steps = [stack.step(x, target, rates, dropping)[0] for _ in range(20)]
        losses.append(torch.stack(steps) / len(x))
        assert {tensor.dtype for tensor in stack.snapshot(0).values()} <= {
            torch.float32,
            torch.int64,
        }
    exact, half = losses
    assert (half[-1] < 0.8 * half[0]).all()
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02)
    assert not torch.equal(half, exact)


def test_validation_stays_in_f32() -> None:
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    exact, half = (stack_of(1, is_half=is_half).logits(x) for is_half in (False, True))
    assert torch.equal(exact, half)


def test_f32_is_what_a_schedule_without_a_precision_has() -> None:
    plain, named = Schedule(**PLAIN), Schedule(**PLAIN, precision="f32")
    assert plain == named and "precision" not in plain.model_dump(exclude_none=True)
    lbfgs = {"optimizer": {"name": "lbfgs"}, "head": {"hidden": []}}
    for solved in (lbfgs, {"head": {"kind": "ridge"}}):
        phases = [{"views": "none", "epochs": 1}]
        with pytest.raises(pydantic.ValidationError, match="precision"):
            Schedule(**PLAIN | solved | {"phases": phases}, precision="bf16")
    with pytest.raises(pydantic.ValidationError, match="bf16"):
        Schedule(**PLAIN, precision="int8")


@pytest.mark.slow
@pytest.mark.parametrize("validation", [{"split": "val"}, {"folds": 2}])
def test_a_training_in_bf16_says_what_it_costs(
    small_data: Path, small_cache: Path, tmp_path: Path, validation: dict[str, Any]
) -> None:
    path = tmp_path / "half.yaml"
    head = {"hidden": [8], "norm": "layer"}

    def trained(precision: str) -> TrainedRun:
        path.write_text(
            yaml.safe_dump(PLAIN | {"head": head, "validation": validation, "precision": precision})
        )
        return train_head(path, data=small_data, cache=small_cache, runs=tmp_path / "runs")

    half, exact = trained("bf16"), trained("f32")
    (note,) = [note for note in half.notes if "bf16 instead of f32" in note]
    assert "points" in note and "3 epochs" in note
    assert not any("bf16" in note for note in exact.notes)
    assert half.run != exact.run
    assert abs(half.last["loss"] - exact.last["loss"]) < 0.1
    assert sorted(p.name for p in Path(half.run).iterdir()) == sorted(
        p.name for p in Path(exact.run).iterdir()
    )
    found = evaluate(half.run, split="val", data=small_data, cache=small_cache)
    assert np.isfinite(found.top1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validation", "held"), [({"split": "val"}, 18), ({"fraction": 0.5}, 45), ({"folds": 3}, 30)]
)
def test_a_classifier_on_arrays_says_what_bf16_costs(validation: dict[str, Any], held: int) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = 2 * rng.normal(size=(3, 6))[y] + rng.normal(size=(90, 6))
    schedule = {"head": {"hidden": [8]}, "batch_size": 16, "phases": PHASES}
    half = schedule | {"precision": "bf16", "validation": validation}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = featurecache.HeadClassifier(half, device="cpu").fit(x.astype(np.float32), y)
    said = [str(each.message) for each in caught if each.category is FeatureCacheWarning]
    (cost,) = [text for text in said if "instead of f32" in text]
    assert "points (" in cost and f"on {held} validation" in cost
    assert fitted.schedule_["precision"] == "bf16"
    assert fitted.predict_proba(x.astype(np.float32)).shape == (90, 3)


def test_rows_that_cannot_be_held_out_are_named() -> None:
    x = np.eye(4, dtype=np.float32)
    schedule = {"head": {"hidden": []}, "phases": PHASES, "precision": "bf16"}
    with pytest.warns(FeatureCacheWarning, match="bf16 costs in accuracy can't be measured"):
        featurecache.HeadClassifier(schedule, device="cpu").fit(x, [0, 1, 1, 1])


@pytest.mark.slow
def test_worth_says_what_bf16_costs(small_data: Path, small_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.yaml"
    head = {"hidden": [8], "norm": "layer"}
    phases = [{"views": "none", "epochs": 1}, {"views": "color_1", "epochs": 1}]
    written = PLAIN | {"head": head, "phases": phases, "validation": {"split": "val"}}
    for precision, said in (("bf16", 1), ("f32", 0)):
        path.write_text(yaml.safe_dump(written | {"precision": precision}))
        found = featurecache.worth(
            path, data=small_data, cache=small_cache, runs=tmp_path / "runs", seeds=1,
            lr_schedule="constant",
        )  # fmt: skip
        assert len([note for note in found.notes if "bf16 instead of f32" in note]) == said
