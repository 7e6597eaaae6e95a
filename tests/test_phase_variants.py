"""The phases of a schedule made into those of what it is compared with."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.heads import phase_variants
from featurecache.heads.schedules import Schedule

VIEWS = ["none", "spatial_1", "spatial_2", "color_1"]


@st.composite
def phases(draw: Any) -> phase_variants.Phases:
    """The phases of a schedule as it writes them, ramps and rates of their own among them."""
    written = []
    for _ in range(draw(st.integers(1, 5))):
        phase: dict[str, Any] = {
            "views": draw(st.lists(st.sampled_from(VIEWS), min_size=1, unique=True)),
            "epochs": draw(st.integers(2, 4)),
        }
        if draw(st.booleans()):
            phase["ramp_to"] = draw(st.sampled_from(VIEWS))
        if draw(st.booleans()):
            phase["optimizer"] = {"lr": draw(st.sampled_from([0.1, 0.01]))}
        written.append(phase)
    plan = Schedule.model_validate({"backbone": "b", "phases": written})
    found: phase_variants.Phases = plan.model_dump(mode="json", exclude_none=True)["phases"]
    return found


def shown(phases: phase_variants.Phases) -> list[Any]:
    """What every epoch shows, without the optimizer."""
    plan = Schedule.model_validate({"backbone": "b", "phases": phases})
    return [at.phase.shares(at.in_phase) for at in plan.plan()]


@settings(max_examples=60)
@given(phases())
def test_clean_phases_show_none_for_as_long(written: phase_variants.Phases) -> None:
    clean = phase_variants.clean(written)
    assert (
        phase_variants.used_views(clean) == ["none"] and phase_variants.augmented_views(clean) == []
    )
    assert len(shown(clean)) == len(shown(written))
    assert [p["optimizer"] for p in clean] == [p["optimizer"] for p in written]


@settings(max_examples=60)
@given(phases(), st.sampled_from([["spatial_1", "spatial_2"], ["color_1"], ["new_1", "new_2"]]))
def test_through_a_policy_as_much_is_augmented_as_before(
    written: phase_variants.Phases, views: list[str]
) -> None:
    made = phase_variants.with_views(written, views)
    assert set(phase_variants.augmented_views(made)) <= set(views)
    before = [epoch.get("none", 0) for epoch in shown(written)]
    after = [epoch.get("none", 0) for epoch in shown(made)]
    assert all(abs(a - b) < 1e-9 for a, b in zip(before, after, strict=True))
    assert phase_variants.with_views(made, views) == made


def test_through_a_policy_its_own_views_stay_and_others_are_its_draws_in_turn() -> None:
    seen = ["none", "color_1", "spatial_2", "color_2", "noise_1"]
    written = [{"views": {view: 1.0}, "epochs": 1} for view in seen]
    made = phase_variants.with_views(written, ["spatial_2", "spatial_3"])
    expected = ["none", "spatial_2", "spatial_2", "spatial_3", "spatial_2"]
    assert [view for phase in made for view in phase["views"]] == expected
    mixture = [{"views": {"none": 0.5, "spatial_1": 0.25, "color_1": 0.25}, "epochs": 1}]
    (phase,) = phase_variants.with_views(mixture, ["color_1"])
    assert phase["views"] == {"none": 0.5, "color_1": 0.5}


@settings(max_examples=100)
@given(phases(), st.integers(0, 2**32 - 1))
def test_another_order_shows_the_same_otherwise(written: phase_variants.Phases, seed: int) -> None:
    other = phase_variants.shuffled(written, seed)
    content = [{n: v for n, v in p.items() if n not in ("optimizer", "epochs")} for p in written]
    if other is None:
        assert all(phase == content[0] for phase in content)
        return
    assert other == phase_variants.shuffled(written, seed)
    assert [p["optimizer"] for p in other] == [p["optimizer"] for p in written]

    def moved(phases: phase_variants.Phases) -> list[str]:
        return [repr(sorted((n, v) for n, v in p.items() if n != "optimizer")) for p in phases]

    assert sorted(moved(other)) == sorted(moved(written))
    assert moved(other) != moved(written)


def test_every_other_order_comes_up() -> None:
    written = [{"views": {v: 1.0}, "epochs": 1} for v in ("none", "spatial_1", "none")]
    orders = set()
    for seed in range(40):
        order = phase_variants.shuffled(written, seed)
        assert order is not None
        orders.add(tuple(view for phase in order for view in phase["views"]))
    assert orders == {("spatial_1", "none", "none"), ("none", "none", "spatial_1")}


def test_phases_that_show_the_same_have_no_other_order() -> None:
    one = {"views": {"none": 0.5, "color_1": 0.5}}
    assert phase_variants.shuffled([one | {"epochs": 2}], 0) is None
    rates = [one | {"epochs": n, "optimizer": {"lr": 0.1 / n}} for n in (1, 2)]
    assert phase_variants.shuffled(rates, 0) is None
