"""Featurizer: images to vectors in scikit-learn, each computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import featurecache
from featurecache.errors import BadInput, UnknownName

pytestmark = pytest.mark.usefixtures("load_once")
ARRAYS = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)


@pytest.fixture
def featurizer(tiny: dict[str, Any], tmp_path: Path) -> featurecache.Featurizer:
    return featurecache.Featurizer(
        tiny["backbone"], cache=tmp_path / "cache", engine=tiny["engine"], workers=0,
        settings={"input_size": 32},
    )  # fmt: skip


@pytest.mark.slow
def test_vectors_in_the_order_of_the_images(
    featurizer: featurecache.Featurizer, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{name}.png") for name in "cabdfe"]
    for path, pixels in zip(paths, ARRAYS, strict=True):
        Image.fromarray(pixels).save(path)
    X = featurizer.transform(paths)
    assert X.shape == (6, 1280) and X.dtype == np.float32
    order = [3, 0, 0, 5, 1, 2, 4]
    repeated = [paths[n] for n in order]
    column = np.array(repeated, object)[:, None]
    for images in (repeated, [*map(Path, repeated)], np.array(repeated), column):
        np.testing.assert_array_equal(featurizer.transform(images), X[order])
    assert featurecache.ls(featurizer.cache)[0]["rows"] == 6
    for images in (ARRAYS, list(ARRAYS), [*map(Image.fromarray, ARRAYS)], ARRAYS[:2]):
        np.testing.assert_allclose(featurizer.transform(images), X[: len(images)], atol=1e-4)
    assert featurecache.ls(featurizer.cache)[0]["rows"] == 12  # the bytes of the files are others
    other = clone(featurizer).set_params(view="mirror_1").transform(ARRAYS)
    assert np.abs(other - X).max() > 1e-3


@pytest.mark.slow
def test_in_a_pipeline(featurizer: featurecache.Featurizer, small_data: Path) -> None:
    paths = sorted((small_data / "train").rglob("*.png"))
    y = [path.parent.name for path in paths]
    model = make_pipeline(featurizer, LogisticRegression())
    assert cross_val_score(model, paths, y, cv=3, error_score="raise").mean() > 0.8
    assert model.fit(paths, y).score(paths, y) == 1.0
    assert featurecache.ls(featurizer.cache)[0]["rows"] == len(paths)


def test_images_that_are_refused(featurizer: featurecache.Featurizer, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for images, message in (
        ("photo.png", "photo.png: a single path"),
        (np.zeros((3, 4)), "image 0: float64; expected an array of uint8"),
        (["gone.png"], "1 file not found"),
        (np.array([["a.png", "b.png"]]), r"paths of shape \(1, 2\); expected one column"),
        ([tmp_path / "bad.png"], r"images without vectors: \S+bad\.png: .*; remove them"),
        ([], "there are none"),
    ):
        with pytest.raises(BadInput, match=message):
            featurizer.transform(images)
    with pytest.raises(UnknownName, match="policy"):
        clone(featurizer).set_params(view="mirrr_1").transform(ARRAYS)
    with pytest.raises(BadInput, match="expected a single name"):
        clone(featurizer).set_params(view=["none"]).transform(ARRAYS)


def test_scikit_learns_checks_that_apply_pass(featurizer: featurecache.Featurizer) -> None:
    """`check_estimator` skips what passes 2-D arrays of numbers as X: these are not images."""
    with pytest.warns(SkipTestWarning, match="requires input"):
        results = estimator_checks.check_estimator(featurizer)
    assert {result["status"] for result in results} == {"passed"}
    for name in (
        "check_valid_tag_types", "check_estimator_repr", "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_mixin_order", "check_parameters_default_constructible",
        "check_get_params_invariance", "check_set_params",
    ):  # fmt: skip
        getattr(estimator_checks, name)("Featurizer", clone(featurizer))
