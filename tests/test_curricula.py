"""What an epoch takes: orders, ramps, perturbations; and trainings that use each, killed or not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import (
    LABELS,
    NAMES,
    VECTORS,
    Killed,
    every_epoch,
    killer,
    run_train,
    schedule,
    timeless,
    training_set,
)

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.heads import stack_training
from featurecache.heads.curricula import Curriculum, ranking, rows_in_epoch
from featurecache.heads.mixup_and_noise import Perturbation, mean_and_deviation
from featurecache.heads.schedules import Schedule
from featurecache.heads.settings import Features
from featurecache.heads.training import train
from featurecache.training.curriculum import Order, Phase

__all__ = ["every_epoch"]  # a fixture

RNG = np.random.default_rng(0)


# --- ramps ------------------------------------------------------------------------------------


@given(st.integers(2, 9), st.floats(0.01, 0.99))
def test_a_ramp_begins_with_views_and_ends_with_its_target(epochs: int, share: float) -> None:
    phase = Phase.model_validate(
        {"views": "none", "ramp_to": {"none": share, "a_1": 1 - share}, "epochs": epochs}
    )
    shares = [phase.shares(epoch) for epoch in range(1, epochs + 1)]
    assert shares[0] == {"none": 1.0}
    assert shares[-1] == pytest.approx({"a_1": 1 - share, "none": share})
    clean = [each["none"] for each in shares]
    assert clean == sorted(clean, reverse=True)
    assert all(sum(each.values()) == pytest.approx(1) for each in shares)


def test_a_ramp_names_its_views_and_needs_two_epochs() -> None:
    phases = [{"views": "none", "ramp_to": "color_1", "epochs": 3}]
    assert schedule(phases=phases).views() == ["none", "color_1"]
    with pytest.raises(ValueError, match="at least 2 epochs"):
        schedule(phases=[{"views": "none", "ramp_to": "color_1", "epochs": 1}])


# --- orders -----------------------------------------------------------------------------------


@given(st.floats(0.01, 1), st.integers(1, 12), st.integers(2, 500))
def test_a_phase_takes_more_rows_each_epoch_and_all_in_its_last(
    start: float, epochs: int, rows: int
) -> None:
    order = Order(by="random", start=start)
    counts = [rows_in_epoch(order, epoch, epochs, rows) for epoch in range(1, epochs + 1)]
    assert counts == sorted(counts)
    assert counts[-1] == rows
    assert counts[0] >= 2
    if epochs > 1:
        assert counts[0] == min(rows, max(2, int(np.ceil(start * rows))))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=20))
def test_easy_first_is_hard_last_and_equals_keep_their_order(losses: list[float]) -> None:
    array = np.array(losses)
    easy = ranking(Order(by="self", first="easy"), array, len(losses), RNG)
    hard = ranking(Order(by="self", first="hard"), array, len(losses), RNG)
    assert sorted(easy.tolist()) == sorted(hard.tolist()) == list(range(len(losses)))
    assert easy.tolist() == sorted(range(len(losses)), key=lambda at: (losses[at], at))
    assert hard.tolist() == sorted(range(len(losses)), key=lambda at: (-losses[at], at))


def test_a_random_order_is_one_for_all_epochs() -> None:
    plan = schedule(phases=[{"views": "none", "epochs": 4, "order": {"by": "random"}}])
    curriculum = Curriculum(plan, NAMES, {1: torch.tensor([0, 1])}, pytest.fail, pytest.fail)
    each = [
        set(curriculum.row_positions(1, 30, at, pytest.fail).tolist()) for at in curriculum.plan
    ]
    assert [len(places) for places in each] == [9, 16, 23, 30]
    assert all(before < after for before, after in itertools.pairwise(each))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["easy", "hard"])
def test_the_reference_sees_which_rows_are_hard(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with a wrong label are the last of easy first, and the first of hard first."""
    monkeypatch.setattr(stack_training, "_REFERENCE_EPOCHS", 60)  # of a dozen steps each
    labels = LABELS.copy()
    labels[:6] = (labels[:6] + 1) % 3
    plan = schedule(
        phases=[{"views": "none", "epochs": 2, "order": {"by": "reference", "first": first}}],
        batch_size=8,
    )
    fold = stack_training.Fold(1, torch.arange(len(labels)), torch.arange(5))
    data = stack_training.Data(
        {v: torch.from_numpy(x) for v, x in VECTORS.items()}, torch.tensor(labels)
    )
    curriculum = stack_training._curriculum(data, [fold], plan, NAMES)
    begun = set(curriculum.row_positions(1, len(labels), curriculum.plan[0], pytest.fail).tolist())
    assert len(begun) == 27
    assert len(begun & set(range(6))) == (0 if first == "easy" else 6)


# --- perturbations ----------------------------------------------------------------------------

X = torch.from_numpy(RNG.normal(size=(400, 5)).astype(np.float32)) * torch.tensor([1, 2, 4, 0, 1])


def perturbation(features: Features | None = None, alpha: float | None = None) -> Perturbation:
    return Perturbation(features, alpha, mean_and_deviation(X), np.random.SeedSequence(3))


def test_brightness_is_one_number_a_row_in_deviations() -> None:
    deviation = mean_and_deviation(X)[1]
    shift = (perturbation(Features(brightness=0.5)).vectors(X) - X) / deviation
    assert shift[:, 3].isnan().all()  # a constant feature has no deviation, and stays
    rest = shift[:, [0, 1, 2, 4]]
    torch.testing.assert_close(rest, rest[:, :1].expand(-1, 4), atol=1e-4, rtol=0)
    assert 0.4 < float(rest.abs().max()) <= 0.5001
    assert abs(float(rest.mean())) < 0.05


def test_contrast_is_one_factor_a_row_about_the_mean() -> None:
    mean = mean_and_deviation(X)[0]
    factor = (perturbation(Features(contrast=0.3)).vectors(X) - mean)[:, :3] / (X - mean)[:, :3]
    torch.testing.assert_close(factor, factor[:, :1].expand(-1, 3), atol=1e-2, rtol=0)
    assert float(factor.min()) > 0.69 and float(factor.max()) < 1.31


def test_noise_has_its_deviation() -> None:
    noise = perturbation(Features(noise=0.1)).vectors(X) - X
    torch.testing.assert_close(noise.std(0), 0.1 * mean_and_deviation(X)[1], atol=0.02, rtol=0.1)


def test_mixup_is_a_share_of_two_rows() -> None:
    mixing = perturbation(alpha=0.4)
    shares = []
    for _ in range(200):
        mixed, other, share = mixing.mix(X, 0.4)
        torch.testing.assert_close(mixed, share * X + (1 - share) * X[other])
        assert sorted(other.tolist()) == list(range(len(X)))
        shares.append(share)
    assert 0.4 < np.mean(shares) < 0.6
    assert np.var(shares) == pytest.approx(0.25 / (2 * 0.4 + 1), rel=0.25)  # Beta's


# --- trainings --------------------------------------------------------------------------------

HEAD = {
    "hidden": [16, 8],
    "dropout": [0.2, 0.1],
    "input_dropout": 0.1,
    "drop_connect": 0.1,
    "l1": 1e-4,
    "l2": 1e-4,
}
ORDERED = [{"views": "none", "epochs": 3, "order": {"by": "self"}}, {"views": "none", "epochs": 2}]
RAMP = {"views": "none", "ramp_to": "color_1", "epochs": 4, "order": {"by": "reference"}}
PLANS: list[dict[str, Any]] = [
    {"input": {"standardise": True, "pca": 0.9, "whiten": True}, "head": HEAD},
    {"lr_schedule": "cosine", "label_smoothing": 0.1, "mixup": 0.4},
    {"features": {"brightness": 0.2, "contrast": 0.1, "noise": 0.1}, "class_weights": "balanced"},
    {"class_weights": "errors", "lr_schedule": {"name": "plateau", "patience": 1}},
    {"class_weights": {"cat": 3.0}, "optimizer": {"name": "rmsprop", "lr": 0.005}},
    {"pruning": {"share": 0.5, "epochs": 2}, "optimizer": {"name": "adadelta", "lr": 1.0}},
    {"early_stopping": {"patience": 1}, "optimizer": {"lr": 0.3}},
    {"phases": ORDERED},
    {"phases": [RAMP]},
    {"optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True}, "lr_schedule": "constant"},
]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "+".join(plan))
@pytest.mark.parametrize("validation", [{"fraction": 0.2}, {"folds": 3}], ids=["one", "folds"])
@pytest.mark.usefixtures("every_epoch")
def test_a_killed_training_resumes_to_the_same_numbers(
    tmp_path: Path, plan: dict[str, Any], validation: dict[str, Any]
) -> None:
    wanted = schedule(**plan, validation=validation)
    whole = run_train(tmp_path / "whole", wanted)
    with pytest.raises(Killed):
        run_train(tmp_path / "killed", wanted, on_epoch=killer(2))
    resumed = run_train(tmp_path / "killed", wanted)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert resumed.best["top1"] > 0.5  # of 3 classes: something was learned
    for head in (whole.head, resumed.head):
        assert head.in_features == 8
    said = [head.predict_proba(VECTORS["none"]) for head in (whole.head, resumed.head)]
    assert np.array_equal(*said)


@pytest.mark.parametrize("plan", PLANS[1:4], ids=lambda plan: "+".join(plan))
def test_folds_together_are_folds_one_after_another(tmp_path: Path, plan: dict[str, Any]) -> None:
    layer = {"hidden": [16], "dropout": 0.2, "norm": "layer"}
    together = schedule(**plan, head=layer, validation={"folds": 3})
    whole = run_train(tmp_path / "whole", together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurecache.heads.training._at_once", lambda *_: 1)
        apart = run_train(tmp_path / "apart", together)
    for one, other in zip(timeless(whole.rows), timeless(apart.rows), strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
        assert other["lr"] == one["lr"]


def test_the_saved_head_is_that_of_the_rows(tmp_path: Path) -> None:
    """With fitted input and early stopping: what the head says is the validation that was kept."""
    wanted = schedule(
        input={"standardise": True, "pca": 4},
        early_stopping={"patience": 2},
        optimizer={"lr": 0.2},
        phases=[{"views": "none", "epochs": 20}],
    )
    kept, held = np.arange(60), np.arange(60, 90)
    found = run_train(tmp_path, wanted, pairs=[(kept, held)])
    assert len(found.rows) < 20
    lowest = min(found.rows, key=lambda row: row["val_loss"])
    assert found.saved_rows == [lowest]
    assert found.last == {
        "epoch": lowest["epoch"],
        "top1": lowest["val_top1"],
        "loss": lowest["val_loss"],
    }
    said = found.head.predict_proba(VECTORS["none"][held])
    assert (said.argmax(1) == LABELS[held]).mean() == pytest.approx(lowest["val_top1"])
    loss = -np.log(said[np.arange(30), LABELS[held]]).mean()
    assert loss == pytest.approx(lowest["val_loss"], rel=1e-3)


def test_what_is_fitted_knows_nothing_of_the_validation_rows(tmp_path: Path) -> None:
    wanted = schedule(input={"standardise": True}, phases=[{"views": "none", "epochs": 2}])
    kept, held = np.arange(60), np.arange(60, 90)
    changed = {view: x.copy() for view, x in VECTORS.items()}
    for x in changed.values():
        x[held] += 100
    rows = [
        train(
            training_set(vectors=each, identity=n, pairs=[(kept, held)]), wanted, tmp_path / n
        ).rows
        for n, each in (("a", VECTORS), ("b", changed))
    ]
    for key in ("train_loss", "train_top1"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]]


def test_pruned_weights_stay_zero_in_the_saved_head(tmp_path: Path) -> None:
    wanted = schedule(pruning={"share": 0.75, "epochs": 3}, phases=[{"views": "none", "epochs": 2}])
    found = run_train(tmp_path, wanted)
    assert [row["phase"] for row in found.rows] == [1, 1, 2, 2, 2]
    for layer in found.head.members[0]:
        if isinstance(layer, torch.nn.Linear):
            assert float((layer.weight == 0).float().mean()) == pytest.approx(0.75, abs=0.02)


def test_weak_classes_are_trained_more(tmp_path: Path) -> None:
    labels = {1: torch.tensor([0, 1, 2])}
    curriculum = Curriculum(
        schedule(class_weights="errors"), NAMES, labels, pytest.fail, pytest.fail
    )
    assert curriculum.weights(None) is None
    weights = curriculum.weights(torch.tensor([[0.0, 0.3, 0.6]]))
    assert weights is not None and weights[0].tolist() == pytest.approx([0.5, 1.0, 1.5])


def test_bad_plans_are_said() -> None:
    for change, said in (
        ({"early_stopping": {}, "pruning": {"share": 0.5, "epochs": 1}}, "before pruning begins"),
        ({"head": {"hidden": [4], "dropout": [0.1, 0.2]}}, "dropout has 2 numbers for 1 layer"),
        ({"head": {"hidden": [4], "l1": [0.1]}}, "l1 has 1 number for 2 layers"),
        ({"head": {"dropout": 1.0}}, "below 1"),
        ({"head": {"l2": -1}}, "expected a number from 0, or a list"),
        ({"input": {}}, "the block has no effect"),
        ({"input": {"whiten": True}}, "whiten scales principal components"),
        ({"input": {"pca": 1.5}}, "between 0 and 1"),
        ({"input": {"pca": 0}}, "at least 1 component"),
        ({"lr_schedule": {"name": "cosine", "factor": 0.1}}, "cosine has no factor"),
        ({"lr_schedule": "linear"}, "'constant', 'cosine', 'step' or 'plateau'"),
        ({"class_weights": "heavy"}, "balanced, errors, or a mapping"),
        ({"class_weights": {"cat": 0}}, "weights above 0"),
        ({"optimizer": {"name": "adam", "nesterov": True}}, "nesterov is for sgd"),
        ({"phases": [{"views": "none", "epochs": 1, "order": {"by": "random", "first": "easy"}}]},
         "no `first`"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            schedule(**change)


def test_classes_that_are_not_there_can_not_be_weighted(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"class of class_weights 'cut'.*cat"):
        run_train(tmp_path, schedule(class_weights={"cut": 2.0}))


@pytest.mark.parametrize("validation", [{"fraction": 0.2}, {"folds": 3}])
def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_folder(
    tmp_path: Path, validation: dict[str, Any]
) -> None:
    wanted = schedule(
        head={"hidden": [16], "norm": "none"},
        optimizer={"name": "sgd", "momentum": 0.0, "lr": 0.01},
        phases=[
            {"views": "none", "epochs": 2},
            {"views": "none", "epochs": 5, "optimizer": {"lr": 1e30}},
        ],
        validation=validation,
    )
    with pytest.raises(FeatureCacheError, match=r"fold 1, epoch 3: .* at lr 1e.30 .*; lower"):
        run_train(tmp_path, wanted)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2 * (
        validation.get("folds") or 1
    )


def test_a_plan_of_nothing_new_is_the_old_plan() -> None:
    """Keys that are not written are not in the record, so runs of before are found again."""
    plain = schedule().model_dump(mode="json", exclude_none=True)
    assert sorted(plain) == [
        "augment_seed", "backbone", "batch_size", "head", "optimizer", "phases", "seed",
        "validation",
    ]  # fmt: skip
    assert sorted(plain["head"]) == ["activation", "dropout", "hidden", "norm"]
    assert sorted(plain["phases"][0]) == ["epochs", "optimizer", "views"]
    assert Schedule.model_validate(plain) == schedule()
