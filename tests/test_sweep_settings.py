"""Sweeps: which settings there are, which share a stack, and what comes out of training them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_training import VECTORS, Killed, run_train, schedule, training_set

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.heads.epochs import Member
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule
from featurecache.heads.sweep import Swept, train_sweep
from featurecache.heads.training import train_many
from featurecache.heads.training_results import Trained
from featurecache.training.sweep_settings import Setting, distinct_settings, settings_of, stackable
from featurecache.training.trials import interval

PHASES = [{"views": "none", "epochs": 2}]


def swept(sweep: dict[str, Any], **change: Any) -> Schedule:
    return schedule(sweep=sweep, phases=PHASES, **change)


def settings(sweep: dict[str, Any], **change: Any) -> list[Setting[Schedule]]:
    return settings_of(swept(sweep, **change), "s.yaml")


# --- the plan ---------------------------------------------------------------------------------


@given(
    lrs=st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=3, unique=True),
    widths=st.lists(st.lists(st.integers(1, 9), max_size=2), min_size=1, max_size=3),
    names=st.lists(st.sampled_from(["adam", "sgd"]), min_size=1, max_size=2, unique=True),
)
def test_a_grid_is_every_combination_once(
    lrs: list[float], widths: list[list[int]], names: list[str]
) -> None:
    grid = {"optimizer.lr": lrs, "head.hidden": widths, "optimizer.name": names}
    found = settings({"grid": grid})
    assert len(found) == len(lrs) * len(widths) * len(names)
    for setting in found:
        own = setting.schedule
        made = (own.optimizer.lr, own.head.hidden, own.optimizer.name)
        assert made == tuple(setting.values[key] for key in grid)
        assert own.sweep is None
        assert own.optimizer.momentum == (0.9 if own.optimizer.name == "sgd" else None)
    groups = stackable(found)
    assert sorted(place for group in groups for place in group) == list(range(len(found)))
    for group in groups:
        apart = [found[place].schedule.model_dump() for place in group]
        for each in apart:
            each["optimizer"].pop("lr")
        assert all(each == apart[0] for each in apart)


def test_random_settings_are_drawn_by_their_seed_and_key() -> None:
    over = {
        "optimizer.lr": {"log": [1e-4, 1e-2]},
        "head.dropout": {"range": [0.2, 0.7]},
        "optimizer.name": {"choice": ["adam", "rmsprop"]},
    }
    found = settings({"random": 40, "over": over})
    again = settings({"random": 40, "over": dict(reversed(over.items()))})
    assert [one.values for one in found] == [one.values for one in again]
    more = settings({"random": 40, "over": over | {"mixup": {"range": [0.1, 0.5]}}})
    for one, other in zip(found, more, strict=True):
        assert one.values.items() <= other.values.items()
    assert settings({"random": 40, "over": over, "seed": 1})[0].values != found[0].values
    lrs = np.array([one.values["optimizer.lr"] for one in found])
    assert ((lrs >= 1e-4) & (lrs <= 1e-2)).all()
    assert 0.25 < (lrs < 1e-3).mean() < 0.75  # even in the logarithm
    assert {one.values["optimizer.name"] for one in found} == {"adam", "rmsprop"}


def test_a_block_that_is_a_name_or_not_there_becomes_a_mapping() -> None:
    (one,) = settings({"grid": {"lr_schedule.over": ["phase"]}}, lr_schedule="cosine")
    assert one.schedule.lr_schedule is not None and one.schedule.lr_schedule.over == "phase"
    (one,) = settings({"grid": {"input.pca": [0.9]}})
    assert one.schedule.input is not None and one.schedule.input.pca == 0.9


def test_another_kind_leaves_the_keys_of_the_first_behind() -> None:
    sgd = {"name": "sgd", "lr": 0.1, "nesterov": True}
    found = settings({"grid": {"optimizer.name": ["sgd", "adam"]}}, optimizer=sgd)
    assert [one.schedule.optimizer.momentum for one in found] == [0.9, None]
    assert [one.schedule.optimizer.lr for one in found] == [0.1, 0.1]
    plateau = {"name": "plateau", "factor": 0.5}
    found = settings({"grid": {"lr_schedule.name": ["plateau", "cosine"]}}, lr_schedule=plateau)
    assert [getattr(one.schedule.lr_schedule, "factor", 0) for one in found] == [0.5, None]


def test_a_rate_that_every_phase_sets_is_not_swept() -> None:
    phases = [{"views": "none", "epochs": 2, "optimizer": {"lr": 0.1}}]
    plan = schedule(sweep={"grid": {"optimizer.lr": [0.1, 0.2]}}, phases=phases)
    with pytest.raises(BadInput, match="every phase sets its own"):
        settings_of(plan, "s.yaml")


@pytest.mark.parametrize(
    "grid",
    [
        {"optimizer.lr": [0.1, 0.2, 0.10]},
        {"mixup": [1, 1.0]},
        {"optimizer.name": ["adam", "sgd"], "optimizer": [{"name": "adam"}, {"name": "sgd"}]},
    ],
)
def test_a_setting_is_trained_once(grid: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="same setting; remove one"):
        distinct_settings(swept({"grid": grid}), "s.yaml")


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({}, "nothing to sweep"),
        ({"random": 3}, "random and over belong together"),
        ({"grid": {"mixup": [1.0]}, "random": 1, "over": {"mixup": {"range": [1, 2]}}}, "not both"),
        ({"grid": {"mixup": []}}, "needs at least one value"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"seeds": [-1]}, "from 0 to"),
        ({"random": 1, "over": {"mixup": {"range": [2, 1]}}}, "low then high"),
        ({"random": 1, "over": {"mixup": {"log": [0, 1]}}}, "above 0"),
        ({"random": 1, "over": {"mixup": {"log": [1, 2], "range": [1, 2]}}}, "give exactly one of"),
    ],
)
def test_a_sweep_that_says_nothing_or_too_much(sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        swept(sweep)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"phases": [1]}, "s.yaml: sweep: phases can't be swept; "),
        ({"optimiser.lr": [1]}, "optimiser.lr can't be swept; nearest: optimizer"),
        ({"optimizer.lr": [0.1, -1]}, "s.yaml: optimizer.lr -1: optimizer.lr: "),
        ({"optimizer.rate": [0.1]}, "optimizer.rate: no such key"),
    ],
)
def test_a_setting_that_is_no_schedule_is_named(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        settings({"grid": grid})
    assert said in str(caught.value)


# --- the training -----------------------------------------------------------------------------

SWEEP = {"seeds": [3, 4], "grid": {"head.hidden": [[16], []], "optimizer.lr": [0.01, 1e-5]}}


def run_sweep(run: Path, plan: Schedule | None = None, **change: Any) -> Swept:
    rows = {"identity": change.pop("identity")} if "identity" in change else {}
    return train_sweep(training_set(**rows), plan or swept(SWEEP), run, **change)


@pytest.mark.parametrize("validation", [{"fraction": 0.2}, {"folds": 3}])
def test_each_trial_is_its_trainings(tmp_path: Path, validation: dict[str, Any]) -> None:
    plan = swept(SWEEP, validation=validation)
    found = run_sweep(tmp_path / "sweep", plan)
    for trial, setting in zip(found.trials, settings_of(plan, "s"), strict=True):
        assert trial.setting == setting.values
        own = setting.schedule.optimizer
        members = [Member(seed, own.lr, own.weight_decay) for seed in (3, 4)]
        folder = tmp_path / str(setting.values)
        alone = train_many(training_set(), setting.schedule, members, folder)
        tops = [
            [row["val_top1"] for row in one.saved_rows] for one in alone if isinstance(one, Trained)
        ]
        assert trial.top1 == pytest.approx(np.mean(tops), abs=0.03)  # stacked: other last digits
        assert trial.n == (validation.get("folds") or 2)
        assert trial.low is not None and trial.low <= trial.top1
    best = max(trial.top1 or 0 for trial in found.trials)
    assert found.trials[found.winner].top1 == best
    assert found.last == found.trials[found.winner].last
    lines = (tmp_path / "sweep" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    ended = [row["val_top1"] for row in rows if row["epoch"] == found.last["epoch"]]
    assert len(ended) == validation.get("folds", 1)
    assert np.mean(ended) == pytest.approx(found.last["top1"])
    assert all("member" not in row for row in rows)
    head = Head.load(tmp_path / "sweep")
    assert head.spec.hidden == found.trials[found.winner].setting["head.hidden"]


def test_the_head_is_that_of_the_winners_first_seed(tmp_path: Path) -> None:
    head = {"hidden": [16], "norm": "layer"}
    plan = swept({"grid": {"optimizer.lr": [1e-5, 0.01]}}, head=head)
    found = run_sweep(tmp_path / "sweep", plan)
    assert found.winner == 1
    (_, own) = settings_of(plan, "s")
    alone = run_train(tmp_path / "alone", own.schedule)
    saved = Head.load(tmp_path / "sweep")
    np.testing.assert_allclose(
        saved.predict_proba(VECTORS["none"]), alone.head.predict_proba(VECTORS["none"]), atol=1e-3
    )


def test_a_killed_sweep_does_not_train_what_is_done(tmp_path: Path) -> None:
    whole = run_sweep(tmp_path / "whole")
    rows: list[Any] = []

    def kill(row: Any) -> None:
        rows.append(row)
        if len(rows) == 10:  # the first stack has 2 settings x 2 seeds x 2 epochs
            raise Killed

    with pytest.raises(Killed):
        run_sweep(tmp_path / "killed", on_epoch=kill)
    first = tmp_path / "killed" / "sweep" / "1" / "trials.json"
    before = first.stat().st_mtime_ns
    seen: list[Any] = []
    assert run_sweep(tmp_path / "killed", on_epoch=seen.append) == whole
    assert first.stat().st_mtime_ns == before
    assert len(seen) == 16


def test_trials_of_another_sweep_are_not_taken(tmp_path: Path) -> None:
    run_sweep(tmp_path)
    with pytest.raises(BadInput, match="trials of another sweep"):
        run_sweep(tmp_path, identity="others")


WILD = {"head": {"hidden": [16], "norm": "none"}, "optimizer": {"name": "sgd", "momentum": 0.0}}


def test_a_setting_that_diverges_is_marked_and_the_others_go_on(tmp_path: Path) -> None:
    found = run_sweep(tmp_path, swept({"grid": {"optimizer.lr": [1e30, 0.01]}}, **WILD))
    lost, won = found.trials
    assert (lost.diverged, lost.top1, lost.low, lost.best) == (1, None, None, None)
    assert (won.diverged, found.winner) == (0, 1)
    json.dumps([vars(trial) for trial in found.trials], allow_nan=False)


def test_where_all_diverge_the_sweep_says_so(tmp_path: Path) -> None:
    with pytest.raises(FeatureCacheError, match="every setting"):
        run_sweep(tmp_path, swept({"grid": {"optimizer.lr": [1e30, 1e31]}}, **WILD))


def test_the_interval_is_students() -> None:
    low, high = interval(np.array([0.5, 0.6, 0.7]))
    half = 4.302652729749464 * 0.1 / np.sqrt(3)  # t of 2 degrees of freedom, from a table
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half))
    assert interval(np.array([0.5])) == (None, None)


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        ([0.96, 1.0], (0.98 - 12.706204736 * 0.02, 1.0)),
        ([0.0, 0.04], (0.0, 0.02 + 12.706204736 * 0.02)),
        ([0.2, 0.8], (0.0, 1.0)),
        ([0.5, 0.52], (0.51 - 12.706204736 * 0.01, 0.51 + 12.706204736 * 0.01)),
        ([0.5], (None, None)),
    ],
)
def test_the_interval_of_an_accuracy_ends_at_0_and_1(
    scores: list[float], ends: tuple[float | None, float | None]
) -> None:
    assert interval(np.array(scores)) == pytest.approx(ends)


def test_the_interval_of_a_difference_ends_at_minus_1_and_1() -> None:
    assert interval(np.array([-0.2, 0.6]), least=-1) == (-1, 1)
    low, high = interval(np.array([-0.3, -0.2]), least=-1)
    assert (low, high) == pytest.approx((-0.25 - 12.706204736 * 0.05, -0.25 + 12.706204736 * 0.05))
