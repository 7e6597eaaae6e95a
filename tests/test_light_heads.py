"""Heads that are solved, in every command that takes a head, and scikit-learn's interface."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import featurecache
from featurecache.adapters.head_classifier import HeadClassifier
from featurecache.errors import BadInput
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.ensemble import ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.predict import predict
from featurecache.stages.heads.train_head import TrainedRun, train_head
from featurecache.stages.looking.report import report
from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("load_once")]

HEADS: dict[str, dict[str, Any]] = {
    kind: {"kind": kind} for kind in ("ridge", "logistic", "lda", "ncm")
} | {"random_features": {"kind": "random_features", "width": 32}}
LAYER = {"layer": "blocks.0"}  # 16 channels


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """A cache with vectors of 16 numbers. Not to be changed."""
    cache = tmp_path_factory.mktemp("narrow") / "cache"
    featurize(small_data, policy=["none", "color_1"], cache=cache, **TINY | LAYER)
    return cache


def write_schedule(folder: Path, name: str, head: dict[str, Any], validation: Any) -> Path:
    path = folder / f"{name}.yaml"
    content = {
        "backbone": {"name": "efficientnet_lite0", **LAYER},
        "head": head,
        "validation": validation,
        "phases": [{"views": {"none": 0.75, "color_1": 0.25}, "epochs": 1}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, small_data: Path, narrow: Path
) -> dict[str, dict[str, TrainedRun]]:
    """Runs by validation, then by kind. Not to be changed."""
    folder = tmp_path_factory.mktemp("light")
    kinds: dict[str, Any] = {"split": {"split": "val"}, "folds": {"folds": 3}}
    return {
        name: {
            kind: train_head(
                write_schedule(folder, f"{kind}_{name}", head, validation),
                data=small_data, cache=narrow, out=folder / f"{kind}_{name}", device="cpu",
            )
            for kind, head in HEADS.items()
        }
        for name, validation in kinds.items()
    }  # fmt: skip


def vectors(data: Path, cache: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The clean vectors, the class of each, and all classes."""
    X, y = featurecache.vectors(data, "none", "efficientnet_lite0", split=split, cache=cache)
    return X, y, sorted(set(y))


@pytest.mark.parametrize("kind", HEADS)
def test_it_is_evaluated_and_predicts(
    kind: str, trained: dict[str, dict[str, TrainedRun]], small_data: Path, narrow: Path
) -> None:
    run, folds = trained["split"][kind], trained["folds"][kind]
    where: dict[str, Any] = {"data": small_data, "cache": narrow}
    X, y, classes = vectors(small_data, narrow, "val")
    probabilities = featurecache.load_head(run.run).predict_proba(X)
    right = np.array(classes)[probabilities.argmax(1)] == y
    result = evaluate(run.run, split="val", **where)
    assert (result.n, result.top1) == (12, right.mean()) and right.mean() > 0.5
    assert result.loss == pytest.approx(
        -np.log(probabilities[np.arange(12), np.searchsorted(classes, y)]).mean(), rel=1e-5
    )
    assert result.top1 == pytest.approx(run.last["top1"])
    held_out = evaluate(folds.run, split="held-out", **where)
    assert (held_out.n, held_out.top1) == (36, pytest.approx(folds.last["top1"]))
    seen = evaluate(run.run, split="val", tta=["color_1"], **where)
    other = featurecache.load_head(run.run).predict_proba(
        featurecache.vectors(view="color_1", backbone="efficientnet_lite0", split="val", **where)[0]
    )
    averaged = np.array(classes)[(probabilities + other).argmax(1)] == y
    assert seen.top1 == averaged.mean()

    files = sorted((small_data / "val").rglob("*.png"))
    guesses = predict(run.run, files, engine="torch-cpu")
    by_class = dict(zip((str(file) for file in files), probabilities, strict=True))
    for guess in guesses:
        expected = by_class[guess.path]
        assert guess.top[0]["class"] == classes[expected.argmax()]
        assert guess.top[0]["probability"] == pytest.approx(expected.max(), abs=1e-4)


def test_all_are_members_of_an_ensemble_and_of_a_report(
    trained: dict[str, dict[str, TrainedRun]], small_data: Path, narrow: Path, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"data": small_data, "cache": narrow}
    runs = [run.run for group in trained.values() for run in group.values()]
    X, y, classes = vectors(small_data, narrow, "val")
    each = [featurecache.load_head(run).predict_proba(X) for run in runs]
    combined = ensemble(runs, how="mean", split="val", **where)
    expected = (np.array(classes)[np.mean(each, 0).argmax(1)] == y).mean()
    assert combined.ensembles["mean"]["top1"] == expected
    rights = [(np.array(classes)[part.argmax(1)] == y).mean() for part in each]
    assert [member["top1"] for member in combined.members] == rights

    page = report(runs, out=tmp_path / "report.html", split="val", **where)
    wrong = [np.array(classes)[part.argmax(1)] != y for part in each]
    assert (page.n, page.wrong) == (12, np.any(wrong, 0).sum())
    text = Path(page.path).read_text()
    assert all(Path(run).name in text for run in runs)


@pytest.mark.parametrize("kind", HEADS)
def test_it_is_solved_from_vectors_on_disk(
    kind: str, trained: dict[str, dict[str, TrainedRun]], small_data: Path, narrow: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """`--memory` holds less than all vectors, 16 numbers of 48 images in 2 views."""
    cache = shutil.copytree(narrow, tmp_path / "cache")  # runs leave notes in it
    schedule = write_schedule(tmp_path, kind, HEADS[kind], {"split": "val"})
    given: dict[str, Any] = {"data": small_data, "cache": cache, "out": tmp_path / "run"}
    if kind == "logistic":
        with pytest.raises(BadInput, match="needs all training vectors in memory; give a larger"):
            train_head(schedule, memory="4k", **given)
        return
    streamed = train_head(schedule, memory="4k", **given)
    assert any("they stay on disk, and the head is solved" in note for note in streamed.notes)
    X, _, _ = vectors(small_data, narrow, "val")
    ours, whole = (
        featurecache.load_head(run).predict_proba(X)
        for run in (streamed.run, trained["split"][kind].run)
    )
    np.testing.assert_array_equal(ours, whole)
    assert streamed.last == trained["split"][kind].last
    assert train_head(schedule, **given).last == streamed.last  # the same training, found again


def maps(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, 4 * 9) in which the sign of channel 1 is the class, where channel 0 is large."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 2
    made = rng.normal(size=(rows, 4, 9)).astype(np.float32)
    place = rng.integers(0, 9, rows)
    made[np.arange(rows), 0, place] = 6
    made[np.arange(rows), 1, place] = 2 * y - 1
    return made.reshape(rows, -1), np.array(["no", "yes"])[y]


def test_logistic_regression_and_attention_are_estimators() -> None:
    X, y = maps(600, 0)
    schedule = {
        "head": {"kind": "attention", "channels": 4, "queries": 2}, "batch_size": 32,
        "optimizer": {"lr": 0.03}, "phases": [{"views": "none", "epochs": 40}],
    }  # fmt: skip
    attention = HeadClassifier(schedule, seed=0)
    assert clone(attention).get_params() == attention.get_params()
    attention.fit(X[:400], y[:400])
    assert attention.score(X[400:], y[400:]) > 0.8  # linear: chance
    with pytest.raises(BadInput, match="35 numbers can't be maps of 4 channels"):
        HeadClassifier(schedule).fit(X[:, :35], y)

    means = X.reshape(-1, 4, 9).mean(2)
    solved = {"head": {"kind": "logistic"}, "phases": [{"views": "none", "epochs": 1}]}
    scores = cross_val_score(HeadClassifier(solved), means, y, cv=3)
    assert 0.5 < scores.mean() < 0.75  # what an average leaves of the sign
    linear = HeadClassifier(solved).fit(means, y)
    assert list(linear.classes_) == ["no", "yes"] and linear.n_features_in_ == 4
