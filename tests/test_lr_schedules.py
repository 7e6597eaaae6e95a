"""Learning-rate schedules and early stopping, as functions of the losses so far."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.heads.schedules import Schedule
from featurecache.training.lr_schedules import lr_factor, plateaus
from featurecache.training.stopping import lowest_index, should_stop

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0]), max_size=30)


def schedule(lr_schedule: Any, epochs: tuple[int, ...] = (4, 6)) -> Schedule:
    phases = [{"views": "none", "epochs": n} for n in epochs]
    return Schedule.model_validate({"backbone": "b", "lr_schedule": lr_schedule, "phases": phases})


def factors(plan: Schedule, through: float = 0.0, losses: tuple[float, ...] = ()) -> list[float]:
    epochs = plan.plan()
    return [
        lr_factor(
            plan.lr_schedule,
            at.epoch,
            len(epochs),
            at.in_phase,
            at.phase.epochs,
            through,
            losses[: at.epoch - 1],
        )
        for at in epochs
    ]


def test_constant_is_none() -> None:
    assert factors(schedule("constant")) == factors(schedule(None)) == [1.0] * 10


def test_one_cosine_over_the_training() -> None:
    expected = [(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]
    assert factors(schedule("cosine")) == pytest.approx(expected)
    assert factors(schedule("cosine"), through=1.0)[-1] == pytest.approx(0.0)


def test_a_cosine_over_each_phase() -> None:
    expected = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    expected += [(1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(6)]
    assert factors(schedule({"name": "cosine", "over": "phase"})) == pytest.approx(expected)


@given(st.floats(0, 1))
def test_a_cosine_goes_on_between_epochs(through: float) -> None:
    plan = schedule("cosine")
    for earlier, now, later in zip(
        factors(plan), factors(plan, through), factors(plan, 1.0), strict=True
    ):
        assert earlier >= now >= later


def test_steps() -> None:
    plan = schedule({"name": "step", "every": 3, "factor": 0.5})
    assert factors(plan) == [1.0] * 3 + [0.5] * 3 + [0.25] * 3 + [0.125]


def test_a_plateau_is_patience_epochs_without_a_lower_loss() -> None:
    plan = schedule({"name": "plateau", "patience": 2, "factor": 0.1})
    losses = (3.0, 2.0, 2.0, 2.5, 1.0, 1.1, 1.2, 1.3, 1.4, 0.5)
    #         low  low  1    2    low  1    2    1    2
    expected = [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert factors(plan, losses=losses) == pytest.approx(expected)


@given(LOSSES, st.integers(1, 5))
def test_plateaus_never_come_back_and_stopping_is_the_first_of_them(
    losses: list[float], patience: int
) -> None:
    counts = [plateaus(losses[:n], patience) for n in range(len(losses) + 1)]
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(counts))
    ends = [n for n in range(len(losses) + 1) if should_stop(losses[:n], patience)]
    if ends:
        assert ends[0] == counts.index(1)
        assert lowest_index(losses[: ends[0]]) == ends[0] - 1 - patience
    else:
        assert counts[-1] == 0


def test_the_lowest_of_equals_is_the_earliest() -> None:
    assert lowest_index([2.0, 1.0, 1.0]) == 1
    assert not should_stop([], 1)
