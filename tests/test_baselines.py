"""Baselines: each is what scikit-learn would give, its setting chosen on training rows alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import featurecache
from featurecache import machine
from featurecache.cli import cli
from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.heads import baselines as fits
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.baselines import baselines

pytestmark = pytest.mark.usefixtures("load_once")
CLASSES = 4


def blobs(rows: int, width: int, seed: int) -> tuple[fits.Vectors, fits.Labels]:
    """Overlapping classes, the last of them absent, with every other class there."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(rows) % (CLASSES - 1))
    centres = rng.normal(size=(CLASSES, width))
    return (centres[y] + 2 * rng.normal(size=(rows, width))).astype(np.float32), y


SHAPES = st.tuples(st.integers(8, 24), st.integers(1, 12), st.integers(0, 99))


# ---- the three classifiers ----


def penalty_of(setting: str) -> float:
    return float(setting.removeprefix("penalty "))


@pytest.mark.slow
@settings(max_examples=10)
@given(SHAPES)
def test_ridge_is_scikit_learns_under_the_penalty_of_the_best_leave_one_out(
    shape: tuple[int, int, int],
) -> None:
    X, y = blobs(*shape)
    targets = np.eye(CLASSES)[y]
    centred = (X - X.mean(0)).astype(np.float64)
    penalties = fits.PENALTIES * np.linalg.eigvalsh(centred.T @ centred).mean()

    def without(row: int, penalty: float) -> Any:
        kept = np.arange(len(X)) != row
        model = Ridge(alpha=penalty).fit(X[kept].astype(np.float64), targets[kept])
        return model.predict(X[row : row + 1])[0]

    Z = np.random.default_rng(0).normal(size=(5, shape[1])).astype(np.float32)
    setting, scores = fits.ridge(X, y, Z, CLASSES)
    chosen = int(np.abs(np.log(penalties / penalty_of(setting))).argmin())
    expected = Ridge(alpha=penalties[chosen]).fit(X.astype(np.float64), targets).predict(Z)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)

    refits = np.array([[without(row, p) for row in range(len(X))] for p in penalties])
    clear = np.sort(refits, 2)
    unsure = (clear[:, :, -1] - clear[:, :, -2] < 1e-4).sum(1)  # float32 may see them otherwise
    right = (refits.argmax(2) == y).sum(1)
    assert right[chosen] + unsure[chosen] >= (right - unsure).max()


def test_ridge_takes_vectors_that_are_all_the_same() -> None:
    X = np.ones((6, 3), np.float32)
    y = np.array([0, 0, 0, 0, 1, 1])
    _, scores = fits.ridge(X, y, X[:1], 2)
    np.testing.assert_allclose(scores, [[4 / 6, 2 / 6]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logistic_regression_is_scikit_learns(seed: int) -> None:
    X, y = blobs(120, 3, seed)
    Z = X[:7] + 1
    setting, scores = fits.logistic(X, y, Z, CLASSES)
    inverse = min(fits.INVERSES, key=lambda i: abs(np.log(i / len(X) / float(setting[2:]))))
    scaler = StandardScaler().fit(X)
    model = LogisticRegression(C=inverse / len(X), max_iter=1000).fit(scaler.transform(X), y)
    expected = model.predict_proba(scaler.transform(Z))
    np.testing.assert_allclose(scores[:, : CLASSES - 1], expected, atol=0.01)
    assert (scores[:, CLASSES - 1] == 0).all()  # a class without a training row


def test_logistic_regression_says_that_it_did_not_converge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fits, "_MAX_STEPS", 2)
    X, y = blobs(60, 8, 0)
    assert "not converged in 2 steps" in fits.logistic(X, y, X, CLASSES).setting


@settings(max_examples=10)
@given(st.tuples(st.integers(20, 60), st.integers(2, 12), st.integers(0, 99)))
def test_neighbours_are_scikit_learns_by_cosine(shape: tuple[int, int, int]) -> None:
    X, y = blobs(*shape)
    Z = np.random.default_rng(1).normal(size=(9, shape[1])).astype(np.float32)
    setting, scores = fits.neighbours(X, y, Z, CLASSES)
    k = int(setting.removeprefix("k "))
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distances: np.exp(-distances / fits.TEMPERATURE)
    ).fit(X, y)
    expected = model.predict_proba(Z)
    shares = scores[:, : CLASSES - 1] / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=1e-3)


@given(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=60).filter(lambda y: len(y) > 4))
def test_a_fifth_of_each_class_is_held_out(labels: list[int]) -> None:
    y = np.array(labels)
    counts = np.bincount(y, minlength=CLASSES)
    if counts.max() < 5:
        with pytest.raises(BadInput, match="fewer than 5"):
            fits.held_part(y, CLASSES)
        return
    held = fits.held_part(y, CLASSES)
    assert (np.bincount(y[held], minlength=CLASSES) == counts // 5).all()
    assert (held == fits.held_part(y, CLASSES)).all()


# ---- the stage ----


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, small_data: Path, tiny: dict[str, Any]) -> Path:
    """A cache with two backbones. Not to be changed."""
    cache = tmp_path_factory.mktemp("two") / "cache"
    both = ["efficientnet_lite0", "efficientnet_lite1"]
    featurize(small_data, policy="none", cache=cache, **tiny | {"backbone": both})
    return cache


def untimed(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table]


def test_a_row_for_each_baseline(small_data: Path, small_cache: Path) -> None:
    found = baselines("efficientnet_lite0", data=small_data, cache=small_cache)
    names = ["ridge", "logistic", "neighbours", "lda", "ncm", "random_features"]
    assert [row["baseline"] for row in found.table] == names
    assert (found.backbone, found.view, found.split) == (["efficientnet_lite0"], "none", "val")
    assert (found.train, found.n, found.left_out) == (36, 12, 0)
    for row in found.table:
        assert row["low"] <= row["top1"] <= row["high"]
        assert row["top1"] > 0.6  # three classes, each around a colour of its own
    assert [row["top5"] for row in found.table] == [1.0, 1.0, None, 1.0, 1.0, 1.0]


@pytest.mark.slow
def test_a_view_is_fitted_and_tested_through(small_data: Path, small_cache: Path) -> None:
    where: dict[str, Any] = {"data": small_data, "cache": small_cache}
    X, y = featurecache.vectors(view="color_1", backbone="efficientnet_lite0", split="val", **where)
    T, t = featurecache.vectors(
        view="color_1", backbone="efficientnet_lite0", split="train", **where
    )
    names, numbers = np.unique(t, return_inverse=True)
    setting, scores = fits.ridge(T, numbers, X, len(names))
    row = baselines("efficientnet_lite0", view="color_1", **where).table[0]
    assert row["top1"] == (names[scores.argmax(1)] == y).mean()
    assert penalty_of(row["setting"]) == pytest.approx(penalty_of(setting), rel=0.02)


def test_several_backbones_stand_side_by_side(
    small_data: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def cheap(
        X: fits.Vectors, y: fits.Labels, Z: fits.Vectors, classes: int, **_: Any
    ) -> fits.Chosen:
        seen.append((X, Z))
        return fits.Chosen("", np.zeros((len(Z), classes)))

    for name in ("ridge", "logistic", "neighbours", "lda", "ncm", "random_features"):
        monkeypatch.setattr(fits, name, cheap)
    names = ["efficientnet_lite0", "efficientnet_lite1"]
    assert baselines(names, data=small_data, cache=two).backbone == names
    for place, split in enumerate(("train", "val")):
        parts = [
            featurecache.vectors(small_data, "none", name, split=split, cache=two)[0]
            for name in names
        ]
        np.testing.assert_array_equal(seen[0][place], np.concatenate(parts, 1))
        for mapped in (False, True):
            X, _, items = featurecache.vectors(
                small_data, "none", names, split=split, cache=two, mapped=mapped, return_items=True
            )
            np.testing.assert_array_equal(seen[0][place], np.asarray(X))
        assert items.shape == (len(X), 32) and items.dtype == np.uint8
    with pytest.raises(BadInput, match="vectors needs a backbone"):
        featurecache.vectors(small_data, cache=two)


def test_an_image_of_another_split_and_copies_are_not_fitted_on(
    tmp_path: Path, write_dataset: Callable[..., Path], tiny: dict[str, Any]
) -> None:
    data = write_dataset(
        tmp_path / "data", {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 2}
    )
    shutil.copy(data / "val/cat/000.png", data / "train/cat/shared.png")
    shutil.copy(data / "train/dog/000.png", data / "train/dog/copy.png")
    (data / "val/dog/broken.png").write_bytes(b"no picture")
    featurize(data, policy="none", cache=tmp_path / "c", **tiny)
    found = baselines("efficientnet_lite0", data=data, cache=tmp_path / "c")
    assert (found.train, found.n, found.left_out) == (12, 4, 1)


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"backbone": ()}, BadInput, "needs --backbone"),
        ({"split": "train"}, BadInput, "is used for fitting"),
        ({"width": 0}, BadInput, "width 0: must be from 1 to"),
        ({"split": "vla"}, BadInput, "vla"),
        ({"view": "colour_1"}, UnknownName, "nearest: color"),
        ({"view": "color_2"}, NotCached, "--view color_2"),
        ({"backbone": "efficientnet_lite9"}, UnknownName, "efficientnet_lite"),
        ({"crop": 2.0}, BadInput, "crop"),
        ({"crop": 0.5}, NotCached, "--crop 0.5"),
    ],
)
def test_bad_input_is_said(
    changed: dict[str, Any], kind: type[Exception], said: str, small_data: Path, small_cache: Path
) -> None:
    right = {"backbone": "efficientnet_lite0", "data": small_data, "cache": small_cache}
    with pytest.raises(kind, match=said):
        baselines(**right | changed)


def test_one_class_is_refused(
    tmp_path: Path, write_dataset: Callable[..., Path], tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 6, "val/cat": 2})
    featurize(data, policy="none", cache=tmp_path / "c", **tiny)
    with pytest.raises(BadInput, match="of one class"):
        baselines("efficientnet_lite0", data=data, cache=tmp_path / "c")


def test_what_does_not_fit_into_memory_is_left_out_with_its_reason(
    small_data: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 13 * 100**2)  # bytes
    given: dict[str, Any] = {"data": small_data, "cache": small_cache}
    found = baselines("efficientnet_lite0", width=100, **given)
    names = ["logistic", "neighbours", "ncm", "random_features"]
    assert [row["baseline"] for row in found.table] == names
    assert found.table[-1]["setting"].startswith("width 100, penalty")
    ridge, lda = found.notes
    assert ridge.startswith("no ridge: head: ridge of width 1,280 needs about 78.6 MB of memory")
    assert lda.startswith("no lda: head: lda of width 1,280")
    words = ["baselines", "--backbone", "efficientnet_lite0", "--width", "101"]
    shown = CliRunner().invoke(
        cli, [*words, "--data", str(small_data), "--cache", str(small_cache)]
    )
    assert shown.exit_code == 0 and "no random_features: head: random_features" in shown.stdout


def test_classes_that_are_too_small_to_choose_on_leave_out_what_chooses(
    tmp_path: Path, write_dataset: Callable[..., Path], tiny: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", {"train/cat": 4, "train/dog": 4, "val/cat": 2})
    featurize(data, policy="none", cache=tmp_path / "c", **tiny | {"layer": "blocks.0"})
    found = baselines("efficientnet_lite0", data=data, cache=tmp_path / "c")
    assert [row["baseline"] for row in found.table] == ["ridge", "lda", "ncm"]
    assert [note.partition(":")[0] for note in found.notes] == [
        "no logistic", "no neighbours", "no random_features",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_what_the_function_gives(small_data: Path, small_cache: Path) -> None:
    words = ["baselines", "--backbone", "efficientnet_lite0", "--data", str(small_data)]
    words += ["--cache", str(small_cache)]
    shown = CliRunner().invoke(cli, [*words, "--json", "--quiet"])
    printed = json.loads(shown.stdout)
    found = asdict(baselines("efficientnet_lite0", data=small_data, cache=small_cache))
    assert untimed(printed.pop("table")) == untimed(found.pop("table"))
    assert printed == found
    table = CliRunner().invoke(cli, words).stdout
    assert "fitted on 36 images, tested on 12 of val" in table and "logistic" in table
