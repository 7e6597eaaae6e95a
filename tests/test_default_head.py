"""train-head without a schedule, its overrides, and the logistic regression behind it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

import featurecache
from featurecache.cli import cli
from featurecache.errors import BadInput
from featurecache.heads import logistic
from featurecache.heads.logistic import Solver, choose_penalty
from featurecache.heads.mlp import Head
from featurecache.heads.schedules import Schedule, find_schedule, read_schedule
from featurecache.runs.record import read_run, schedule_of
from featurecache.runs.training_warnings import phase_warnings
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.ensemble import ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head
from featurecache.stages.looking.report import report
from featurecache.training.epoch_metrics import Epoch

pytestmark = pytest.mark.usefixtures("load_once")
Write = Callable[..., Path]


def clouds(rows: int, classes: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % classes
    x = rng.standard_normal((classes, width))[y] + rng.standard_normal((rows, width))
    return (5 * x + 3).astype(np.float32), y


@pytest.fixture(scope="module")
def default_run(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, small_cache: Path
) -> Path:
    out = tmp_path_factory.mktemp("default") / "run"
    train_head(data=small_data, cache=small_cache, out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def unsplit(
    tmp_path_factory: pytest.TempPathFactory, write_dataset: Write, tiny: dict[str, Any]
) -> tuple[Path, Path]:
    """A dataset of class folders alone, and its cache."""
    folder = tmp_path_factory.mktemp("unsplit")
    data = write_dataset(folder / "data", {"cat": 20, "dog": 20})
    featurize(data, cache=folder / "cache", **tiny)
    return data, folder / "cache"


# ---- the head that is chosen ----


@pytest.mark.slow
def test_a_run_without_a_schedule_has_one_that_can_be_read(default_run: Path) -> None:
    record = read_run(default_run)
    schedule = schedule_of(record)
    assert schedule.validation.split == "val"
    assert {"none", "color_1"} >= set(schedule.views())
    assert read_schedule(default_run / "schedule.yaml") == schedule
    assert record.candidates is not None and record.chosen is not None
    heads = [(c["head"], sorted(c["views"])) for c in record.candidates]
    assert heads == [
        ("logistic", ["none"]), ("logistic", ["color_1", "none"]),
        ("network", ["none"]), ("network", ["color_1", "none"]),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_second_call_finds_the_run(
    tmp_path: Path, small_data: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"data": small_data, "cache": small_cache, "runs": tmp_path}
    first = train_head(**options)
    weights = Path(first.run, "head.safetensors").stat()
    assert Path(first.run).name.startswith("default-")
    assert train_head(**options) == first
    assert Path(first.run, "head.safetensors").stat().st_mtime_ns == weights.st_mtime_ns


@pytest.mark.slow
def test_evaluate_ensemble_and_report_take_the_run(
    tmp_path: Path, default_run: Path, small_runs: dict[str, Path], small_data: Path,
    small_cache: Path,
) -> None:  # fmt: skip
    where: dict[str, Any] = {"data": small_data, "cache": small_cache}
    found = evaluate(default_run, **where)
    assert found.top1 == read_run(default_run).last["top1"]  # type: ignore[index]
    assert ensemble([default_run, small_runs["split"]], **where).members[0]["top1"] == found.top1
    page = report([default_run], **where, out=tmp_path / "report.html")
    assert Path(page.path).stat().st_size > 1000


@pytest.mark.slow
def test_without_a_val_split_the_measured_head_and_the_final_one_differ(
    tmp_path: Path, unsplit: tuple[Path, Path]
) -> None:
    data, cache = unsplit
    steps: list[tuple[int, int, str]] = []
    trained = train_head(
        data=data, cache=cache, out=tmp_path / "run", device="cpu",
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    of_final = [step for step in steps if step[2] == "train-head (on all images)"]
    assert of_final[-1][0] == of_final[-1][1] > of_final[0][0]
    assert [step[0] for step in steps if step[2].startswith("train-head")] == sorted(
        step[0] for step in steps if step[2].startswith("train-head")
    )
    run = Path(trained.run)
    assert schedule_of(read_run(run)).validation.fraction == 0.2
    where: dict[str, Any] = {"data": data, "cache": cache}
    held_out = evaluate(run, split="held-out", **where)
    assert held_out.n == 8 and not held_out.notes
    assert held_out.top1 == trained.last["top1"]
    of_all = evaluate(run, split="train", **where)
    assert of_all.notes and "40 of these 40 images were trained on" in of_all.notes[0]
    measured, final = Head.load(run / "validated"), Head.load(run)
    x = np.eye(measured.n_features_in_, dtype=np.float32)
    assert not np.allclose(measured.predict_proba(x), final.predict_proba(x))
    assert not list(run.glob("choice")) and not list(run.glob("final"))


def test_classes_of_a_few_images_can_be_trained_on(
    tmp_path: Path, write_dataset: Write, tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"cat": 3, "dog": 3, "owl": 2})
    featurize(data, cache=tmp_path / "cache", **tiny)
    trained = train_head(data=data, cache=tmp_path / "cache", out=tmp_path / "run")
    assert len(trained.candidates) == 1


def test_several_cached_backbones_need_a_name(
    tmp_path: Path, small_data: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="holds no vectors; compute them with: featurecache feat"):
        train_head(data=small_data, cache=tmp_path / "none")
    from featurecache.features.store import Cache

    spaces = Cache(small_cache).spaces()
    spaces[0].backbone = "other"
    monkeypatch.setattr(Cache, "spaces", lambda self: spaces)
    with pytest.raises(BadInput, match="give --backbone efficientnet_lite0, --backbone other"):
        train_head(data=small_data, cache=small_cache)


# ---- the logistic regression beside every head ----


@pytest.mark.slow
def test_every_head_is_compared_with_logistic_regression(
    tmp_path: Path, small_runs: dict[str, Path], small_data: Path, small_cache: Path
) -> None:
    where: dict[str, Any] = {"data": small_data, "cache": small_cache}
    for name, split in (("split", "val"), ("fraction", "held-out"), ("folds", "held-out")):
        record = read_run(small_runs[name])
        found = evaluate(small_runs[name], split=split, **where)
        assert found.baseline is not None and record.baseline is not None
        assert found.baseline["top1"] == pytest.approx(record.baseline["top1"])
        assert found.baseline["both"] + found.baseline["only_other"] == round(
            found.baseline["top1"] * found.n
        )
    shown = CliRunner().invoke(
        cli, ["evaluate", str(small_runs["split"]), "--data", str(small_data), "--cache",
              str(small_cache)]
    )  # fmt: skip
    assert "logistic regression on the same vectors" in shown.output
    page = report([small_runs["split"]], **where, out=tmp_path / "report.html")
    assert "Logistic regression was fitted to the same vectors" in Path(page.path).read_text()


@pytest.mark.slow
def test_runs_on_the_same_rows_share_one_fit(
    tmp_path: Path, small_data: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, Any] = {"data": small_data, "cache": small_cache, "runs": tmp_path}
    first = train_head(epochs=1, **where)
    from featurecache.heads import baseline_heads

    monkeypatch.setattr(baseline_heads, "choose_penalty", None)
    second = train_head(epochs=2, **where)
    assert first.run != second.run and first.baseline == second.baseline is not None
    heads = [Path(run, "baseline/head.safetensors").read_bytes() for run in (first.run, second.run)]
    assert heads[0] == heads[1]


def test_an_older_run_has_no_baseline(
    tmp_path: Path, small_runs: dict[str, Path], small_data: Path, small_cache: Path
) -> None:
    run = shutil.copytree(small_runs["split"], tmp_path / "run")
    shutil.rmtree(run / "baseline")
    assert evaluate(run, data=small_data, cache=small_cache).baseline is None


# ---- what did harm ----


@pytest.mark.slow
def test_harmful_phases_and_views_are_named(
    tmp_path: Path, write_dataset: Write, tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 20, "train/owl": 20, "val/cat": 6,
                                             "val/owl": 6})  # fmt: skip
    (tmp_path / "black.yaml").write_text("augmenters: [Multiply: {mul: 0.0}]\n")
    view = f"{tmp_path / 'black.yaml'}_1"
    where: dict[str, Any] = {"data": data, "cache": tmp_path / "cache"}
    featurize(policy=["none", view], **where, **tiny)
    path = tmp_path / "harm.yaml"
    path.write_text(
        "backbone: efficientnet_lite0\nvalidation: val\nhead: {hidden: []}\nbatch_size: 4\n"
        "optimizer: {lr: 0.01}\nphases:\n  - {views: none, epochs: 8}\n"
        f"  - {{views: {view}, epochs: 8, optimizer: {{lr: 1.0}}}}\n"
    )
    notes = train_head(path, out=tmp_path / "run", **where).notes
    assert any("view black_1 is destructive" in note for note in notes)
    assert train_head(path, out=tmp_path / "run", **where).notes == notes
    page = report([tmp_path / "run"], **where, out=tmp_path / "report.html")
    assert "view black_1 is destructive" in Path(page.path).read_text()


def test_a_phase_that_lowers_validation_accuracy_is_named() -> None:
    phases = [{"views": view, "epochs": 2} for view in ("none", "spatial_1", "color_1")]
    schedule = Schedule.model_validate({"backbone": "a", "phases": phases})
    top1 = (0.5, 0.8, 0.7, 0.6, 0.7, 0.795)  # the last phase is lower by less than a point
    epochs = [
        Epoch(epoch=n, fold=1, phase=(n + 1) // 2, train_loss=1.0, train_top1=0.5, val_loss=1.0,
              val_top1=share)
        for n, share in enumerate(top1, 1)
    ]  # fmt: skip
    (warning,) = phase_warnings(schedule, epochs)
    assert warning.startswith("phase 2 (spatial_1) lowered validation top-1: 60.0% after it, 80.0%")
    assert phase_warnings(schedule, epochs[:2]) == []


# ---- overrides ----


def train_by_cli(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["train-head", "--json", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_options_override_without_yaml(tmp_path: Path, small_data: Path, small_cache: Path) -> None:
    where = ("--data", small_data, "--cache", small_cache, "--runs", tmp_path, "--device", "cpu")
    found = train_by_cli(*where, "--view", "none", "--epochs", 3, "--set", "optimizer.lr=3e-3")
    schedule = schedule_of(read_run(found["run"]))
    assert schedule.optimizer.lr == 3e-3 and schedule.epochs == 3 and schedule.head.hidden
    assert found["candidates"] == []
    only = train_by_cli(*where, "--view", "color_1")
    assert {tuple(c["views"]) for c in only["candidates"]} == {("color_1",)}


def test_options_override_a_schedule(tmp_path: Path, small_data: Path, small_cache: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "backbone: efficientnet_lite0\nvalidation: val\nhead: {hidden: [4]}\n"
        "phases: [{views: none, epochs: 2}, {views: color_1, epochs: 1}]\n"
    )
    where: dict[str, Any] = {"data": small_data, "cache": small_cache, "runs": tmp_path}
    with pytest.raises(BadInput, match="epochs 2: the schedule has 2 phases; change"):
        train_head(path, epochs=2, **where)
    with pytest.raises(BadInput, match=r"optimizer\.lr=-1\.0.*optimizer\.lr"):
        train_head(path, settings={"optimizer.lr": -1.0}, **where)
    with pytest.raises(BadInput, match="--set lr: expected KEY=VALUE"):
        train_head(path, settings=["lr"], **where)
    found = train_head(path, view="none", settings=["head.hidden=[3]"], **where)
    schedule = schedule_of(read_run(found.run))
    assert (schedule.epochs, schedule.head.hidden, schedule.validation.split) == (3, [3], "val")


def test_the_error_for_an_unknown_schedule_lists_the_shipped_ones() -> None:
    with pytest.raises(BadInput, match=r"curriculum\.yaml, quickstart\.yaml, quick"):
        find_schedule("corriculum")


# ---- logistic regression ----


def test_lbfgs_finds_the_minimum_that_scikit_learn_finds() -> None:
    x, y = clouds(120, 3)
    decay = 0.01
    ours = Solver(x, y, 3).solve(decay)
    theirs = LogisticRegression(C=1 / (decay * len(x)), max_iter=10_000, tol=1e-8).fit(x, y)
    logits = ours.logits(x)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        likely / likely.sum(1, keepdims=True), theirs.predict_proba(x), atol=2e-3
    )
    assert ours.is_converged


def test_lbfgs_of_two_classes_and_of_a_class_without_rows() -> None:
    x, y = clouds(60, 2)
    found = Solver(x, y * 2, 4).solve(0.01)
    theirs = LogisticRegression(C=1 / (0.01 * 60), max_iter=10_000, tol=1e-8).fit(x, y)
    assert set(found.logits(x).argmax(1)) <= {0, 2}
    assert ((found.logits(x).argmax(1) == 2) == (theirs.predict(x) == 1)).mean() > 0.98
    with pytest.raises(BadInput, match="one class"):
        Solver(x, y * 0, 2).solve(0.01)


def test_a_penalty_is_chosen_on_rows_that_no_fit_has_seen() -> None:
    x, y = clouds(100, 4)
    found = choose_penalty(x, y, 4)
    assert found.test_rows.all() and 0.5 < found.top1 < 1
    noise = np.random.default_rng(1).integers(0, 4, 100)
    assert choose_penalty(x, noise, 4).top1 < 0.5
    with pytest.raises(BadInput, match="too few different training images"):
        choose_penalty(x[:1], y[:1], 4)


def test_of_many_rows_a_part_chooses_where_the_penalties_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = clouds(400, 4)
    few = choose_penalty(x[:80], y[:80], 4)
    monkeypatch.setattr(logistic, "_MAX_PRODUCTS", 80 * x.shape[1] * 4)
    monkeypatch.setattr(logistic, "_CHEAP", 0)
    found = choose_penalty(x, y, 4)
    assert found.test_rows.sum() == 80 and found.top1 >= few.top1 - 0.1
    assert found.decay <= max(logistic.DECAYS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": {}}, r"solves linear heads only; write head: \{hidden: \[\]\}"),
        ({"mixup": 0.2}, "does not work with mixup"),
        ({"optimizer": {"name": "lbfgs", "lr": 0.1}}, "lbfgs has no lr; remove it"),
        ({"batch_size": 64}, "lbfgs has no batch_size; remove it"),
        ({"class_weights": "errors"}, "class_weights: errors"),
        ({"phases": [{"views": "none", "epochs": 2}]}, "solves one phase with epochs: 1"),
    ],
)
def test_lbfgs_refuses_what_only_epochs_can_do(change: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {
        "backbone": "a", "head": {"hidden": []}, "optimizer": {"name": "lbfgs"},
        "phases": [{"views": "none", "epochs": 1}],
    }  # fmt: skip
    Schedule.model_validate(plain)
    with pytest.raises(ValueError, match=message):
        Schedule.model_validate(plain | change)


@pytest.mark.slow
def test_a_schedule_may_say_lbfgs_with_folds_and_views(
    tmp_path: Path, small_data: Path, small_cache: Path
) -> None:
    path = tmp_path / "logistic.yaml"
    path.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: []}\nvalidation: {folds: 3}\n"
        "optimizer: {name: lbfgs, weight_decay: 0.01}\ninput: {standardise: true}\n"
        "class_weights: balanced\nphases: [{views: {none: 0.5, color_1: 0.5}, epochs: 1}]\n"
    )
    where: dict[str, Any] = {"data": small_data, "cache": small_cache}
    trained = train_head(path, out=tmp_path / "run", **where)
    assert evaluate(tmp_path / "run", split="held-out", **where).top1 == pytest.approx(
        trained.last["top1"]
    )
    assert featurecache.evaluate is not None


@pytest.mark.slow
def test_the_progress_never_passes_its_end(unsplit: tuple[Path, Path], tmp_path: Path) -> None:
    data, cache = unsplit
    seen: list[tuple[int, int]] = []
    train_head(
        data=data,
        cache=cache,
        out=tmp_path / "run",
        device="cpu",
        progress=lambda done, total, what: seen.append((done, total)),
    )
    epochs = [row for row in seen if row[1] == seen[-1][1]]
    assert len(epochs) > 2 and all(done <= total for done, total in epochs)
