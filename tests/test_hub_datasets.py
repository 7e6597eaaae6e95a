"""Datasets of Hugging Face: its objects, from disk and from memory; and what the hub may answer."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadInput, MissingExtra, UnknownName
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import Member

hub = pytest.importorskip("datasets")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Split folders of two classes with four images each."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for n in range(4):
                Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{n}.png")
    return root


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub.disable_progress_bars()
    yield
    hub.enable_progress_bars()


def rows(root: Path, split: str = "train") -> dict[str, list[Any]]:
    files = sorted((root / split).rglob("*.png"))
    return {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [("cat", "dog").index(file.parent.name) for file in files],
        "patient": [f"p{n // 2}" for n in range(len(files))],
    }


def dataset_of(root: Path, split: str = "train", **more: Any) -> Any:
    features = hub.Features(
        {"image": hub.Image(), "label": hub.ClassLabel(names=["cat", "dog"]),
         "patient": hub.Value("string")}
    )  # fmt: skip
    return hub.Dataset.from_dict(rows(root, split) | more, features=features)


def items(dataset: Any) -> list[tuple[bytes, int | None, str]]:
    return sorted((s.item(), s.label, s.split) for s in dataset)


def class_by_item(data: Any) -> dict[bytes, str]:
    opened = open_dataset(data)
    return {s.item(): opened.classes[s.label] for s in opened if s.label is not None}


def test_images_have_the_items_of_their_files(photos: Path, tmp_path: Path) -> None:
    whole = open_dataset(photos)
    parts = hub.DatasetDict({split: dataset_of(photos, split) for split in ("train", "test")})
    opened = open_dataset(parts)
    assert items(opened) == items(whole) and opened.classes == ("cat", "dog")
    assert items(open_dataset(dict(parts))) == items(whole)
    assert [s.id for s in opened][:2] == ["train/0", "train/1"] and opened.location == ""
    assert all(isinstance(s.source, bytes) for s in opened)
    parts.save_to_disk(tmp_path / "saved")
    read = open_dataset(hub.load_from_disk(tmp_path / "saved"))
    assert items(read) == items(whole)
    assert all(isinstance(s.source, Member) for s in read)  # nothing is kept in memory


def test_rows_in_another_order_or_some_of_them(photos: Path, tmp_path: Path) -> None:
    dataset_of(photos).save_to_disk(tmp_path / "saved")
    saved = hub.load_from_disk(tmp_path / "saved")
    everything = class_by_item(saved)
    for part in (saved.shuffle(seed=1), saved.select([6, 1]), saved.select(range(2, 5)),
                 saved.filter(lambda row: row["label"] == 1),
                 saved.rename_column("image", "photo"),
                 hub.concatenate_datasets([saved, dataset_of(photos, "test")])):  # fmt: skip
        opened = open_dataset(part)
        name = "photo" if "photo" in part.features else "image"
        wanted = [row[name]["bytes"] for row in part.cast_column(name, hub.Image(decode=False))]
        assert [s.read() for s in opened] == wanted
        classes = class_by_item(part)
        shared = classes.keys() & everything.keys()
        assert shared and all(classes[item] == everything[item] for item in shared)
    assert isinstance(open_dataset(saved.shuffle(seed=1))[0].source, Member)


def test_a_folder_that_datasets_has_read(photos: Path) -> None:
    loaded = hub.load_dataset("imagefolder", data_dir=str(photos))
    opened = open_dataset(loaded)
    assert items(opened) == items(open_dataset(photos))
    assert all(isinstance(s.source, Path) for s in opened)


def test_labels_splits_and_groups(photos: Path) -> None:
    data = dataset_of(photos, label=[0, 1, 0, 1, 0, 1, 0, -1])
    with pytest.raises(BadInput, match=r"datasets.Dataset\[7\]: no label"):
        open_dataset(data)
    opened = open_dataset(data.select(range(7)), group_column="patient")
    assert [s.group for s in opened][:3] == ["p0", "p0", "p1"] and opened.splits == ("train",)
    plain = open_dataset(data.remove_columns("label"))
    assert plain.splits == ("test",) and plain.classes == ()
    assert any("unlabelled" in note for note in plain.notes)
    texts = data.cast_column("label", hub.Value("int64")).select(range(7))
    assert open_dataset(texts.rename_column("label", "target")).classes == ("0", "1")
    split = data.select(range(7)).add_column("part", ["train"] * 4 + ["val"] * 3)
    assert open_dataset(split, split_column="part").splits == ("train", "val")
    parts = hub.DatasetDict({"train": data.select(range(4)), "extra": data.select([4])})
    assert open_dataset(parts).notes[0].startswith("parts that are no splits")


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        (lambda d: d.remove_columns("image"), {}, r"no column of images; its columns: label \(Cl"),
        (lambda d: d.map(lambda row: {"mask": row["image"]}), {},
         "columns 'image' and 'mask' may be the path; choose with --path-column NAME"),
        (lambda d: d.cast_column("patient", hub.ClassLabel(names=["p0", "p1", "p2", "p3"])), {},
         "columns 'label' and 'patient' may be the label; choose with --label-column"),
        (lambda d: d, {"path_column": "label"}, "column 'label' does not hold images"),
        (lambda d: d, {"label_column": "image"}, "column 'image' holds Image; expected one value"),
        (lambda d: d, {"split_column": "patient"}, r"\[0\]: unknown split 'p0'"),
        (lambda d: d.select([]), {}, "holds no rows"),
        (lambda d: hub.DatasetDict({"a": d, "b": d}), {}, "none of its parts is a split: a, b"),
        (lambda d: hub.DatasetDict({"val": d, "dev": d}), {}, "'val' is not the only part that"),
        pytest.param(lambda d: d.to_iterable_dataset(), {}, "load it without streaming",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_datasets_that_are_refused(
    photos: Path, change: Any, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        open_dataset(change(dataset_of(photos)), **columns)
    with pytest.raises(UnknownName, match=r"unknown column 'lable'.*label"):
        open_dataset(dataset_of(photos), label_column="lable")


def test_a_url_is_loaded_with_its_config_and_revision(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def load(name: str, config: str | None, revision: str | None) -> Any:
        calls.append((name, config, revision))
        return hub.DatasetDict({"train": dataset_of(photos)})

    monkeypatch.setattr(hub, "load_dataset", load)
    opened = open_dataset("hf://cats/dogs/small@refs/convert/parquet", label_column="label")
    assert (opened.root, len(opened)) == ("hf://cats/dogs/small@refs/convert/parquet", 8)
    assert (opened.location, opened.columns) == (opened.root, {"label_column": "label"})
    open_dataset("hf://datasets/cats/dogs@v1")
    open_dataset("hf://cats/dogs")
    assert calls == [
        ("cats/dogs", "small", "refs/convert/parquet"),
        ("cats/dogs", None, "v1"),
        ("cats/dogs", None, None),
    ]
    with pytest.raises(BadInput, match="expected hf://OWNER/NAME, /CONFIG and @REVISION may"):
        open_dataset("hf://mnist")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't\nreach it"), "can't be reached .*; connect, or"),
        (hub.exceptions.DatasetNotFoundError("no"), "there is no such dataset or revision"),
        (ValueError("BuilderConfig 'x' not found"), r"can't be loaded \(BuilderConfig 'x'"),
        (RuntimeError("Dataset scripts are no longer supported"), "can't be loaded"),
    ],
)
def test_errors_of_the_hub_take_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "load_dataset", load)
    with pytest.raises(BadInput, match=message) as caught:
        open_dataset("hf://cats/dogs")
    assert "\n" not in str(caught.value)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'featurecache\[hf\]'"):
        open_dataset("hf://cats/dogs")
    monkeypatch.setitem(sys.modules, "datasets", csv)
    with pytest.raises(BadInput, match=r"csv\.py hides the package `datasets`; rename it"):
        open_dataset("hf://cats/dogs")


@pytest.mark.slow
def test_a_dataset_in_the_cache_of_datasets_is_read_offline(photos: Path, tmp_path: Path) -> None:
    dataset_of(photos).to_parquet(tmp_path / "train.parquet")
    files = {"train": str(tmp_path / "train.parquet")}
    hub.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    (built,) = (tmp_path / "cache").glob("parquet/*/0.0.0/*/")
    moved = tmp_path / "cache" / "cats___dogs" / "default" / "0.0.0" / "abc"
    moved.parent.mkdir(parents=True)
    built.rename(moved)
    (moved / "parquet-train.arrow").rename(moved / "dogs-train.arrow")

    def inspect(url: str) -> subprocess.CompletedProcess[str]:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-m", "featurecache", "inspect", "--data", url, "--json"],
            env=os.environ | offline, capture_output=True, text=True,
        )  # fmt: skip

    result = json.loads(inspect("hf://cats/dogs").stdout)
    assert result["splits"]["train"]["images"] == 8 and result["layout"] == "hugging face"
    unknown = inspect("hf://cats/cows")
    *_, message = unknown.stderr.strip().splitlines()
    assert unknown.returncode == 2 and "hf://cats/cows: Hugging Face can't be reached" in message
