"""Studies of vectors and views, through the command line, on real caches."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featurecache.cli import cli
from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.images.datasets import Dataset
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.looking.report import report
from featurecache.stages.studies.drift import study_drift
from featurecache.stages.studies.neighbours import study_neighbours
from featurecache.stages.studies.pca import study_pca
from featurecache.stages.studies.tsne import chosen_classes, readable_names, study_tsne

pytestmark = pytest.mark.usefixtures("load_once")
NET = "efficientnet_lite0"


@pytest.fixture
def where(small_data: Path, small_cache: Path, tmp_path: Path) -> dict[str, Any]:
    return {"data": small_data, "cache": small_cache, "out": tmp_path / "study"}


def written(where: dict[str, Any], name: str) -> dict[str, Any]:
    """The JSON of a study, whose four files must be sound."""
    folder = Path(where["out"])
    assert (folder / f"{name}.svg").read_bytes().startswith(b"<?xml")
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.size[0] > 300
    with (folder / f"{name}.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) > 1 and len({len(line) for line in lines}) == 1
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["study"] == name and found["title"]
    return dict(found)


@pytest.mark.slow
def test_pca_of_pixels_and_vectors(where: dict[str, Any]) -> None:
    found = study_pca(NET, pixels=6, **where)
    assert [(row["of"], row["n"], row["dim"]) for row in found.table] == [
        ("pixels, red", 36, 36),
        ("pixels, green", 36, 36),
        ("pixels, blue", 36, 36),
        (f"vectors, {NET}", 36, 1280),
    ]
    X, _ = vectors(where["data"], "none", NET, split="train", cache=where["cache"])
    values = np.linalg.svd(np.asarray(X) - np.asarray(X).mean(0), compute_uv=False) ** 2
    curve = np.cumsum(values) / values.sum()
    assert found.table[3]["components_90"] == np.searchsorted(curve, 0.9) + 1
    assert found.table[3]["components_95"] == np.searchsorted(curve, 0.95) + 1
    assert all(row["singular_90"] >= row["components_90"] for row in found.table)
    assert written(where, "pca")["table"] == found.table
    assert len(study_pca(images=9, **where).table) == 3


@pytest.mark.slow
def test_an_embedding_shows_the_images_of_its_classes(where: dict[str, Any]) -> None:
    found = study_tsne(NET, classes=["owl", "cat"], images=20, **where)
    assert [row["class"] for row in found.table] == ["cat", "owl"]
    points = written(where, "tsne")["points"]
    assert len(points) == found.n == 20 == sum(row["n"] for row in found.table)
    for point in points:
        assert point["path"].startswith(f"train/{point['class']}/")
        assert point["src"].startswith("data:image/jpeg;base64,")
    page = Path(found.files[-1]).read_text()
    assert page.count("<circle") == 2 * page.count("<image") == 40
    assert "http:" not in page.replace("http://www.w3.org", "") and "<script" not in page
    drawn = [
        study_tsne(NET, count=1, sampling_seed=seed, **where).table[0]["class"] for seed in range(6)
    ]
    assert len(set(drawn)) > 1
    with pytest.raises(UnknownName, match="nearest: owl"):
        study_tsne(NET, classes="owls", **where)


@pytest.mark.slow
def test_each_seed_of_an_embedding_is_of_one_thing(where: dict[str, Any]) -> None:
    """Other classes and another start need no other vectors. (t-SNE starts from components.)"""
    given = {"view": "color_1", "count": 2, "images": 12, **where}
    first = study_tsne(NET, **given)
    assert study_tsne(NET, embedding_seed=3, **given).table == first.table
    numbers = written(where, "tsne")
    assert [numbers[f"{name}seed"] for name in ("", "sampling_", "embedding_")] == [0, 0, 3]
    assert {
        tuple(row["class"] for row in study_tsne(NET, sampling_seed=seed, **given).table)
        for seed in range(4)
    } != {tuple(row["class"] for row in first.table)}
    with pytest.raises(NotCached, match="--seed 3 --view color_1"):
        study_tsne(NET, seed=3, **given)
    with pytest.raises(BadInput, match="embedding_seed -1"):
        study_tsne(NET, embedding_seed=-1, **given)
    assert any("--sampling-seed draws" in n for n in study_tsne(NET, seed=1, **where).notes)


@pytest.mark.slow
def test_more_than_there_is_is_said(where: dict[str, Any], small_data: Path) -> None:
    found = study_tsne(NET, count=9, images=10, **where)
    assert found.notes == [
        f"{small_data} has only 3 classes",
        "used perplexity 3 instead of 30: with 10 images it can't be higher",
    ]
    assert written(where, "tsne")["perplexity"] == 3
    image = small_data / "train/cat/000.png"
    near = study_neighbours(image, NET, count=99, **where)
    assert len(near.table) == 47 and near.notes == ["there are only 47 other images"]
    drift = study_drift(NET, neighbours=20, **where)
    (note,) = drift.notes
    assert note.startswith("3 of 3 classes have at most 20 images;") and "(11 in cat)" in note


def test_classes_go_by_their_names_and_by_each_readable_one() -> None:
    words = {"n1": "crane", "n2": "goldfish, Carassius auratus", "n3": "crane, derrick"}
    dataset = Dataset("root", "csv", (), ("n1", "n2", "n3"), words)
    for name in ("n2", "goldfish", "Carassius auratus", "goldfish, Carassius auratus"):
        assert chosen_classes(dataset, [name], 5, 0) == [1]
    assert chosen_classes(dataset, ["derrick", "n1", "n3"], 5, 0) == [0, 2]
    with pytest.raises(BadInput, match="class 'crane' is ambiguous; name one of these: n1, n3"):
        chosen_classes(dataset, ["crane"], 5, 0)
    assert readable_names(dataset, [0, 2]) == {0: "crane", 2: "crane, derrick"}
    alike = Dataset("root", "csv", (), ("n1", "n3"), {"n1": "crane", "n3": "crane"})
    assert readable_names(alike, [0, 1]) == {0: "crane (n1)", 1: "crane (n3)"}


@pytest.mark.slow
def test_drift_orders_views_by_what_they_break(
    where: dict[str, Any], small_data: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "noise.yaml").write_text(
        "augmenters:\n  - MultiplyElementwise: {mul: {range: [0.0, 0.05]}, per_channel: true}\n"
    )
    views = ["none", "mirror_1", f"{tmp_path / 'noise.yaml'}_1"]
    featurize(small_data, policy=views, cache=cache, **tiny)
    found = study_drift(NET, views, **{**where, "cache": cache})
    none, mirror, noise = found.table
    assert none["cosine_5"] == pytest.approx(1) and none["broken"] == []
    assert mirror["cosine_50"] > noise["cosine_50"]
    assert len(mirror["broken"]) == len(noise["broken"]) == 10
    assert all(0 <= row["agreement"] <= 1 for row in found.table)
    with (where["out"] / "drift.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = sorted((float(row["cosine"]), row["path"]) for row in rows if row["view"] == "noise_1")
    assert [path for _, path in own[:10]] == noise["broken"] and len(own) == 36
    assert written(where, "drift")["table"] == found.table


@pytest.mark.slow
def test_drift_takes_the_views_that_are_held(where: dict[str, Any]) -> None:
    found = study_drift(NET, images=12, neighbours=3, **where)
    assert [row["view"] for row in found.table] == ["none", "color_1"] and found.n == 12
    with pytest.raises(NotCached, match="spatial_1"):
        study_drift(NET, "spatial_1", **where)
    with pytest.raises(BadInput, match="holds no view"):
        study_drift(NET, seed=5, **where)


@pytest.mark.slow
def test_drift_finds_a_policy_of_ones_own_and_says_what_it_leaves_out(
    where: dict[str, Any], small_data: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    own = tmp_path / "flip.yaml"
    own.write_text("augmenters:\n  - Fliplr: {p: 1.0}\n")
    with pytest.raises(NotCached, match=rf"--view {own}_1"):
        study_drift(NET, f"{own}_1", **where)
    featurize(small_data, policy=["none", f"{own}_1"], cache=cache, **tiny)
    (tmp_path / "other").mkdir()
    namesake = tmp_path / "other" / "flip.yaml"
    namesake.write_text("augmenters:\n  - Flipud: {p: 1.0}\n")
    featurize(small_data, policy=f"{namesake}_1", cache=cache, **tiny)
    own.unlink()
    fewer = Path(shutil.copytree(small_data, tmp_path / "fewer"))
    for path in (fewer / "train").rglob("00[0-5].png"):
        path.unlink()
    featurize(fewer, policy="color_1", cache=cache, **tiny)
    found = study_drift(NET, **{**where, "cache": cache})
    assert [row["view"] for row in found.table] == ["none", "flip_1"]
    assert found.notes == [
        "color_1 is left out: it lacks 18 of these images",
        "several cached views are named flip_1; only one is measured",
    ]


@pytest.mark.slow
def test_neighbours_of_a_cached_image_and_of_a_new_one(
    where: dict[str, Any], small_data: Path, tmp_path: Path
) -> None:
    own = small_data / "train" / "cat" / "003.png"
    found = study_neighbours(own, NET, count=4, **where)
    assert found.n == 47 and len(found.table) == 4
    cosines = [row["cosine"] for row in found.table]
    assert cosines == sorted(cosines, reverse=True)
    assert "train/cat/003.png" not in [row["path"] for row in found.table]
    assert written(where, "neighbours")["computed"] is False

    new = tmp_path / "new.png"  # the same pixels in other bytes
    Image.open(own).save(new, compress_level=1, pnginfo=None)
    assert new.read_bytes() != own.read_bytes()
    again = study_neighbours(new, NET, count=1, engine="torch-cpu", **where)
    assert again.table[0]["path"] == "train/cat/003.png"
    assert again.table[0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert written(where, "neighbours")["computed"] is True
    only = study_neighbours(new, NET, split="val", count=99, engine="torch-cpu", **where)
    assert len(only.table) == only.n == 12


@pytest.mark.slow
def test_images_that_went_are_left_out_of_pictures(
    where: dict[str, Any], small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurecache.images import samples

    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    real = samples.Sample.read

    def gone(self: samples.Sample) -> bytes:
        if self.id.endswith("001.png"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(self)

    monkeypatch.setattr(samples.Sample, "read", gone)
    found = study_tsne(NET, count=3, **{**where, "data": data})
    points = written(where, "tsne")["points"]
    assert found.n == len(points) == 36
    assert sorted(p["path"] for p in points if not p["src"]) == [
        f"train/{name}/001.png" for name in ("cat", "dog", "owl")
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda **w: study_pca(images=1, **w), "at least 2 images"),
        (lambda **w: study_pca(split="nope", **w), "nope"),
        (lambda **w: study_tsne(**w), "needs --backbone"),
        (lambda **w: study_tsne(NET, perplexity=0, **w), "above 0"),
        (lambda **w: study_tsne(NET, count=0, **w), "1 or more"),
        (lambda **w: study_tsne(NET, images=3, **w), "at least 5"),
        (lambda **w: study_tsne(NET, method="pca", **w), "unknown embedding"),
        (lambda **w: study_drift(**w), "needs --backbone"),
        (lambda **w: study_drift(NET, neighbours=0, **w), "1 neighbour"),
        (lambda **w: study_neighbours("nope.png", NET, **w), "nope.png: cannot be read"),
        (lambda **w: study_neighbours("pyproject.toml", NET, **w), "cannot be read as an image"),
        (lambda **w: study_neighbours("nope.png", **w), "needs --backbone"),
        (lambda **w: study_neighbours("nope.png", NET, count=0, **w), "1 or more"),
    ],
)
def test_what_is_wrong_is_said(call: Any, said: str, where: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=said):
        call(**where)
    assert not list(Path(where["out"]).glob("*")) if Path(where["out"]).exists() else True


def test_an_unknown_keyword_is_refused_as_python_does(where: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="'inputsize'; nearest: input_size"):
        study_pca(NET, inputsize=3, **where)
    with pytest.raises(TypeError, match="unexpected keyword argument 'view'"):
        study_drift(NET, view="none", **where)


@pytest.mark.slow
def test_the_commands_write_and_the_report_shows(
    where: dict[str, Any], small_runs: dict[str, Path]
) -> None:
    paths = ["--data", str(where["data"]), "--cache", str(where["cache"]), "--quiet"]
    out = ["--out", str(where["out"])]
    for name, more in (
        ("pca", ["--pixels", "4"]),
        ("tsne", ["--count", "2"]),
        ("drift", ["--input-size", "32"]),
        ("neighbours", [str(Path(where["data"]) / "val" / "dog" / "000.png")]),
    ):
        words = ["study", name, *more, "--backbone", NET, *paths, *out]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(cli, [*words, "--json"])
        assert json.loads(done.stdout)["study"] == name
    page = Path(where["out"]) / "report.html"
    given = {"data": where["data"], "cache": where["cache"], "out": page}
    found = report(small_runs["split"], study=where["out"], **given)
    text = page.read_text()
    assert found.bytes < 2_000_000 and text.count('class="study"') == 4
    assert text.count("<circle") == 48  # the embedding, with its images


@pytest.mark.slow
def test_points_that_no_study_wrote_are_refused(
    where: dict[str, Any], small_runs: dict[str, Path]
) -> None:
    study_tsne(NET, count=1, images=6, **where)
    path = Path(where["out"]) / "tsne.json"
    good = json.loads(path.read_text())
    given = {"data": where["data"], "cache": where["cache"], "out": path.with_name("r.html")}
    for change in (
        {"src": "http://127.0.0.1/x.png"},
        {"src": 'data:image/jpeg;base64,"'},
        {"x": "a"},
    ):
        bad = {**good, "points": [{**good["points"][0], **change}]}
        path.write_text(json.dumps(bad))
        with pytest.raises(BadInput, match=r"tsne\.json: not the result of a study"):
            report(small_runs["split"], study=where["out"], **given)
