"""Worth: on vectors made so that one policy truly helps, one harms, and one changes nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from featurecache.errors import BadInput, DamagedRun, NotCached, UnknownName
from featurecache.features.store import Cache
from featurecache.heads import stacks, training
from featurecache.heads.schedules import Schedule
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.images.views import find_view
from featurecache.stages.cache.gc import gc
from featurecache.stages.heads.worth import Worth, same_steps, worth
from featurecache.stages.heads.worth_ways import rates_of
from featurecache.study.gains import Gain
from featurecache.training import checkpoints
from tests.keys import vector_key

SCHEDULE: dict[str, Any] = {
    "backbone": "net",
    "head": {"hidden": [], "norm": "none", "dropout": 0.0},
    "optimizer": {"lr": 0.01},
    "validation": {"split": "val"},
    "phases": [
        {"views": "none", "epochs": 2},
        {"views": "spatial_1", "epochs": 3},
        {"views": "none", "epochs": 1},
    ],
}
# In training images `none` has a mark that gives the class away and is not in validation images; in
# spatial_1 the mark is of any class, so that it can't be learned. color_1 looks like another class.
# spatial_2 is none once more.
VIEWS = ("none", "spatial_1", "spatial_2", "color_1")
WIDTH = 16


class Killed(BaseException):
    """Not an Exception, like a KeyboardInterrupt."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made vectors of the digits. Not to be changed."""
    root = tmp_path_factory.mktemp("worth") / "cache"
    made = Cache(root)
    made.create()
    dataset = open_dataset("digits")
    items = [item for item in items_of(dataset.samples)[0] if item is not None]
    labels = np.array([sample.label for sample in dataset.samples])
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, WIDTH))

    def vectors(labels: np.ndarray, marks: np.ndarray) -> np.ndarray:
        seen = centres[labels] + 1.5 * rng.normal(size=(len(labels), WIDTH))
        return np.hstack([seen, 4.0 * marks]).astype(np.float32)

    marks = np.eye(10)[labels]
    marks[[sample.split != "train" for sample in dataset.samples]] = 0
    none = vectors(labels, marks)
    spatial = vectors(labels, np.eye(10)[rng.integers(0, 10, len(labels))])
    color = vectors((labels + 1) % 10, marks)
    shown = dict(zip(VIEWS, (none, spatial, none, color), strict=True))
    unique = {item: place for place, item in enumerate(items)}
    for view, array in shown.items():
        key = vector_key(find_view(view).key())
        places = list(unique.values())
        made.space(key, view, "net").commit(list(unique), {"features": array[places]}, {}, {}, 8.0)
    return root


@pytest.fixture
def weigh(tmp_path: Path, cache: Path) -> Callable[..., Worth]:
    """`worth` on the made vectors; `schedule` is what to change of SCHEDULE."""

    def call(schedule: dict[str, Any] | None = None, **given: Any) -> Worth:
        path = tmp_path / "curriculum.yaml"
        path.write_text(yaml.safe_dump(SCHEDULE | (schedule or {})))
        arguments = {"data": "digits", "cache": cache, "runs": tmp_path / "runs", "device": "cpu"}
        arguments |= {"seeds": 2, "lr_schedule": "constant"}
        return worth(path, **(arguments | given))

    return call


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each training was given, and how many steps of the optimizer it took."""
    seen: list[dict[str, Any]] = []
    train, step = training.train, stacks.Stack.step

    def stepped(*arguments: Any, **named: Any) -> Any:
        seen[-1]["steps"] += 1
        return step(*arguments, **named)

    def trained(*arguments: Any, **named: Any) -> Any:
        training_set, schedule, *_ = arguments
        (kept, held), *_ = training_set.pairs
        seen.append({"schedule": schedule, "kept": kept, "held": held, "steps": 0})
        return train(*arguments, **named)

    monkeypatch.setattr(stacks.Stack, "step", stepped)
    monkeypatch.setattr(training, "train", trained)
    return seen


def by_name(found: Worth) -> dict[str, Gain]:
    return {f"{way.policy} {way.order} {way.lr_schedule}": way for way in found.ways}


def timeless(found: Worth) -> list[Any]:
    return [(w.policy, w.order, w.lr_schedule, w.of_seeds, w.against_clean) for w in found.ways]


# ---- what it says ----


@pytest.mark.slow
def test_another_backbone(weigh: Callable[..., Worth]) -> None:
    plain = weigh(seeds=1)
    with pytest.raises(BadInput, match="backbone resnet18"):
        weigh(seeds=1, backbone="resnet18")
    elsewhere = weigh({**SCHEDULE, "backbone": "resnet18"}, seeds=1, backbone="net")
    assert [way.top1 for way in elsewhere.ways] == [way.top1 for way in plain.ways]


def test_augmentation_that_helps_is_worth_it(weigh: Callable[..., Worth]) -> None:
    found = weigh()
    ways = by_name(found)
    assert set(ways) == {f"{name} constant" for name in
                         ("clean written", "spatial written", "spatial shuffled")}  # fmt: skip
    helped = ways["spatial written constant"]
    assert helped.against_clean is not None and helped.against_clean.low > 0.02
    assert found.verdict.startswith("spatial gained ")
    assert "best: spatial" in found.verdict
    assert (found.images, found.epochs, found.seeds) == (359, 6, [0, 1])
    assert helped.views == ["none", "spatial_1"]
    assert len(helped.gained) == 3 and helped.gained[0]["difference"] > 0


@pytest.mark.slow
def test_augmentation_that_harms_is_not(weigh: Callable[..., Worth]) -> None:
    phases = [{"views": "none", "epochs": 2}, {"views": "color_1", "epochs": 4}]
    found = weigh({"phases": phases})
    harmed = by_name(found)["color written constant"]
    assert harmed.against_clean is not None and harmed.against_clean.high < -0.1
    assert found.verdict.startswith("color lost ")
    assert "best: clean under constant" in found.verdict
    (order,) = [way for way in found.ways if way.order == "shuffled"]
    assert harmed.against_shuffled is not None
    assert harmed.against_shuffled.difference == pytest.approx(harmed.top1 - order.top1)


@pytest.mark.slow
def test_a_view_that_changes_nothing_makes_exactly_no_difference(
    weigh: Callable[..., Worth],
) -> None:
    """So weights, order of rows, dropout and validation rows are those of clean, seed by seed."""
    head = {"hidden": [8], "norm": "batch", "dropout": 0.4}
    phases = [{"views": "none", "epochs": 1}, {"views": "spatial_2", "epochs": 1}]
    for validation in ({"split": "val"}, {"fraction": 0.2}, {"folds": 2}):
        found = weigh({"phases": phases, "head": head, "validation": validation})
        clean, same, other = found.ways
        assert same.of_seeds == other.of_seeds == clean.of_seeds
        for way in (same, other):
            assert way.against_clean is not None
            assert (way.against_clean.low, way.against_clean.high) == (0, 0)
        assert len(set(clean.of_seeds)) == 2  # another seed is another training


def test_of_several_policies_each_is_weighed_alone(
    weigh: Callable[..., Worth], trainings: list[dict[str, Any]]
) -> None:
    phases = [{"views": "spatial_1", "epochs": 1}, {"views": "color_1", "epochs": 1}]
    found = weigh({"phases": phases}, seeds=1)
    assert [(way.policy, way.order, way.views) for way in found.ways] == [
        ("clean", "written", ["none"]),
        ("spatial+color", "written", ["spatial_1", "color_1"]),
        ("spatial+color", "shuffled", ["color_1", "spatial_1"]),
        ("spatial", "written", ["spatial_1"]),
        ("color", "written", ["color_1"]),
    ]
    top1 = {way.policy: way.top1 for way in found.ways if way.order == "written"}
    assert top1["spatial"] > top1["clean"] > top1["color"]
    assert "with one seed the intervals cover images only" in found.notes[0]
    assert len(trainings) == 5


@pytest.mark.slow
def test_policies_that_are_given_take_the_place_of_the_written_one(
    weigh: Callable[..., Worth],
) -> None:
    found = weigh(policy=["spatial_2", "color"])
    names = [way.policy for way in found.ways if way.order == "written"]
    assert names == ["clean", "spatial", "spatial_2", "color"]
    ways = by_name(found)
    assert ways["spatial_2 written constant"].views == ["none", "spatial_2"]
    assert ways["spatial_2 written constant"].of_seeds == ways["clean written constant"].of_seeds
    assert ways["color written constant"].views == ["none", "color_1"]


@pytest.mark.slow
def test_every_learning_rate_schedule_has_its_own_clean(weigh: Callable[..., Worth]) -> None:
    found = weigh({"lr_schedule": {"name": "cosine", "over": "phase"}}, lr_schedule=())
    rates = list(dict.fromkeys(way.lr_schedule for way in found.ways))
    assert rates == ["constant", "cosine", "{name: cosine, over: phase}"]
    clean = {way.lr_schedule: way for way in found.ways if way.policy == "clean"}
    assert all(way.against_clean is None for way in clean.values())
    best = max(clean.values(), key=lambda way: way.top1)
    for way in found.ways:
        expected = way.top1 - clean[way.lr_schedule].top1
        assert (way.against_clean.difference if way.against_clean else 0) == pytest.approx(expected)
        beside = way.against_best_clean.difference if way.against_best_clean else 0
        assert beside == pytest.approx(way.top1 - best.top1)
    assert sum(way.best for way in found.ways) == 1
    written = [way for way in found.ways if (way.policy, way.order) == ("spatial", "written")]
    assert len({way.top1 for way in written}) > 1
    assert all(f"under {rate}" in found.verdict for rate in rates)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [{"head": {"kind": "ridge"}}, {"head": {"hidden": []}, "optimizer": {"name": "lbfgs"}}],
)
def test_a_head_that_is_solved_has_no_learning_rate_schedules_to_compare(
    changed: dict[str, Any],
) -> None:
    plan = {"backbone": "a", "phases": [{"views": "color_1", "epochs": 1}]}
    assert list(rates_of(Schedule.model_validate(plan).as_json(), (), Schedule)) == [
        "constant", "cosine",
    ]  # fmt: skip
    solved = Schedule.model_validate(plan | changed).as_json()
    assert rates_of(solved, (), Schedule) == {"constant": {}}


def test_a_learning_rate_schedule_is_tried_once(weigh: Callable[..., Worth]) -> None:
    for own in ("constant", "cosine"):
        found = weigh({"lr_schedule": own}, lr_schedule=(), seeds=1)
        assert {way.lr_schedule for way in found.ways} == {"constant", "cosine"}
    found = weigh(lr_schedule=["{name: step, every: 2}", "cosine", "{name: cosine}"], seeds=1)
    assert {way.lr_schedule for way in found.ways} == {"{name: step, every: 2}", "cosine"}


@pytest.mark.slow
def test_all_trainings_have_the_same_steps_and_rows(
    weigh: Callable[..., Worth], trainings: list[dict[str, Any]]
) -> None:
    phases = [
        {"views": "none", "epochs": 2, "order": {"by": "random", "start": 0.3}},
        {"views": {"none": 0.5, "spatial_1": 0.5}, "epochs": 1},
        {"views": "none", "ramp_to": "color_1", "epochs": 2},
    ]
    schedule = {"phases": phases, "early_stopping": {"patience": 1}, "validation": {"folds": 3}}
    found = weigh(schedule, lr_schedule=["constant", "cosine"])
    assert "early_stopping is ignored" in found.notes[0]
    assert len(trainings) == len(found.ways) * 2
    assert len({each["steps"] for each in trainings}) == 1
    assert trainings[0]["steps"] > 0
    assert len({each["held"].tobytes() + each["kept"].tobytes() for each in trainings}) == 1
    assert {each["schedule"].seed for each in trainings} == {0, 1}
    assert found.images == len(open_dataset("digits").split("train"))


@pytest.mark.slow
def test_seeds_have_orders_of_their_own(
    weigh: Callable[..., Worth], trainings: list[dict[str, Any]]
) -> None:
    phases = [{"views": view, "epochs": 1} for view in ("none", "spatial_1", "color_1", "none")]
    weigh({"phases": phases}, seeds=5)
    orders: dict[int, set[tuple[str, ...]]] = {}
    for each in trainings:
        views = tuple(view for phase in each["schedule"].phases for view in phase.views)
        orders.setdefault(each["schedule"].seed, set()).add(views)
    written = ("none", "spatial_1", "color_1", "none")
    assert all(written in seen for seen in orders.values())
    assert len({frozenset(seen) for seen in orders.values()}) > 1


def test_views_made_together_share_what_they_cost(weigh: Callable[..., Worth]) -> None:
    found = weigh()
    assert {cost["view"] for cost in found.views} == {"none", "spatial_1"}
    (clean, *others) = found.ways
    (seconds,) = (cost["seconds"] for cost in found.views if cost["view"] == "spatial_1")
    assert 0 < seconds <= 8 and clean.views_seconds == 0
    assert all(way.views_seconds == seconds for way in others)


# ---- what is kept ----


@pytest.mark.slow
def test_the_same_is_never_trained_twice(
    weigh: Callable[..., Worth], trainings: list[dict[str, Any]]
) -> None:
    first = weigh()
    done = len(trainings)
    assert weigh() == first and len(trainings) == done
    more = weigh(seeds=3)
    assert len(trainings) == done + 3  # a seed more, in three ways
    assert more.run == first.run
    assert [way.of_seeds[:2] for way in more.ways] == [way.of_seeds for way in first.ways]
    weigh(lr_schedule=["constant", "cosine"])
    assert len(trainings) == done + 3 + 6
    other = weigh({"batch_size": 128})
    assert other.run != first.run and len(trainings) == done + 3 + 6 + 6
    kept = json.loads((Path(first.run) / "worth.json").read_text())
    assert [way["policy"] for way in kept["ways"]] == ["clean", "spatial", "spatial"] * 2
    assert {path.name for path in Path(first.run).iterdir()} == {"worth.json", "trained"}


@pytest.mark.slow
def test_two_at_once_train_nothing_twice(
    weigh: Callable[..., Worth], trainings: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The second begins in the first training of the first, and waits for it."""
    begun: list[Future[Worth]] = []
    waited = threading.Event()

    def wait(done: int, total: int, what: str) -> None:
        if "waiting for process" in what:
            waited.set()

    with ThreadPoolExecutor(1) as pool:

        def begin(done: int, total: int, what: str) -> None:
            if what.startswith("worth") and not begun:
                begun.append(pool.submit(weigh, progress=wait))
                assert waited.wait(60)

        first = weigh(progress=begin)
        second = begun[0].result()
    assert len(trainings) == 6
    assert timeless(first) == timeless(second)
    assert not list((tmp_path / "runs").rglob("*.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 9, 13])
def test_a_killed_command_goes_on(
    weigh: Callable[..., Worth],
    trainings: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    after: int,
) -> None:
    """Killed in an epoch of the first, the second and the third training, of 6 epochs each."""
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    whole = weigh(runs=tmp_path / "whole")
    steps = trainings[0]["steps"]
    trainings.clear()
    epochs = 0

    def kill(done: int, total: int, what: str) -> None:
        nonlocal epochs
        epochs += what.startswith("worth") and done % 6 != 0
        if epochs == after - after // 6:
            raise Killed

    with pytest.raises(Killed):
        weigh(progress=kill)
    begun = len(trainings)
    assert begun == after // 6 + 1
    assert not list((tmp_path / "runs").glob("*/worth.json"))
    trainings.clear()
    resumed = weigh()
    assert timeless(resumed) == timeless(whole)
    assert len(trainings) == 6 - (begun - 1)
    assert 0 < trainings[0]["steps"] < steps  # from its checkpoint
    assert not list(Path(resumed.run).glob("training-*"))


@pytest.mark.slow
def test_what_a_kill_left_of_a_training_that_was_kept_is_cleared(
    weigh: Callable[..., Worth], tmp_path: Path
) -> None:
    first = weigh()
    key = next((Path(first.run) / "trained").iterdir()).stem
    (Path(first.run) / f"training-{key}").mkdir()
    assert weigh() == first
    assert not list(Path(first.run).glob("training-*"))


@pytest.mark.slow
def test_a_file_that_is_damaged_is_named(weigh: Callable[..., Worth]) -> None:
    found = weigh()
    path = next((Path(found.run) / "trained").iterdir())
    value = json.loads(path.read_text())
    for content in ("{", json.dumps(value | {"right": value["right"][2:]})):
        path.write_text(content)
        with pytest.raises(DamagedRun, match=rf"{path.name}: .*delete it and rerun"):
            weigh()
    path.unlink()
    assert timeless(weigh()) == timeless(found)


def test_gc_spares_what_it_stands_on(
    weigh: Callable[..., Worth], cache: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    found = weigh(cache=own)
    (candidate,) = gc(own, policy="spatial_1", runs=tmp_path / "elsewhere")
    assert str(Path(found.run).absolute()) in candidate.runs and candidate.kept


# ---- bad input ----


@pytest.mark.parametrize(
    ("schedule", "given", "error", "said"),
    [
        ({}, {"seeds": 0}, BadInput, "seeds 0: must be at least 1"),
        ({"seed": 2**32 - 2}, {"seeds": 3}, BadInput, "every seed below"),
        ({}, {"device": "gpu"}, UnknownName, "unknown device 'gpu'"),
        ({}, {"policy": "none"}, BadInput, "clean training is always compared"),
        ({}, {"policy": "colr_1"}, UnknownName, "unknown policy 'colr'; nearest: color"),
        ({}, {"policy": "color_2"}, NotCached, "1,797 images of view color_2; compute them with"),
        ({}, {"lr_schedule": "cosin"}, BadInput, "--lr-schedule cosin: lr_schedule"),
        ({}, {"lr_schedule": "{name: step, evry: 2}"}, BadInput, "nearest: every"),
        ({}, {"lr_schedule": "{"}, BadInput, "--lr-schedule: not valid YAML"),
        ({"phases": [{"views": "none", "epochs": 3}]}, {}, BadInput, "no augmentation to compare"),
        ({"sweep": {"seeds": [0, 1]}}, {}, BadInput, "sweep: worth compares trainings of one"),
        ({"validation": {"split": "vall"}}, {}, UnknownName, ".yaml: .*unknown split 'vall'"),
        ({"validation": {"split": "train"}}, {}, BadInput, "'train' is the training split"),
        ({"backbone": "efficientnet_lite9"}, {}, UnknownName, ".yaml: .*: .*efficientnet_lite0"),
    ],
)
def test_bad_input_is_said_before_any_work(
    weigh: Callable[..., Worth],
    tmp_path: Path,
    schedule: dict[str, Any],
    given: dict[str, Any],
    error: type[BadInput],
    said: str,
) -> None:
    with pytest.raises(error, match=said) as caught:
        weigh(schedule, **given)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_phases_that_show_the_same_have_no_other_order(weigh: Callable[..., Worth]) -> None:
    found = weigh({"phases": [{"views": ["none", "spatial_1"], "epochs": 2}]})
    assert [way.order for way in found.ways] == ["written", "written"]
    assert found.notes == ["all epochs use the same views, so there is no other order of phases"]


def test_a_schedule_is_taken_as_it_is_but_for_its_end() -> None:
    from featurecache.heads.schedules import Schedule

    plan = Schedule.model_validate(SCHEDULE)
    assert same_steps(plan, Path("x")) == (plan.model_dump(mode="json", exclude_none=True), [])


@pytest.mark.slow
def test_the_command_prints_a_narrow_table_and_one_sentence(
    weigh: Callable[..., Worth], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from featurecache.cli import cli

    made = weigh()
    words = ["worth", "--schedule", tmp_path / "curriculum.yaml", "--data", "digits"]
    words += ["--cache", cache, "--runs", tmp_path / "runs", "--seeds", 2, "--quiet"]
    words += ["--lr-schedule", "constant"]
    capsys.readouterr()
    cli.main([*map(str, words), "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"] == made.verdict and len(shown["ways"]) == 3
    cli.main([*map(str, words)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [made.verdict, f"run: {made.run}"]
    table = [line for line in lines if line.startswith("│")]
    assert max(map(len, lines[:-2])) <= 100 and len(table) == 3
    assert sum("best" in line for line in table) == 1
