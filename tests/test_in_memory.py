"""Datasets of a Python program: arrays, PIL images, paths, tables; and what a Dataset can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featurecache
from featurecache.errors import BadInput, NotCached, UnknownName
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.decode import decode

RNG = np.random.default_rng(0)
ARRAYS = RNG.integers(0, 256, (12, 10, 9, 3), np.uint8)


def pixels(dataset: Dataset) -> list[np.ndarray]:
    return [decode(sample.read()) for sample in dataset]


class Frame:
    """What is needed of a pandas DataFrame, which the tests do not install."""

    def __init__(self, columns: dict[str, list[str]]) -> None:
        self.columns = columns

    def to_csv(self, *, index: bool) -> str:
        assert not index
        rows = [[*self.columns], *zip(*self.columns.values(), strict=True)]
        return "".join(",".join(row) + "\n" for row in rows)


def test_arrays_keep_their_pixels_and_order() -> None:
    dataset = open_dataset(ARRAYS, labels=[7, 8] * 6)
    assert [s.id for s in dataset] == [f"{n:02}" for n in range(12)]
    assert (dataset.classes, dataset.splits) == (("7", "8"), ("train",))
    assert [s.label for s in dataset][:3] == [0, 1, 0]
    assert all((a == b).all() for a, b in zip(pixels(dataset), ARRAYS, strict=True))
    grey = open_dataset([ARRAYS[0, :, :, 0], ARRAYS[0, :, :, :1]])
    assert [*map(np.shape, pixels(grey))] == [(10, 9, 3)] * 2
    assert grey[0].item() == grey[1].item() and grey.splits == ("test",)


def test_pil_images_are_the_same_items_as_arrays() -> None:
    pictures = [Image.fromarray(array) for array in ARRAYS]
    assert [s.item() for s in open_dataset(pictures)] == [s.item() for s in open_dataset(ARRAYS)]
    (clear,) = pixels(open_dataset([pictures[0].convert("RGBA")]))
    assert (clear == ARRAYS[0]).all()


def test_paths_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        Image.fromarray(ARRAYS[n]).save(tmp_path / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    names = ["0.png", "1.png", "2.png"]
    dataset = open_dataset([Path(name) for name in names], labels=["a", "b", None], splits=[
        "train", "train", "test"
    ])  # fmt: skip
    assert [(s.id, s.label, s.split) for s in dataset][1:] == [
        ("1.png", 1, "train"), ("2.png", None, "test")
    ]  # fmt: skip
    table = Frame({"filename": names, "kind": ["a", "b", "a"]})
    framed = open_dataset(table, label_column="kind")
    assert [s.id for s in framed] == names and framed.classes == ("a", "b")
    assert [s.read() for s in framed] == [Path(name).read_bytes() for name in names]
    assert open_dataset(table).classes == ()


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ([], {}, "there are none"),
        (ARRAYS, {"labels": ["a"]}, "12 images and 1 labels"),
        (ARRAYS / 255, {}, "image 0: float64; expected an array of uint8"),
        (ARRAYS[:, :, :, :2], {}, r"image 0: shape \(10, 9, 2\)"),
        ([3], {}, "image 0: int; expected"),
        (["x.png"], {}, "1 file not found: x.png"),
        (ARRAYS, {"splits": ["train"] * 12}, "image 0: no label"),
        ("digits", {"labels": ["a"]}, "labels, splits and groups are for a sequence"),
    ],
)
def test_images_that_are_refused(images: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_dataset(images, **more)
    with pytest.raises(UnknownName, match="image 0: unknown split"):
        open_dataset(ARRAYS, splits=["x"] * 12)


def test_a_dataset_has_a_length_an_order_and_a_short_form(small_data: Path) -> None:
    dataset = open_dataset(small_data)
    assert len(dataset) == 48 and dataset[0] is dataset.samples[0] and dataset[-1].split == "val"
    assert [*dataset][:5] == [*dataset[:5]] and isinstance(dataset[:5], Dataset)
    assert repr(dataset) == f"<Dataset '{small_data}' (split folders): 48 images of 3 classes>"
    assert repr(dataset[0]).startswith("<Sample 'train/") and len(repr(dataset[0])) < 300
    assert repr(open_dataset(ARRAYS)[0]) == "<Sample '00': split test, label None, in memory>"
    assert dataset[:5].classes == dataset.classes and len(dataset[100:]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_the_functions_take_a_dataset(tiny: dict[str, Any], tmp_path: Path) -> None:
    dataset = open_dataset(ARRAYS, labels=["a", "b"] * 6)
    cache, backbone = tmp_path / "cache", tiny["backbone"]
    assert featurecache.plan(dataset, backbone=backbone, weights=tiny.get("weights"),
                             cache=cache).misses == 12  # fmt: skip
    assert featurecache.featurize(dataset, **tiny | {"cache": cache}).computed == 12
    assert featurecache.featurize(ARRAYS, **tiny | {"cache": cache}).hits == 12
    X, y = featurecache.vectors(dataset, "none", backbone, cache=cache)
    assert len(X) == 12 and list(y[:2]) == ["a", "b"]
    featurecache.inspect(dataset)
    frame = (
        pytest.importorskip("pandas")
        .DataFrame({"path": [str(tmp_path / "x.png")] * 2, "label": ["a", "b"], "root": ["x", "y"]})
        .drop_duplicates("path")
    )
    Image.fromarray(ARRAYS[0]).save(tmp_path / "x.png")
    with pytest.raises(NotCached, match=r"featurize --data DataFrame --cache"):
        featurecache.train_head(data=frame, cache=cache, backbone=backbone, runs=tmp_path / "runs")
    assert featurecache.featurize(frame, **tiny | {"cache": cache}).computed == 1
    out = tmp_path / "v.npz"
    out.touch()
    assert featurecache.export(out, data=frame, backbone=backbone, cache=cache).rows == 1
    with pytest.raises(NotCached, match=r"featurize --data 'images in memory' --cache"):
        featurecache.vectors(ARRAYS, "mirror_1", backbone, cache=cache)
    run = featurecache.train_head(
        data=dataset, cache=cache, backbone=backbone, runs=tmp_path / "runs", epochs=1
    ).run
    file = tmp_path / "x.png"
    Image.fromarray(ARRAYS[0]).save(file)
    study = featurecache.study_neighbours(
        file, backbone, data=dataset, cache=cache, out=tmp_path / "s",
        weights=tiny.get("weights"), engine=tiny.get("engine", "auto"),
    )  # fmt: skip
    assert study.table[0]["path"] == "00" and Path(run).is_dir()
