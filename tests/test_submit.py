"""Submission files: their lines, their names, and what can't be predicted."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.features.store import Cache
from featurecache.heads.ensembles import mean
from featurecache.heads.mlp import Head
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.submit import Submission, submit

pytestmark = pytest.mark.usefixtures("load_once")
Runs = dict[str, Path]
NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def unlabelled(small_data: Path, tmp_path: Path) -> Path:
    """The training images of `small_data`, and its validation images without labels as a test."""
    data = tmp_path / "data"
    shutil.copytree(small_data / "train", data / "train")
    (data / "test").mkdir()
    for number, path in enumerate(sorted((small_data / "val").rglob("*.png"))):
        shutil.copy(path, data / "test" / f"test_{number}.png")
    return data


@pytest.fixture
def write(small_runs: Runs, small_cache: Path, unlabelled: Path) -> Callable[..., Submission]:
    def call(*names: str, **given: Any) -> Submission:
        runs = [small_runs[name] for name in names]
        return submit(runs, **({"data": unlabelled, "cache": small_cache} | given))

    return call


def predicted(runs: list[Path], data: Path, cache: Path, split: str = "test") -> dict[str, str]:
    """File name -> class, by the mean of the probabilities, from the space itself."""
    samples = open_dataset(data).split(split)
    items, _ = items_of(samples)
    (space,) = [s for s in Cache(cache).spaces() if s.view == "none"]
    X, _ = space.vectors([item for item in items if item is not None])
    best = mean([Head.load(run).predict_proba(X) for run in runs]).argmax(1)
    return {Path(s.id).name: NAMES[label] for s, label in zip(samples, best, strict=True)}


def test_lines_as_tiny_imagenet_takes_them(
    write: Callable[..., Submission],
    small_runs: Runs,
    small_cache: Path,
    unlabelled: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "answers.txt"
    assert write("split", out=out) == Submission(path=str(out), format="lines", n=12, failed=[])
    lines = dict(line.split(" ") for line in out.read_text().splitlines())
    assert lines == predicted([small_runs["split"]], unlabelled, small_cache)
    assert set(lines) == {f"test_{number}.png" for number in range(12)}
    assert len(set(lines.values())) > 1


def test_a_csv_of_several_runs(
    write: Callable[..., Submission],
    small_runs: Runs,
    small_cache: Path,
    unlabelled: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "answers.csv"
    names = ["split", "split_1", "folds"]
    assert write(*names, out=out).format == "csv"
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = predicted([small_runs[name] for name in names], unlabelled, small_cache)
    assert {row["id"]: row["label"] for row in rows} == wanted
    assert [list(row) for row in rows] == [["id", "label"]] * 12


def test_of_one_run_it_is_what_evaluate_counts(
    write: Callable[..., Submission], small_runs: Runs, small_data: Path, small_cache: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A labelled split can be submitted too; its class folders repeat the names of files."""
    out = tmp_path / "answers.csv"
    write("folds", out=out, data=small_data, split="val", tta="color_1")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all((small_data / row["id"]).is_file() for row in rows)
    right = np.mean([row["id"].split("/")[1] == row["label"] for row in rows])
    given = {"data": small_data, "cache": small_cache}
    assert right == evaluate(small_runs["folds"], tta="color_1", **given).top1


def test_images_without_a_prediction_are_named(
    write: Callable[..., Submission],
    small_cache: Path,
    unlabelled: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
) -> None:
    (unlabelled / "test/bad.png").write_bytes(b"no picture")
    (unlabelled / "test/gone.png").symlink_to("nowhere")
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    out = tmp_path / "answers.txt"
    with pytest.raises(NotCached, match=r"lacks 1 image of view none; .*featurecache featurize"):
        write("split", out=out, cache=cache)
    assert not out.exists()
    featurize(unlabelled, policy="none", cache=cache, **tiny)
    found = write("split", out=out, cache=cache)
    assert found.n == len(out.read_text().splitlines()) == 12
    assert [row["path"] for row in found.failed] == ["test/bad.png", "test/gone.png"]
    assert all(row["reason"] for row in found.failed)


def test_what_is_said_before_any_work(
    write: Callable[..., Submission], small_data: Path, unlabelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.txt"
    with pytest.raises(BadInput, match="its folder does not exist"):
        write("split", out=tmp_path / "gone/answers.txt")
    with pytest.raises(UnknownName, match="unknown split 'tset'; nearest: test"):
        write("split", out=out, split="tset")
    with pytest.raises(BadInput, match="submit needs at least one run"):
        write(out=out)
    shutil.move(unlabelled / "test/test_0.png", unlabelled / "test/test 0.png")
    with pytest.raises(BadInput, match=r"'test 0.png' contains a space.*write a \.csv"):
        write("split", out=out)
    shutil.move(unlabelled / "train/owl", unlabelled / "train/newt")
    with pytest.raises(BadInput, match=r"1 class that .* was not trained on, such as 'newt'"):
        write("split", out=out)
    assert not out.exists()
