"""Realism: the arithmetic against the reference packages, and the study on real caches."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.distance import cdist

from featurecache.cli import cli
from featurecache.errors import BadInput, NotCached
from featurecache.executors import silent
from featurecache.images.datasets import open_dataset
from featurecache.images.views import View
from featurecache.items import packed
from featurecache.lookup.labelled_rows import LabelledRow, labelled_rows
from featurecache.runs.generated_vectors import find_generated_view
from featurecache.stages.generators.fit_generator import fit_generator
from featurecache.stages.generators.generate import generate
from featurecache.stages.studies.realism import MEASURES, _Comparison, _Images, study_realism
from featurecache.stages.studies.study_files import StudySource, cached_vectors
from featurecache.study import realism
from tests.samplers import write_sampler

RNG = np.random.default_rng(7)
REAL = RNG.standard_normal((60, 8))
MADE = 1.1 * RNG.standard_normal((60, 8)) + 0.6


def test_the_overlap_is_that_of_prdc() -> None:
    """The expected values are those of prdc 0.2, compute_prdc(REAL, MADE[:50], nearest_k=5)."""
    overlap = realism.overlap(MADE[:50], REAL)
    means = {name: float(values.mean()) for name, values in vars(overlap).items()}
    expected = {"precision": 0.74, "recall": 0.8666666666666667, "density": 0.448, "coverage": 0.65}
    assert means == pytest.approx(expected)


def test_kid_is_that_of_torch_fidelity() -> None:
    """The expected value is that of torch-fidelity 0.4.0, kid_features_to_metric in float64, with
    one subset of all rows."""
    found = realism.kid(realism.kid_terms(MADE, REAL))
    assert found.value == pytest.approx(2.2110790342358406)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = realism.kid_terms(MADE[:50], REAL), realism.overlap(MADE[:50], REAL)
    monkeypatch.setattr(realism, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(realism, "_BLOCK_MB", 1e-3)
    blocked = realism.kid_terms(MADE[:50], REAL), realism.overlap(MADE[:50], REAL)
    for expected, terms in zip(whole[0], blocked[0], strict=True):
        np.testing.assert_allclose(terms, expected)
    for name, values in vars(whole[1]).items():
        np.testing.assert_array_equal(values, getattr(blocked[1], name))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_interval_of_kid_covers_its_value(shift: float) -> None:
    def drawn(seed: int, rows: int) -> realism.Measure:
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((2, rows, 4))
        return realism.kid(realism.kid_terms(x, y + shift))

    true = drawn(0, 2000).value if shift else 0.0
    hits = [m.low <= true <= m.high for m in (drawn(seed, 60) for seed in range(1, 41))]
    assert sum(hits) >= 34


def test_a_copy_is_nearer_than_the_images_are_to_each_other() -> None:
    training = np.array([[0.0, 0], [1, 0], [0, 1], [9, 9], [9, 9]])
    made = np.array([[0.1, 0], [5, 0], [0, 0]])
    found = realism.nearest_training(made, training)
    assert found.index.tolist() == [0, 1, 0] and found.is_copy.tolist() == [True, False, True]
    assert found.distance == pytest.approx([0.1, 4, 0])
    seen = realism.nearest_training(made, training, np.array([0, -1, 0]))
    assert seen.index.tolist()[:2] == [1, 1] and seen.distance[0] == pytest.approx(0.9)
    assert seen.is_copy.tolist() == [True, False, True]  # (1, 0) is 1.41 from (0, 1)


def _cluster(centre: float, rows: int) -> np.ndarray:
    return centre + RNG.standard_normal((rows, 4))


def _images(vectors: np.ndarray, labels: list[int]) -> _Images:
    rows = [LabelledRow(bytes(32), label, "train", "") for label in labels]
    return _Images(rows=rows, labels=np.array(labels), vectors=vectors)


def test_measures_are_of_all_images_and_of_each_class() -> None:
    real = _images(np.vstack([_cluster(0, 12), _cluster(20, 12)]), [0] * 12 + [1] * 12)
    # Two of six images of class 0 look like class 1.
    made = _images(np.vstack([_cluster(0, 4), _cluster(20, 8)]), [0] * 6 + [1] * 6)
    reference = np.arange(1, 24, 2)
    found = _Comparison(real=real, reference=reference, k=3, images=99).measured(made, None)
    of_class = found.classes
    assert [part["label"].value for part in (of_class[0], of_class[1])] == [4 / 6, 1.0]
    assert found.all["label"].value == 10 / 12
    nearest = cdist(made.vectors, real.vectors).min(1)
    assert found.all["distance"].value == pytest.approx(nearest.mean())
    for label, rows in ((0, slice(0, 6)), (1, slice(6, 12))):
        assert of_class[label]["distance"].value == pytest.approx(nearest[rows].mean())
        own = real.vectors[reference][label * 6 : label * 6 + 6]
        radii = np.sort(cdist(own, own), 1)[:, 3]  # to the third other one
        is_inside = cdist(made.vectors[rows], own) < radii
        assert of_class[label]["precision"].value == is_inside.any(1).mean()
        assert of_class[label]["coverage"].value == is_inside.any(0).mean()
    assert found.counts.tolist() == [6, 6]


@pytest.fixture
def where(small_data: Path, small_cache: Path, tmp_path: Path) -> dict[str, Any]:
    return {"data": small_data, "cache": small_cache, "out": tmp_path / "study"}


NET = "efficientnet_lite0"


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_view_and_a_dataset_are_compared_with_real_images(
    where: dict[str, Any], small_data: Path, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(
        cli,
        ["study", "realism", "color_1", "--backbone", NET, "--json", "--quiet"]
        + [word for name, value in where.items() for word in (f"--{name}", str(value))],
    )
    view = json.loads(shown.stdout)
    assert view["n"] == 18 and [row["measure"] for row in view["table"]] == list(MEASURES)
    assert all(row["low"] <= row["value"] <= row["high"] for row in view["table"])
    with (where["out"] / "realism.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(MEASURES) and {row["n"] for row in rows} == {"6"}
    assert (where["out"] / "realism.png").stat().st_size > 10_000

    copies = tmp_path / "made"
    shutil.copytree(small_data / "train/cat", copies / "train/cat")
    found = study_realism(str(copies), NET, **where)
    by_measure = {row["measure"]: row for row in found.table}
    assert found.n == 12 and by_measure["copied"]["value"] == 1.0
    assert by_measure["distance"]["value"] == pytest.approx(0, abs=1e-3)
    assert by_measure["distance"]["real"] > 1 and by_measure["copied"]["real"] < 1


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_what_realism_refuses(where: dict[str, Any], small_data: Path, tmp_path: Path) -> None:
    for target, kind, message in (
        ("none", BadInput, "none is the reference itself"),
        ("colour_1", BadInput, "nearest: color.*; nor is there a dataset of this name"),
        ("spatial_1", NotCached, "--view spatial_1"),
    ):
        with pytest.raises(kind, match=message):
            study_realism(target, NET, **where)
    with pytest.raises(BadInput, match="needs --backbone"):
        study_realism("color_1", **where)
    with pytest.raises(BadInput, match="18 images are too few for 18 neighbours"):
        study_realism("color_1", NET, neighbours=18, **where)
    edited = Path(shutil.copytree(small_data, tmp_path / "edited"))
    image = edited / "train/cat/000.png"
    image.write_bytes(image.read_bytes() + b" ")
    with pytest.raises(NotCached, match=f"1 image of view none; .* --data {edited} --cache"):
        study_realism(str(edited), NET, **where)
    other = shutil.copytree(small_data / "train/cat", tmp_path / "made/train/cow").parent.parent
    with pytest.raises(BadInput, match="has the class 'cow', which"):
        study_realism(str(other), NET, **where)


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_projected_gan_is_not_judged_by_the_network_of_its_discriminator(
    where: dict[str, Any], small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "gen.yaml").write_text(
        "{generator: projected, image_size: 16, channels: 1, batch_size: 2, steps: 2}"
    )
    run = tmp_path / "run"
    fit_generator(tmp_path / "gen.yaml", data=small_data, out=run, device="cpu", workers=0)
    generate(run, out=tmp_path / "made", per_class=6, workers=0)
    with pytest.raises(BadInput, match=f"discriminator of this generator judged images by {NET}"):
        study_realism(str(tmp_path / "made"), NET, **where)
    with pytest.raises(BadInput, match="made: holds generated images, and these would be taken"):
        study_realism("color_1", NET, **where | {"data": tmp_path / "made"})


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_vectors_of_a_sampler_are_compared_with_those_that_it_was_fitted_on(
    where: dict[str, Any], tmp_path: Path
) -> None:
    data, cache = where["data"], where["cache"]
    config, run = tmp_path / "gen.yaml", tmp_path / "gauss"
    config.write_text(f"{{generator: gaussian, backbone: {NET}}}")
    fit_generator(config, data=data, cache=cache, out=run, device="cpu")
    shown = CliRunner().invoke(
        cli,
        ["study", "realism", f"gen:{run}_2", "--backbone", NET, "--json", "--quiet"]
        + [word for name, value in where.items() for word in (f"--{name}", str(value))],
    )
    found = json.loads(shown.stdout)
    by_measure = {row["measure"]: row for row in found["table"]}
    assert found["n"] == 18 and "was fitted on vectors of efficientnet_lite0" in found["notes"][0]
    assert study_realism("gen:gauss_2", NET, runs=tmp_path, **where).table == found["table"]

    dataset = open_dataset(data)
    rows, real = cached_vectors(
        list(labelled_rows(dataset, ["train"], silent)),
        NET,
        View(None),
        StudySource(data=data, cache=cache, setting={}),
    )
    labels = np.array([row.label for row in rows])
    assert labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    first = packed([row.item for row in rows])[::2]
    sampler = find_generated_view("gen:gauss_2", 0, tmp_path)
    every = [(np.arange(18), np.arange(0))]
    made = sampler.drawn(every, first, labels[::2], dataset.classes).make(1, 1)
    expected = realism.kid(realism.kid_terms(made, real[1::2])).value
    assert by_measure["kid"]["value"] == pytest.approx(expected)
    distances = cdist(made, real).min(1)
    assert by_measure["distance"]["value"] == pytest.approx(distances.mean(), rel=1e-5)

    config.write_text(f"{{generator: gaussian, backbone: {NET}, validation: {{folds: 2}}}}")
    fit_generator(config, data=data, cache=cache, out=tmp_path / "folds", device="cpu")
    sampler_of_images = write_sampler(tmp_path / "images", dataset.classes)
    generate(sampler_of_images, out=tmp_path / "made", per_class=1, workers=0)
    for name, message in (
        ("nothing", "not the folder of a run"),
        ("folds", "has one generator per fold"),
        ("made", "a dataset of generated images; name its folder"),
    ):
        with pytest.raises(BadInput, match=message):
            study_realism(f"gen:{tmp_path / name}", NET, **where)
