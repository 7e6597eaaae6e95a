"""Recipes: what they do, what they skip, and what is said before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats

from featurecache.cli import cli
from featurecache.errors import (
    BackboneUnavailable,
    BadInput,
    CannotRead,
    DamagedCache,
    DamagedRun,
    FeatureCacheError,
    NotCached,
    UnknownName,
)
from featurecache.features.store import Cache
from featurecache.heads import training
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.recipes import recipe_file
from featurecache.stages.recipes import run as stage
from featurecache.stages.recipes.recipe_file import read_recipe
from featurecache.stages.recipes.run import RecipeResult, run

pytestmark = pytest.mark.usefixtures("load_once")
Step = dict[str, Any]

FEATURIZE = {"backbone": "efficientnet_lite0", "input_size": 32, "policy": ["none", "color_1"]}
SCHEDULE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "head": {"hidden": []},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "batch_size": 8,
    "validation": {"split": "val"},
    "phases": [{"views": "none", "epochs": 2}],
}
STEPS: list[Step] = [
    {"featurize": FEATURIZE},
    {"train-head": {"schedule": "linear.yaml", "seeds": [0, 1, 2]}},
    {"train-head": {"schedule": "mlp.yaml", "seeds": [0, 1, 2]}},
    {"evaluate": {}},
    {"evaluate": {"view": "color_1", "tta": "none"}},
    {"ensemble": {"how": "mean"}},
]


@pytest.fixture
def write(tmp_path: Path, small_data: Path) -> Callable[..., Path]:
    """`write(steps)`: a recipe in a folder of its own, beside its schedules."""
    folder = tmp_path / "exp"
    folder.mkdir()
    (folder / "linear.yaml").write_text(yaml.safe_dump(SCHEDULE))
    mlp = SCHEDULE | {"head": {"hidden": [4]}, "phases": [{"views": "color_1", "epochs": 2}]}
    (folder / "mlp.yaml").write_text(yaml.safe_dump(mlp))

    def made(steps: Any = STEPS, **change: Any) -> Path:
        where = {"data": str(small_data), "cache": str(tmp_path / "c"), "runs": str(tmp_path / "r")}
        path = folder / "recipe.yaml"
        path.write_text(json.dumps({**where, "steps": steps, **change}))  # JSON is YAML
        return path

    return made


@pytest.fixture
def go(small_cache: Path, write: Callable[..., Path]) -> Callable[..., RecipeResult]:
    """Run the recipe of some steps on the small cache."""

    def call(steps: Any = STEPS, **given: Any) -> RecipeResult:
        return run(write(steps), **{"cache": small_cache, "workers": 0} | given)

    return call


def changed(place: int, name: str, **options: Any) -> list[Step]:
    """STEPS with other options in one of them; None takes an option out."""
    ((command, before),) = STEPS[place].items()
    after = {key: value for key, value in (before | options).items() if value is not None}
    return [*STEPS[:place], {name or command: after}, *STEPS[place + 1 :]]


# ---- what a recipe does ----


@pytest.mark.slow
def test_a_recipe_makes_what_is_missing_and_nothing_twice(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    given: dict[str, Any] = {"engine": "torch-cpu", "workers": 0}
    first = run(path, **given)
    assert (first.computed, first.hits) == (96, 0)
    assert {name: len(folders) for name, folders in first.runs.items()} == {
        "linear.yaml": 3,
        "mlp.yaml": 3,
    }
    assert len({*first.runs["linear.yaml"], *first.runs["mlp.yaml"]}) == 6
    assert all(Path(each).parent == tmp_path / "r" for each in first.runs["mlp.yaml"])

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(training, "train", refuse)
    second = run(path, **given)
    assert (second.computed, second.hits) == (0, 96)
    assert asdict(second) | {"seconds": 0, "computed": 0, "hits": 0} == asdict(first) | {
        "seconds": 0,
        "computed": 0,
        "hits": 0,
    }


def test_pictures_are_stored_once(write: Callable[..., Path]) -> None:
    path = write([{"augment": {"policy": ["none", "color_1"]}}])
    assert [(r.computed, r.hits) for r in (run(path, workers=0) for _ in "12")] == [
        (96, 0),
        (0, 96),
    ]
    with pytest.raises(BadInput, match=r"step 1, augment: .*colour"):
        run(write([{"augment": {"policy": "colour_1"}}]))


@pytest.mark.slow
def test_the_table_has_means_over_seeds(
    go: Callable[..., RecipeResult], small_data: Path, small_cache: Path
) -> None:
    ran = go()
    assert [(row["what"], row["view"], row["n"]) for row in ran.table] == [
        ("linear.yaml", "none", 3),
        ("mlp.yaml", "none", 3),
        ("linear.yaml", "color_1 + none", 3),
        ("mlp.yaml", "color_1 + none", 3),
        ("mean of linear.yaml, mlp.yaml", "none", 3),
    ]
    found = [
        evaluate(each, data=small_data, cache=small_cache, view="color_1", tta="none")
        for each in ran.runs["mlp.yaml"]
    ]
    tops = np.array([one.top1 for one in found])
    row = ran.table[3]
    assert row["top1"] == pytest.approx(tops.mean())
    assert row["top5"] == 1.0
    low, high = (
        stats.t.interval(0.95, 2, tops.mean(), stats.sem(tops))
        if np.ptp(tops)
        else (
            tops[0],
            tops[0],
        )
    )
    assert (row["low"], row["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    assert row["split"] == "val" and row["seconds"] >= 0
    assert any("errors of two members correlate" in note for note in ran.notes)


@pytest.mark.slow
def test_one_seed_is_the_schedules_own_and_its_interval_is_of_images(
    go: Callable[..., RecipeResult],
) -> None:
    ran = go([STEPS[0], {"train-head": {"schedule": "linear.yaml"}}, {"evaluate": None}])
    (row,) = ran.table
    assert row["n"] == 1
    assert row["low"] <= row["top1"] <= row["high"]
    assert row["low"] < row["high"]
    assert len(ran.runs["linear.yaml"]) == 1


@pytest.mark.slow
def test_the_seeds_of_one_schedule_are_an_ensemble(go: Callable[..., RecipeResult]) -> None:
    ran = go([*STEPS[:3], {"ensemble": {"of": ["mlp.yaml"], "how": "vote"}}])
    (row,) = ran.table
    assert row["what"] == "vote of the 3 seeds of mlp.yaml"
    assert (row["n"], row["top5"], row["seconds"]) == (1, None, None)


@pytest.mark.slow
def test_all_seeds_of_several_schedules_are_an_ensemble(go: Callable[..., RecipeResult]) -> None:
    single = {"train-head": {"schedule": "mlp.yaml"}}
    last = {"ensemble": {"of": ["linear.yaml", "mlp.yaml"], "how": "mean", "all_seeds": True}}
    (row,) = go([*STEPS[:2], single, last]).table
    assert row["what"] == "mean of the 4 runs of linear.yaml, mlp.yaml"
    assert row["n"] == 1


@pytest.fixture
def write_sweep(write: Callable[..., Path]) -> Callable[..., None]:
    def made(**change: Any) -> None:
        sweep = {"grid": {"optimizer.lr": [0.01, 0.1]}, "seeds": [0, 1]}
        schedule = SCHEDULE | {"sweep": sweep} | change
        (write().parent / "sweep.yaml").write_text(json.dumps(schedule))

    return made


SWEPT: list[Step] = [STEPS[0], {"train-head": {"schedule": "sweep.yaml"}}, {"evaluate": {}}]


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_setting(
    go: Callable[..., RecipeResult], write_sweep: Callable[..., None]
) -> None:
    write_sweep()
    ran = go(SWEPT)
    whats = [f"sweep.yaml: optimizer.lr {lr}" for lr in (0.01, 0.1)]
    assert [(row["what"], row["n"]) for row in ran.table] == [(what, 2) for what in whats]
    assert all(row["low"] <= row["top1"] <= row["high"] for row in ran.table)
    assert ran.trials == {}
    through = go([*SWEPT[:2], {"evaluate": {"view": "color_1"}}])
    assert [row["what"] for row in through.table] == ["sweep.yaml, its winner"]
    assert [t["setting"] for t in through.trials["sweep.yaml"]["trials"]] == [
        {"optimizer.lr": lr} for lr in (0.01, 0.1)
    ]


@pytest.mark.slow
def test_a_sweep_that_was_validated_elsewhere_has_a_row_for_its_winner(
    go: Callable[..., RecipeResult], write_sweep: Callable[..., None]
) -> None:
    write_sweep(validation={"fraction": 0.25}, sweep={"seeds": [0, 1]})
    ran = go(SWEPT)
    assert [row["what"] for row in ran.table] == ["sweep.yaml, its winner"]
    assert [trial["n"] for trial in ran.trials["sweep.yaml"]["trials"]] == [2]


def test_seeds_of_a_sweep_stand_in_the_sweep(
    go: Callable[..., RecipeResult], write_sweep: Callable[..., None]
) -> None:
    write_sweep()
    with pytest.raises(
        BadInput, match=r"step 2.*sweep\.yaml is a sweep; list the seeds in its schedule"
    ):
        go([STEPS[0], {"train-head": {"schedule": "sweep.yaml", "seeds": [1]}}])


def test_baselines_are_rows_of_the_table(
    go: Callable[..., RecipeResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurecache.heads import baselines as fits

    def large(*_: Any) -> Any:
        raise BadInput("ridge needs more memory")

    monkeypatch.setattr(fits, "ridge", large)
    monkeypatch.setattr(fits, "logistic", fits.neighbours)  # it takes seconds
    ran = go([STEPS[0], {"baselines": {"backbone": "efficientnet_lite0", "view": "color_1"}}])
    names = [row["what"].split(",")[0] for row in ran.table]
    assert names == ["logistic", "neighbours", "lda", "ncm", "random_features"]
    assert "baselines of efficientnet_lite0: no ridge: ridge needs more memory" in ran.notes
    for row in ran.table:
        assert row["what"].endswith(": efficientnet_lite0")
        assert (row["n"], row["view"]) == (1, "color_1")


@pytest.mark.slow
def test_files_beside_the_recipe_are_found_from_anywhere(
    go: Callable[..., RecipeResult], write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write().parent
    (folder / "flips.yaml").write_text("augmenters:\n  - Fliplr: {p: 0.5}\n")
    steps = [
        {"featurize": FEATURIZE | {"policy": ["none", "flips.yaml_2"]}},
        STEPS[1],
        {"evaluate": {"view": "flips.yaml_2"}},
    ]
    ran = run(write(steps), engine="torch-cpu", workers=0)
    views = {space.view for space in Cache(tmp_path / "c").spaces()}
    assert views == {"none", "flips_2"}
    assert ran.table[0]["view"] == str(folder / "flips.yaml_2")


def test_images_that_failed_are_listed_and_left_out(
    write: Callable[..., Path], write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    counts = {f"{split}/{name}": 4 for split in ("train", "val") for name in ("cat", "dog")}
    data = write_dataset(tmp_path / "images", counts)
    (data / "train/cat/bad.png").write_bytes(b"no picture")
    steps = [STEPS[0], STEPS[1], {"evaluate": {}}]
    ran = run(write(steps), data=data, engine="torch-cpu", workers=0)
    assert [row["path"] for row in ran.failed] == ["train/cat/bad.png"]
    assert any("1 image that could not be read" in note for note in ran.notes)


# ---- what is said before anything is done ----

BAD: list[tuple[Any, type[BadInput], str]] = [
    (changed(0, "feturize"), UnknownName, r"step 1: unknown step 'feturize'; nearest: featurize"),
    ([{"featurize": FEATURIZE, "evaluate": {}}], BadInput, "step 1: expected one command"),
    (changed(0, "", inputsize=32), BadInput, "step 1, featurize: inputsize.*nearest: input_size"),
    (changed(1, "", seed=0), BadInput, "step 2, train-head: seed.*nearest: seeds"),
    (changed(1, "", seeds=[]), BadInput, "seeds"),
    (changed(1, "", seeds=[1, 1]), BadInput, "listed twice"),
    (changed(1, "", seeds=[-1]), BadInput, "from 0 to"),
    (changed(1, "", seeds=["0"]), BadInput, "seeds.0"),
    (changed(1, "", schedule="liner.yaml"), UnknownName, "step 2, .* schedule 'liner.yaml'"),
    (changed(2, "", schedule="linear.yaml"), BadInput, "step 3.*is trained above"),
    (changed(0, "", policy=["none", "colour_1"]), UnknownName, r"step 1, .* nearest: color"),
    (changed(0, "", policy=["none"]), BadInput, "step 3.*makes view color_1 of .*lite0"),
    (changed(0, "", backbone="efficientnet_lite7"), UnknownName, "unknown backbone"),
    (changed(0, "", precision="f64"), UnknownName, "precision"),
    (changed(0, "", crop=2.0), BadInput, "crop"),
    (changed(0, "", store="f8"), BadInput, "step 1, featurize: store: unknown number format"),
    (changed(0, "", store="f16"), BadInput, r"step 1, featurize: store f16 is .*\(pooling none\)"),
    (changed(0, "", weights="w.h5"), BadInput, "step 1, featurize: weights .*w.h5: .h5 files"),
    (changed(0, "", seed=1), BadInput, "step 3.*makes view color_1"),
    (changed(3, "", split="vla"), UnknownName, "unknown split 'vla'; nearest: val"),
    (changed(3, "", view="color_2"), BadInput, "step 4.*makes view color_2"),
    (changed(5, "", how="median"), UnknownName, "unknown ensemble 'median'"),
    (changed(5, "", of=["lin.yaml"]), UnknownName, "unknown schedule.*nearest: linear.yaml"),
    (changed(5, "", of=["mlp.yaml", "mlp.yaml"]), BadInput, "listed twice"),
    (changed(2, "", seeds=[0]), BadInput, r"step 6.*\[3, 1\] seeds"),
    ([STEPS[0], {"evaluate": {}}], BadInput, "step 2, evaluate: there is no train-head"),
    ([STEPS[1], STEPS[0]], BadInput, "step 1.*no featurize step above"),
    ([STEPS[0], {"train-head": {"schedule": "mlp.yaml"}}, STEPS[5]], BadInput, "at least two runs"),
    (
        [STEPS[0], {"baselines": {"backbone": "efficientnet_lite1"}}],
        BadInput,
        "step 2, baselines.*lite1",
    ),
    (
        [STEPS[0], {"featurize": FEATURIZE | {"input_size": 40}}, STEPS[1]],
        BadInput,
        "holds 2 settings of backbone efficientnet_lite0.*input_size: 32 / 40",
    ),
    ([], BadInput, "steps"),
    ("none", BadInput, "steps"),
]


@pytest.mark.parametrize(("steps", "kind", "said"), BAD, ids=[said for _, _, said in BAD])
def test_a_bad_recipe_is_refused_before_any_work(
    steps: Any,
    kind: type[BadInput],
    said: str,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(stage, "featurize", refuse)
    monkeypatch.setattr(stage, "train_head", refuse)
    with pytest.raises(kind, match=f"(?s){said}"):
        run(write(steps))
    assert not (tmp_path / "c").exists() and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "error",
    [
        CannotRead("x", PermissionError(13, "denied")),
        DamagedRun("x: damaged"),
        DamagedCache("x: damaged"),
        BackboneUnavailable("x: no weights"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_before_the_first_step_names_its_step(
    error: FeatureCacheError, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(recipe_file, "load_backbone", fail)
    with pytest.raises(type(error), match=r"recipe\.yaml, step 1, featurize: x: "):
        run(write())


def test_an_error_of_a_step_names_it_and_keeps_commands_as_they_are(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise NotCached("give --input-size or --limit: `featurecache featurize --input-size 32`")

    monkeypatch.setattr(stage, "featurize", fail)
    said = "step 1, featurize: give input_size or --limit: `featurecache featurize --input-size 32`"
    with pytest.raises(NotCached, match=said):
        run(write())


PARTS: list[tuple[dict[str, Any], dict[str, Any], Any, str]] = [
    # validation of linear.yaml, of mlp.yaml, the last step, what is said
    ({"fraction": 0.1}, {"folds": 2}, {"of": ["linear.yaml"]}, "have no image in common"),
    ({"split": "val"}, {"split": "val"}, {}, "validated on images of split val"),
    ({"folds": 2}, {"folds": 2}, {"split": "train"}, "validated on images of split train"),
    ({"folds": 2}, {"folds": 2}, {"split": "held-out"}, "split held-out"),
    ({"split": "val"}, {"folds": 2}, {"split": "test"}, "of 2 splits, so none is held out by all"),
    (
        {"fraction": 0.1},
        {"folds": 2},
        {"of": ["linear.yaml"], "split": "held-out", "how": "vote"},
        "have no image in common",
    ),
    ({"folds": 13}, {"folds": 2}, {}, r"step 2.*class 'cat' has 12 images.*at least 13"),
]


@pytest.mark.parametrize(("linear", "mlp", "last", "said"), PARTS)
def test_a_stack_that_can_not_be_fitted_is_refused_before_any_work(
    linear: dict[str, Any],
    mlp: dict[str, Any],
    last: dict[str, Any],
    said: str,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begun(*_: Any, **__: Any) -> Any:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(stage, "featurize", begun)
    for name, validation in (("linear", linear), ("mlp", mlp)):
        path = tmp_path / "exp" / f"{name}.yaml"
        path.write_text(
            yaml.safe_dump(yaml.safe_load(path.read_text()) | {"validation": validation})
        )
    steps = [*STEPS[:3], {"ensemble": {"how": "stack"} | last}]
    with pytest.raises(BadInput, match=f"(?s){said}"):
        run(write(steps))
    steps[-1] = {"ensemble": last | {"how": "mean"}}  # of these nothing stands in the way
    if "at least 13" not in said and last.get("split") not in ("test", "held-out"):
        with pytest.raises(AssertionError, match="the work was begun"):
            run(write(steps))


def test_seeds_whose_fractions_meet_can_be_stacked(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: Any, **__: Any) -> Any:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(stage, "featurize", begun)
    path = tmp_path / "exp" / "linear.yaml"
    path.write_text(yaml.safe_dump(SCHEDULE | {"validation": {"fraction": 0.5}}))
    steps = [STEPS[0], changed(1, "", seeds=[0, 1])[1], {"ensemble": {"how": "stack"}}]
    with pytest.raises(AssertionError, match="the work was begun"):
        run(write(steps))


def test_what_would_be_written_twice_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "exp" / "other"
    folder.mkdir()
    (folder / "linear.yaml").write_text((tmp_path / "exp" / "linear.yaml").read_text())
    twice = {"train-head": {"schedule": "other/linear.yaml"}}
    with pytest.raises(BadInput, match=r"step 3.*trains the same runs as linear.yaml above"):
        run(write([STEPS[0], STEPS[1], twice]))
    with pytest.raises(BadInput, match=r"step 4.*report\.html is written by an earlier step"):
        run(write([STEPS[0], STEPS[1], {"report": {}}, {"report": {}}]))
    (tmp_path / "r").write_text("a file")
    with pytest.raises(BadInput, match=r"can't create .* give another folder as runs"):
        run(write())


def test_a_bad_schedule_of_a_recipe_is_named(write: Callable[..., Path]) -> None:
    path = write()
    (path.parent / "mlp.yaml").write_text(yaml.safe_dump(SCHEDULE | {"epoch": 3}))
    with pytest.raises(BadInput, match=r"mlp\.yaml: epoch: no such key"):
        read_recipe(path)


def test_settings_that_the_cache_holds_too_must_be_told_apart(
    write: Callable[..., Path], small_cache: Path
) -> None:
    steps = [{"featurize": FEATURIZE | {"input_size": 40}}, STEPS[1]]
    with pytest.raises(BadInput, match=r"cache holds 2 settings.*input_size"):
        run(write(steps), cache=small_cache)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "gpu"}, "device"),
        ({"engine": "onnx"}, "engine"),
        ({"workers": -1}, "workers"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_bad_arguments_are_refused(
    given: dict[str, Any], said: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(BadInput, match=said):
        run(write(), **given)


def test_no_such_recipe() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml"):
        run("nowhere.yaml")


# ---- the command ----


@pytest.mark.slow
def test_the_command_prints_one_table(
    write: Callable[..., Path], small_cache: Path, tmp_path: Path
) -> None:
    path = str(write(STEPS[:4]))
    words = ["run", path, "--cache", str(small_cache), "--runs", str(tmp_path / "other")]
    shown = CliRunner().invoke(cli, [*words, "--workers", "0", "--quiet"])
    assert shown.exit_code == 0
    assert shown.stdout.count("linear.yaml │") == 1 and "0 rows computed, 96 held" in shown.stdout
    printed = json.loads(CliRunner().invoke(cli, [*words, "--quiet", "--json"]).stdout)
    assert [row["what"] for row in printed["table"]] == ["linear.yaml", "mlp.yaml"]
    assert all(Path(each).parent == tmp_path / "other" for each in printed["runs"]["mlp.yaml"])


@pytest.mark.slow
def test_a_report_is_a_step(go: Callable[..., RecipeResult], tmp_path: Path) -> None:
    steps = [*STEPS[:4], {"report": {}}, {"report": {"name": "one.html", "of": ["mlp.yaml"]}}]
    found = go(steps)
    assert [note for note in found.notes if note.startswith("report: ")] == [
        f"report: {tmp_path / 'r' / name}" for name in ("report.html", "one.html")
    ]
    both = (tmp_path / "r" / "report.html").read_text()
    names = [Path(found.runs[name][0]).name for name in ("linear.yaml", "mlp.yaml")]
    assert all(f"<bdi>{name}</bdi>" in both for name in names)
    assert names[0] not in (tmp_path / "r" / "one.html").read_text()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"name": "../r.html"}, "step 3, report: name: "),
        ({"of": ["mlp.yml"]}, "unknown schedule 'mlp.yml'; nearest: "),
        ({"of": ["linear.yaml"] * 2}, "a schedule is listed twice"),
        ({"view": "spatial_1"}, "no featurize step above makes view spatial_1"),
        ({"split": "nope"}, "nope"),
    ],
)
def test_a_bad_report_is_refused_before_any_work(
    go: Callable[..., RecipeResult], tmp_path: Path, step: Step, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        go([*STEPS[:2], {"report": step}])
    assert not (tmp_path / "c").exists()
