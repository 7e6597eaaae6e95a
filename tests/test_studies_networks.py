"""The studies of networks: what saliency and filters leave, say, and refuse."""

from __future__ import annotations

import csv
import json
import os
import shutil
import xml.dom.minidom
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from torch import nn

from featurecache.cli import cli
from featurecache.errors import BadInput, UnknownName
from featurecache.images.datasets import open_dataset
from featurecache.stages.heads.predict import predict
from featurecache.stages.studies.filters import study_filters
from featurecache.stages.studies.saliency import study_saliency
from featurecache.study import filters
from featurecache.study.sampling import evenly_spaced

pytestmark = pytest.mark.usefixtures("load_once")
TINY = "test_efficientnet.r160_in1k"


@pytest.fixture
def boxed(small_data: Path, tmp_path: Path) -> Path:
    """`small_data` with boxes of the classes cat (a quarter of the picture) and dog (all of it)."""
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    lines = [f"{number:03}.png\t0\t0\t5\t5\n" for number in range(4)]
    (data / "val/cat/cat_boxes.txt").write_text("".join(lines))
    (data / "val/dog/dog_boxes.txt").write_text("001.png\t0\t0\t11\t11\n")
    return data


@pytest.mark.slow
def test_saliency_of_two_runs(boxed: Path, small_runs: dict[str, Path], tmp_path: Path) -> None:
    runs = [small_runs["split"], small_runs["folds"]]
    found = study_saliency(runs, data=boxed, images=6, out=tmp_path / "out")
    assert [Path(file).name for file in found.files] == [
        f"saliency.{end}" for end in ("svg", "png", "csv", "json")
    ]
    ids = [sample.id for sample in open_dataset(boxed).split("val")]
    assert [one["image"] for one in found.maps] == 2 * evenly_spaced(ids, 6)  # run after run
    assert [one["run"] for one in found.maps] == [str(run) for run in runs for _ in range(6)]
    for run in runs:
        own = [one for one in found.maps if one["run"] == str(run)]
        said = predict(run, [boxed / one["image"] for one in own], engine="torch-cpu")
        for one, answer in zip(own, said, strict=True):
            assert one["class"] == answer.top[0]["class"]
            assert one["probability"] == pytest.approx(answer.top[0]["probability"], abs=1e-4)
            assert one["truth"] == one["image"].split("/")[1]
    by_image = {one["image"]: one for one in found.maps}
    assert by_image["val/cat/000.png"]["area"] == 0.25
    assert 0 < by_image["val/cat/000.png"]["inside"] < 1
    assert by_image["val/dog/000.png"]["area"] is by_image["val/dog/000.png"]["inside"] is None
    for mean in found.runs:
        assert mean["images"] == 2 and mean["area"] == 0.25
    with Path(found.files[2]).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == [one["class"] for one in found.maps]
    assert [line["inside"] == "" for line in lines] == [one["inside"] is None for one in found.maps]
    numbers = json.loads(Path(found.files[3]).read_text())
    assert numbers["maps"] == found.maps and numbers["study"] == "saliency"
    with Image.open(found.files[1]) as picture:
        picture.verify()


@pytest.mark.slow
def test_a_box_around_everything_holds_everything(
    boxed: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    file = boxed / "val/dog/001.png"
    for method in ("gradient", "smoothgrad", "gradcam"):
        (one,) = study_saliency(
            small_runs["split"],
            image=file,
            method=method,
            samples=2,
            class_name="owl",
            out=tmp_path,
        ).maps
        assert one["class"] == "owl" and one["truth"] is None
        assert one["area"] == 1
        assert one["inside"] in (None, pytest.approx(1))  # None: no evidence for the class at all


@pytest.mark.slow
def test_the_same_study_leaves_the_same_files(
    boxed: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    def files(name: str, seed: int) -> list[bytes]:
        found = study_saliency(
            [small_runs["split"]],
            image=[boxed / "val/cat/000.png"],
            method="smoothgrad",
            samples=2,
            seed=seed,
            out=tmp_path / name,
        )
        return [Path(file).read_bytes() for file in found.files]

    assert files("a", 0) == files("b", 0)
    assert files("a", 0)[1] != files("c", 1)[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "gradcan"}, "unknown method 'gradcan'; nearest: gradcam"),
        ({"images": 0}, "images 0: must be 1 or more"),
        ({"images": 101}, "101 images: a figure holds at most 100"),
        ({"samples": 0}, "samples 0: must be 1 or more"),
        ({"noise": 0.0}, "noise 0.0: must be above 0"),
        ({"seed": -1}, "seed -1: must be 0 or more"),
        ({"class_name": "owls"}, "unknown class 'owls'; nearest: owl"),
        ({"image": "nowhere.png"}, "no such file: nowhere.png"),
        ({"split": "tst"}, "unknown split 'tst'"),
        ({"data": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_saliency_says_what_is_wrong_before_any_work(
    boxed: Path,
    small_runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=said):
        study_saliency(small_runs["split"], **{"data": boxed, **given})
    assert not Path("study").exists()


def test_saliency_of_what_is_no_image_or_no_run(
    boxed: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "text.png"
    file.write_text("no image")
    with pytest.raises(BadInput, match=r"text.png: .*; choose other images with --image"):
        study_saliency(small_runs["split"], image=file, out=tmp_path / "out")
    with pytest.raises(BadInput, match="not the folder of a run"):
        study_saliency(tmp_path, image=boxed / "val/cat/000.png", out=tmp_path / "out")
    with pytest.raises(BadInput, match="saliency needs the folder of a run"):
        study_saliency([], image=boxed / "val/cat/000.png")
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadInput, match="pass another --out"):
        study_saliency(small_runs["split"], data=boxed, out=tmp_path / "taken/out")


def test_hostile_file_names(boxed: Path, small_runs: dict[str, Path], tmp_path: Path) -> None:
    name = b"a\x1b[31m\n<b>$x$ &\xff.png"
    file = tmp_path / os.fsdecode(name)
    shutil.copy(boxed / "val/cat/000.png", file)
    found = study_saliency(small_runs["split"], image=file, out=tmp_path)
    assert found.maps[0]["image"].endswith("<b>$x$ &\\xff.png")
    xml.dom.minidom.parse(str(tmp_path / "saliency.svg"))
    assert "\\xff.png" in Path(found.files[2]).read_text()


def test_saliency_on_the_command_line(
    boxed: Path, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    words = ["study", "saliency", str(small_runs["split"]), "--data", str(boxed), "--images", "1"]
    plain = CliRunner().invoke(cli, [*words, "--out", str(tmp_path)])
    assert plain.exit_code == 0, plain.output
    assert "val/cat/000.png" in plain.stdout and "saliency.svg" in plain.stdout
    printed = CliRunner().invoke(cli, [*words, "--out", str(tmp_path), "--json"])
    assert json.loads(printed.stdout)["maps"][0]["image"] == "val/cat/000.png"


# ---- filters ----


def test_filters_of_a_network(tmp_path: Path) -> None:
    found = study_filters(TINY, weights="random", max_tiles=10, out=tmp_path)
    first, last = found.layers
    assert (first.place, first.layer, first.kind) == ("first", "conv_stem", "colour")
    assert first.shape[1] == 3 and first.tiles == first.shape[0] and first.shown <= 10
    assert last.kind == "grey" and last.shape[2] > 1  # conv_head is of one pixel
    assert (last.tiles, last.shown) == (last.shape[0] * last.shape[1], 10)
    assert last.norm_least <= last.norm_mean <= last.norm_greatest
    (note,) = found.notes
    assert last.layer in note and "conv_head, are of one pixel" in note
    numbers = json.loads((tmp_path / "filters.json").read_text())
    assert [layer["layer"] for layer in numbers["layers"]] == [first.layer, last.layer]
    with (tmp_path / "filters.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["shape"] == "x".join(map(str, first.shape))
    with Image.open(tmp_path / "filters.png") as picture:
        picture.verify()


def test_filters_of_one_convolution_alone(tmp_path: Path) -> None:
    found = study_filters("test_vit", weights="random", out=tmp_path)
    assert [layer.place for layer in found.layers] == ["first"]
    assert found.notes == ["patch_embed.proj is the only convolution larger than one pixel"]


def test_filters_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown backbone 'efficientnet_lite9'"):
        study_filters("efficientnet_lite9", out=tmp_path)
    with pytest.raises(BadInput, match="most 0: must be 1 or more"):
        study_filters(TINY, max_tiles=0, out=tmp_path)


@pytest.mark.slow
def test_filters_on_the_command_line(tmp_path: Path) -> None:
    words = ["study", "filters", "--backbone", TINY, "--weights", "random", "--out", str(tmp_path)]
    plain = CliRunner().invoke(cli, words)
    assert plain.exit_code == 0, plain.output
    assert "conv_stem" in plain.stdout and "of one pixel" in plain.stdout
    printed = CliRunner().invoke(cli, [*words, "--json"])
    assert json.loads(printed.stdout)["backbone"] == TINY


def test_convolutions_are_found_in_order() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Sequential(nn.Conv2d(2, 4, (1, 3))), nn.ReLU())
    found = filters.convolutions(network)
    assert {name: weight.shape for name, weight in found.items()} == {
        "0": (2, 3, 3, 3),
        "1.0": (4, 2, 1, 3),
    }
    assert filters.slices(found["1.0"]).shape == (8, 1, 3)


def test_spread_is_even_and_keeps_order() -> None:
    tiles = np.arange(10.0).reshape(10, 1, 1)
    assert evenly_spaced(tiles[:, 0, 0].tolist(), 4) == [0, 3, 6, 9]
    assert len(evenly_spaced(tiles, 99)) == 10


def test_a_mosaic_scales_each_tile_by_itself() -> None:
    tiles = np.array([[[0.0, 1.0]], [[-3.0, 5.0]], [[2.0, 2.0]]])
    picture = filters.mosaic(tiles)
    assert picture.shape[2] == 3 and picture.min() >= 0 and picture.max() <= 1
    grey = [tuple(pixel) for row in picture for pixel in row if len(set(pixel)) == 1]
    assert sorted(pixel[0] for pixel in grey) == [0, 0, 0, 0, 1, 1]
