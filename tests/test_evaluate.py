"""Evaluate: averaged views, comparisons, tables and files. (What it did first: test_train_head.)"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import BadInput, DamagedRun, NotCached
from featurecache.heads.mlp import Head
from featurecache.images.datasets import open_dataset
from featurecache.runs.predictions import usual_split
from featurecache.stages.cache.export import vectors
from featurecache.stages.heads.evaluate import Evaluation, evaluate
from featurecache.stages.heads.train_head import read_run, train_head
from featurecache.study import metrics

pytestmark = pytest.mark.usefixtures("load_once")
Runs = dict[str, Path]
NAMES = ["cat", "dog", "owl"]


def said(run: Path, data: Path, cache: Path, view: str = "none") -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of the validation split, by the public functions."""
    X, y = vectors(data, view, "efficientnet_lite0", split="val", cache=cache)
    return Head.load(run).predict_proba(X), np.array([NAMES.index(name) for name in y])


@pytest.fixture
def found(small_runs: Runs, small_data: Path, small_cache: Path) -> Evaluation:
    return evaluate(small_runs["split"], data=small_data, cache=small_cache)


def test_the_numbers_are_those_of_the_metrics(
    found: Evaluation, small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    probabilities, labels = said(small_runs["split"], small_data, small_cache)
    right = probabilities.argmax(1) == labels
    assert 0 < found.top1 < 1
    assert found.interval == metrics.interval(right)
    assert {"ece": found.ece, "bins": found.bins} == metrics.calibration(probabilities, labels)
    counts = metrics.confusion(labels, probabilities.argmax(1), 3)
    assert (found.best, found.worst) == metrics.best_and_worst(counts, NAMES, {})
    assert (found.tta, found.against) == ([], None)


@pytest.mark.parametrize(
    ("kind", "n", "seen"), [("split", 12, "36 of these 36"), ("fraction", 9, "27 of these 36"),
                            ("folds", 36, "36 of these 36")]
)  # fmt: skip
def test_held_out_images_are_those_that_the_training_was_validated_on(
    small_runs: Runs, small_data: Path, small_cache: Path, kind: str, n: int, seen: str
) -> None:
    run, given = small_runs[kind], {"data": small_data, "cache": small_cache}
    held = evaluate(run, split="held-out", **given)
    assert (held.n, held.left_out, held.notes) == (n, 0, [])
    assert held.top1 == pytest.approx(read_run(run).last["top1"])
    (note,) = evaluate(run, split="train", **given).notes
    assert note.startswith(f"{seen} images were trained on") and "--split held-out" in note
    assert ("by 2 of its 3 networks" in note) == (kind == "folds")
    assert evaluate(run, split="val", **given).notes == []


def test_what_a_run_was_trained_on_outlives_its_dataset(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    """Images that were trained on and now lie in another split are counted all the same."""
    moved = Path(shutil.copytree(small_data, tmp_path / "data"))
    for place in (0, 1):
        (moved / f"train/cat/{place:03}.png").rename(moved / f"val/cat/moved-{place}.png")
    given = {"data": moved, "cache": small_cache}
    (note,) = evaluate(small_runs["split"], **given).notes
    assert note.startswith("2 of these 14 images were trained on")
    assert evaluate(small_runs["fraction"], split="held-out", **given).n <= 9
    old = Path(shutil.copytree(small_runs["fraction"], tmp_path / "old"))
    (old / "trained_items.bin").unlink()  # as a run of an earlier version
    assert evaluate(old, split="held-out", data=small_data, cache=small_cache).n == 9
    with pytest.raises(BadInput, match="was trained on other images or labels"):
        evaluate(old, split="held-out", **given)
    (note,) = evaluate(old, split="train", **given).notes
    assert "may have been trained on some of these images" in note
    for damage in (b"", b"x" * 66, (small_runs["fraction"] / "trained_items.bin").read_bytes()[1:]):
        (old / "trained_items.bin").write_bytes(damage)
        with pytest.raises(DamagedRun, match=r"trained_items\.bin: not the list of a run's images"):
            evaluate(old, data=small_data, cache=small_cache)


def test_two_runs_are_compared_on_what_neither_was_trained_on(
    small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    given = {"data": small_data, "cache": small_cache, "split": "held-out"}
    found = evaluate(small_runs["folds"], against=small_runs["fraction"], **given)
    assert found.n == 9 and found.against is not None
    with pytest.raises(BadInput, match="no image was held out by all of these runs"):
        evaluate(small_runs["split"], against=small_runs["folds"], **given)
    with pytest.raises(
        BadInput, match="no split 'test'; there are: train, val; or give --split held"
    ):
        evaluate(small_runs["split"], split="test", data=small_data, cache=small_cache)
    with pytest.raises(BadInput, match="unknown split 'holdout'; nearest: held-out"):
        evaluate(small_runs["split"], split="holdout", data=small_data, cache=small_cache)


def test_averaged_views_are_means_of_probabilities(
    found: Evaluation, small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    run, given = small_runs["split"], {"data": small_data, "cache": small_cache}
    both = evaluate(run, tta="color_1", **given)
    plain, labels = said(run, small_data, small_cache)
    color, _ = said(run, small_data, small_cache, "color_1")
    wanted = metrics.evaluate_predictions((plain + color) / 2, labels, NAMES)
    assert both.tta == ["color_1"] and both.n == 12
    assert both.loss == pytest.approx(wanted["loss"], rel=1e-6)
    assert both.loss != pytest.approx(found.loss, rel=1e-3)
    again = evaluate(
        run, tta=["none", "color_1", "color", "color_01"], **given
    )  # each view counts once
    assert (again.tta, again.loss) == (["color_1"], both.loss)
    with pytest.raises(NotCached, match=r"12 images of view color_2; .*--view color_2$"):
        evaluate(run, tta=["color_1", "color_2"], **given)
    with pytest.raises(BadInput, match="unknown policy 'colr'"):
        evaluate(run, tta="colr_1", **given)


def test_against_another_run(small_runs: Runs, small_data: Path, small_cache: Path) -> None:
    first, second = small_runs["split"], small_runs["folds"]
    given = {"data": small_data, "cache": small_cache}
    found = evaluate(first, against=second, **given)
    rights = []
    for run in (first, second):
        probabilities, labels = said(run, small_data, small_cache)
        rights.append(probabilities.argmax(1) == labels)
    assert found.against == {
        "run": str(second),
        "top1": evaluate(second, **given).top1,
        **metrics.mcnemar(*rights),
    }
    same = evaluate(first, against=first, **given).against
    assert same is not None and (same["only"], same["only_other"], same["p"]) == (0, 0, 1)
    with pytest.raises(BadInput, match="nowhere: not the folder of a run"):
        evaluate(first, against="nowhere", **given)


def test_the_gap_is_that_of_the_training(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run, given = small_runs["folds"], {"data": small_data, "cache": small_cache}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row["train_top1"] - row["val_top1"] for row in rows if row["epoch"] == 3]
    assert len(last) == 3
    assert evaluate(run, **given).gap == pytest.approx(np.mean(last))
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    nan = '{"fold": 1, "train_top1": NaN, "val_top1": 0.5}\n'
    for damage in ("{}\n", "half a li", "[" * 100_000, nan):
        (copy / "metrics.jsonl").write_text(damage)
        with pytest.raises(DamagedRun, match=r"metrics\.jsonl: not the metrics of a run"):
            evaluate(copy, **given)
    (copy / "metrics.jsonl").unlink()
    assert evaluate(copy, **given).gap is None


@pytest.mark.slow
def test_the_gap_of_a_training_that_ended_early_is_of_the_weights_that_are_kept(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    schedule = tmp_path / "s.yaml"
    schedule.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: []}\nbatch_size: 8\n"
        "optimizer: {lr: 0.3}\nearly_stopping: {patience: 2}\nvalidation: {split: val}\n"
        "phases: [{views: none, epochs: 30}]\n"
    )
    given = {"data": small_data, "cache": small_cache}
    run = Path(train_head(schedule, out=tmp_path / "run", **given).run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = min(rows, key=lambda row: row["val_loss"])
    assert kept is not rows[-1]
    assert evaluate(run, **given).gap == pytest.approx(kept["train_top1"] - kept["val_top1"])


def test_files_of_what_is_wrong(
    found: Evaluation, small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run, given = small_runs["split"], {"data": small_data, "cache": small_cache}
    wrong, cells = tmp_path / "wrong.csv", tmp_path / "cells.csv"
    assert evaluate(run, misclassified=wrong, confusion=cells, **given) == found
    with wrong.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == round(found.n * (1 - found.top1)) > 0
    for row in rows:
        assert (small_data / row["path"]).is_file()
        assert row["path"].split("/")[1] == row["class"] != row["predicted"]
        assert float(row["class_probability"]) <= float(row["predicted_probability"]) <= 1
    probabilities, labels = said(run, small_data, small_cache)
    place = int(np.flatnonzero(probabilities.argmax(1) != labels)[0])
    assert float(rows[0]["class_probability"]) == pytest.approx(
        probabilities[place, labels[place]], abs=1e-6
    )
    with cells.open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert header == ["class", *NAMES] and [line[0] for line in lines] == NAMES
    counts = np.array([line[1:] for line in lines], int)
    assert counts.sum() == 12 and counts.trace() == 12 - len(rows)


def test_a_file_in_no_folder_is_said_first(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run, given = small_runs["split"], {"data": small_data, "cache": small_cache}
    for name in ("misclassified", "confusion"):
        with pytest.raises(BadInput, match=r"gone/x\.csv: its folder does not exist"):
            evaluate(run, **{name: tmp_path / "gone/x.csv"}, **given)


def test_a_class_without_rows_and_a_single_row(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "data/val/dog").mkdir(parents=True)
    shutil.copy(small_data / "val/dog/000.png", tmp_path / "data/val/dog/000.png")
    found = evaluate(small_runs["folds"], data=tmp_path / "data", cache=small_cache)
    assert (found.n, found.left_out) == (1, 0)
    assert found.classes["cat"] == {"n": 0, "top1": None}
    assert [row["class"] for row in found.best] == ["dog"]
    assert found.interval[1] - found.interval[0] == pytest.approx(0.975)
    json.dumps(vars(found), allow_nan=False)


def test_a_run_is_measured_on_val_or_else_on_held_out_images(small_data: Path) -> None:
    assert usual_split(open_dataset(small_data)) == "val"
    assert usual_split(open_dataset(small_data / "train")) == "held-out"
