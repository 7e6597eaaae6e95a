"""Predict: what a trained head says of files, and when it refuses to."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from featurecache.errors import BadInput
from featurecache.features.backbones import load_backbone
from featurecache.stages.cache.export import vectors
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.predict import Prediction, image_files, load_head, predict
from featurecache.stages.heads.train_head import read_run, train_head

COLOURS = {
    "n01": ("red thing, ruby", (220, 30, 30)),
    "n02": ("green thing", (30, 200, 40)),
    "n03": ("blue thing", (30, 40, 220)),
    "n04": ("white thing", (240, 240, 240)),
    "n05": ("black thing", (10, 10, 10)),
    "n06": ("", (210, 210, 20)),  # not in words.txt
}
SCHEDULE = """
backbone: {{name: {backbone}, input_size: 32}}
head: {{hidden: [], dropout: 0.0}}
optimizer: {{lr: 0.02}}
batch_size: 8
validation: {{split: val}}
phases:
  - {{views: none, epochs: 8}}
"""
TINY = "test_efficientnet.r160_in1k"


@dataclass(frozen=True)
class Trained:
    run: Path
    data: Path
    cache: Path
    backbone: str

    def pictures(self, split: str) -> list[Path]:
        return sorted((self.data / split).rglob("*.png"))


def save_pictures(root: Path, wnids: Sequence[str]) -> None:
    """A data set in Tiny ImageNet's layout: noisy pictures of one colour a class."""
    rng = np.random.default_rng(0)
    annotations = []
    for wnid in wnids:
        for split, count in (("train", 6), ("val", 2)):
            folder = root / split / wnid / "images" if split == "train" else root / "val/images"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = COLOURS[wnid][1] + rng.normal(0, 25, (40, 36, 3))
                name = f"{wnid}_{number}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                if split == "val":
                    annotations.append(f"{name}\t{wnid}\t0\t0\t9\t9\n")
    (root / "val/val_annotations.txt").write_text("".join(annotations))
    named = [f"{wnid}\t{words}\n" for wnid, (words, _) in COLOURS.items() if words]
    (root / "words.txt").write_text("".join(named))


def make_run(
    folder: Path, backbone: str, wnids: Sequence[str], weights: str | Path | None = None
) -> Trained:
    made = Trained(folder / "run", folder / "data", folder / "cache", backbone)
    save_pictures(made.data, wnids)
    (folder / "s.yaml").write_text(SCHEDULE.format(backbone=backbone))
    featurize(
        made.data, policy="none", backbone=backbone, cache=made.cache, weights=weights,
        input_size=32, engine="torch-cpu", workers=0,
    )  # fmt: skip
    train_head(folder / "s.yaml", data=made.data, cache=made.cache, out=made.run, device="cpu")
    return made


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Six classes on Lite0's own weights."""
    return make_run(tmp_path_factory.mktemp("six"), "efficientnet_lite0", list(COLOURS))


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three classes on random weights."""
    return make_run(tmp_path_factory.mktemp("three"), TINY, list(COLOURS)[:3], "random")


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of Lite0's shape, not Lite0's own."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    module = load_backbone("efficientnet_lite0", "random", input_size=32).module
    safetensors.torch.save_file(module.state_dict(), path)
    return path


@pytest.mark.slow
def test_probabilities_are_those_of_the_cached_vectors(six: Trained) -> None:
    files = six.pictures("train")
    found = predict(six.run, files, engine="torch-cpu")
    assert [p.path for p in found] == [str(f) for f in files]
    X, y = vectors(six.data, "none", six.backbone, split="train", cache=six.cache)
    head = load_head(six.run)
    wanted = head.predict_proba(X)
    assert len(wanted) == len(found) == 36  # ids and files are both in order of their names
    for prediction, row, label in zip(found, wanted, y, strict=True):
        assert prediction.error is None
        assert Path(prediction.path).name.startswith(str(label))
        named = dict(zip(head.classes_, row, strict=True))
        for entry in prediction.top:
            assert entry["probability"] == pytest.approx(named[entry["class"]], abs=1e-4)
        best = sorted(row, reverse=True)[:5]
        assert [e["probability"] for e in prediction.top] == pytest.approx(best, abs=1e-4)


def test_top_five_sorted_and_named(six: Trained) -> None:
    files = six.pictures("val")
    found = predict(six.run, files, engine="torch-cpu")
    right = sum(p.top[0]["class"] == Path(p.path).name[:3] for p in found)
    assert right >= 9 and len(found) == 12
    for prediction in found:
        assert len(prediction.top) == 5
        probabilities = [entry["probability"] for entry in prediction.top]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0.5 < sum(probabilities) <= 1 + 1e-6
        assert all(set(entry) == {"class", "name", "probability"} for entry in prediction.top)
        for entry in prediction.top:
            # The readable name where the data set has one, else the class.
            assert entry["name"] == (COLOURS[entry["class"]][0] or entry["class"])
    assert {e["name"] for p in found for e in p.top} >= {"red thing, ruby", "n06"}


def test_top_is_capped_at_the_classes(three: Trained) -> None:
    # Random weights are built again from their key; no --weights is needed.
    found = predict(three.run, three.pictures("val"), engine="torch-cpu")
    for prediction in found:
        assert {entry["class"] for entry in prediction.top} == {"n01", "n02", "n03"}
        assert len(prediction.top) == 3
        assert sum(entry["probability"] for entry in prediction.top) == pytest.approx(1, abs=1e-5)


def test_more_files_than_a_micro_batch_and_repeats(three: Trained) -> None:
    files = three.pictures("train")
    assert len(files) == 18  # a micro-batch is 16 on a CPU
    found = predict(three.run, [*files, files[0]], engine="torch-cpu")
    assert [p.path for p in found] == [str(f) for f in [*files, files[0]]]
    for a, b in zip(found[0].top, found[-1].top, strict=True):
        assert a["class"] == b["class"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


@pytest.fixture
def bad_files(tmp_path: Path, three: Trained) -> list[Path]:
    """A truncated picture, a text that says it is one, an empty file."""
    whole = three.pictures("val")[0].read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[:-200])
    (tmp_path / "disguised.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    names = ("truncated.png", "disguised.jpg", "empty.png")
    return [tmp_path / name for name in names]


def test_bad_files_keep_their_place(three: Trained, bad_files: list[Path]) -> None:
    good = three.pictures("val")[:2]
    alone = predict(three.run, good, engine="torch-cpu")
    mixed = [bad_files[0], good[0], *bad_files[1:], good[1]]
    found = predict(three.run, mixed, engine="torch-cpu")
    assert [p.path for p in found] == [str(f) for f in mixed]
    assert [found[1], found[4]] == alone
    for prediction in (found[0], *found[2:4]):
        assert prediction.top == [] and prediction.error


def test_files_that_are_not_there_are_said_before_any_work(three: Trained, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file: .*gone\.png"):
        predict(three.run, [*three.pictures("val"), tmp_path / "gone.png"])


def test_a_folder_stands_for_its_images(three: Trained, tmp_path: Path) -> None:
    below = tmp_path / "new/deep"
    below.mkdir(parents=True)
    for name, picture in zip(("b.png", "a.png"), three.pictures("val"), strict=False):
        shutil.copy(picture, below / name)
    (below / "notes.txt").touch()
    found = predict(three.run, [tmp_path / "new"], engine="torch-cpu")
    assert [each.path for each in found] == [f"{below}/a.png", f"{below}/b.png"]
    assert all(each.top for each in found)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty: a folder without images"):
        predict(three.run, [tmp_path / "empty"])


def test_one_path_is_one_file(three: Trained) -> None:
    picture = three.pictures("val")[0]
    (found,) = predict(three.run, str(picture), engine="torch-cpu")
    assert found == predict(three.run, [picture], engine="torch-cpu")[0] and found.top
    with pytest.raises(BadInput, match="no such file: xxx"):
        predict(three.run, "x" * 5000)


def test_bad_files_only(three: Trained, bad_files: list[Path]) -> None:
    found = predict(three.run, bad_files[:1])
    assert found == [Prediction(path=str(bad_files[0]), top=[], error=found[0].error)]
    assert found[0].error


def test_patterns_are_files_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", "c[1].png", "d/e/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*patterns: str) -> list[str]:
        files = image_files([str(tmp_path / pattern) for pattern in patterns])
        return [Path(file).relative_to(tmp_path).as_posix() for file in files]

    assert names("*/*.png") == ["a/1.png", "b/2.png"]
    assert names("**/*.*") == ["a/1.png", "b/2.png", "c[1].png", "d/e/3.txt"]
    assert names("[ab]", "c[1].png") == ["a/1.png", "b/2.png", "c[1].png"]
    with pytest.raises(BadInput, match=r"no such file: .*\*\.jpg"):
        names("*.jpg")
    (tmp_path / "d/list.txt").write_text("../b/2.png\n../a/1.png\n")
    assert names("d/list.txt") == ["d/../b/2.png", "d/../a/1.png"]
    (tmp_path / "t.csv").write_text("filename,width\na/1.png,3\n")
    assert names("t.csv", "b/2.png") == ["a/1.png", "b/2.png"]
    (tmp_path / "t.csv").write_text("path\ns3://b/1.png\n")
    with pytest.raises(BadInput, match=r"files of this machine, not s3://b/1\.png"):
        names("t.csv")


def test_a_table_of_the_top_classes(six: Trained, bad_files: list[Path], tmp_path: Path) -> None:
    files = [*six.pictures("val")[:2], bad_files[0]]
    result = predict(six.run, files, engine="torch-cpu", top=2, out=tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "path", "class", "probability", "class_2", "probability_2", "error"
    ]  # fmt: skip
    for row, prediction in zip(rows, result, strict=True):
        assert row["path"] == prediction.path and row["error"] == (prediction.error or "")
        classes = [row["class"], row["class_2"]]
        assert [top["class"] for top in prediction.top] == [name for name in classes if name]
    assert [len(prediction.top) for prediction in result] == [2, 2, 0]
    assert float(rows[0]["probability"]) == pytest.approx(result[0].top[0]["probability"], abs=1e-6)
    assert [len(p.top) for p in predict(six.run, files[:1], engine="torch-cpu", top=99)] == [6]
    for wrong, message in (({"top": 0}, "top 0"), ({"out": tmp_path / "a.txt"}, r"end in \.csv")):
        with pytest.raises(BadInput, match=message):
            predict(six.run, files, **wrong)


def test_no_run(tmp_path: Path, three: Trained) -> None:
    files = three.pictures("val")
    with pytest.raises(BadInput, match="nowhere: not the folder of a run"):
        predict(tmp_path / "nowhere", files)
    with pytest.raises(BadInput, match="not the folder of a run"):
        load_head(tmp_path)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(three.run, unfinished)
    record = json.loads((unfinished / "run.json").read_text())
    del record["best"], record["last"]
    (unfinished / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="its training is not finished"):
        predict(unfinished, files)


def test_other_weights_are_refused(six: Trained, other_weights: Path) -> None:
    with pytest.raises(BadInput, match="is not the network of these vectors") as error:
        predict(six.run, six.pictures("val"), weights=other_weights)
    assert "weights: " in str(error.value) and "--weights" in str(error.value)


@pytest.mark.slow
def test_a_run_on_a_weights_file_needs_it_again(tmp_path: Path, other_weights: Path) -> None:
    made = make_run(tmp_path, "efficientnet_lite0", list(COLOURS)[:2], other_weights)
    files = made.pictures("val")
    with pytest.raises(BadInput, match="pass the --weights that they were computed with"):
        predict(made.run, files)
    found = predict(made.run, files, weights=other_weights, engine="torch-cpu")
    assert [len(p.top) for p in found] == [2] * 4


@pytest.mark.slow
def test_each_weights_file_finds_its_network(
    three: Trained, tmp_path: Path, other_weights: Path
) -> None:
    made = make_run(tmp_path, "efficientnet_lite0", list(COLOURS)[:3], other_weights)
    featurize(
        made.data, policy="none", backbone=TINY, cache=made.cache, weights="random",
        input_size=32, engine="torch-cpu", workers=0,
    )  # fmt: skip
    names = [TINY, "efficientnet_lite0"]
    run = train_head(
        tmp_path / "s.yaml", data=made.data, cache=made.cache, runs=tmp_path, backbone=names
    ).run
    files = made.pictures("val")
    found = predict(run, files, weights=[other_weights], engine="torch-cpu")
    assert [len(p.top) for p in found] == [3] * 6
    assert predict(run, files, weights=[other_weights, "random"], engine="torch-cpu") == found
    with pytest.raises(BadInput, match="pass the --weights that they were computed with"):
        predict(run, files)
    stray = tmp_path / "stray.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, stray)
    with pytest.raises(BadInput, match=r"stray\.safetensors: does not fit"):
        predict(run, files, weights=[other_weights, stray])


def test_load_head(six: Trained) -> None:
    head = load_head(six.run)
    assert list(head.classes_) == list(COLOURS) == read_run(six.run).classes
    assert head.n_features_in_ == 1280


@pytest.mark.slow
def test_exit_codes(three: Trained, bad_files: list[Path]) -> None:
    good, bad = str(three.pictures("val")[0]), str(bad_files[0])

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "featurecache", "predict", *arguments, "--engine", "torch-cpu"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = command(str(three.run), good, bad, "--json")
    assert done.returncode == 3
    first, second = json.loads(done.stdout)
    assert (first["path"], len(first["top"])) == (good, 3)
    assert (second["path"], second["top"]) == (bad, []) and second["error"]
    assert f"failed: {bad}: " in done.stderr
    allowed = command(str(three.run), good, bad, "--allow-failed")
    assert allowed.returncode == 0
    assert "red thing, ruby" in allowed.stdout and f"failed: {bad}: " in allowed.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak in /proc")
def test_memory_does_not_grow_with_the_number_of_photos(three: Trained, tmp_path: Path) -> None:
    """`predict` and `inspect` on photos of 6 megapixels, 18 MB each once decoded."""
    (tmp_path / "photos/a").mkdir(parents=True)
    photo = tmp_path / "photos/a/0.jpg"
    Image.new("RGB", (3000, 2000), (9, 90, 200)).save(photo, quality=30)
    for number in range(1, 24):
        os.link(photo, tmp_path / f"photos/a/{number}.jpg")
    # Not resource.getrusage: the peak of a process that this one starts would begin at its own.
    code = f"""
from featurecache.stages.looking.inspect import inspect
from featurecache.stages.heads.predict import predict

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))

predict({str(three.run)!r}, [{str(photo)!r}] * 2)
before = peak()
predict({str(three.run)!r}, [{str(photo)!r}] * 24)
print(peak() - before)
inspect({str(tmp_path / "photos")!r})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    predicted, both = map(int, done.stdout.split())
    assert predicted < 80  # of the 400 that the pictures are
    assert both < 380  # eight threads of `inspect` have a photo each
