"""Images without labels: a flat folder, a list of files, a CSV file without a column of labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featurecache
from featurecache.errors import BadInput
from featurecache.images.datasets import open_dataset

NAMES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A flat folder of four images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / name)
    return folder


def a_list(photos: Path) -> Path:
    (photos / "list.txt").write_text("\ufeff" + "\n\n".join(NAMES) + "\n", encoding="utf-8")
    return photos / "list.txt"


def a_table(photos: Path) -> Path:
    (photos / "t.csv").write_text("filename,width\n" + "".join(f"{n},12\n" for n in NAMES))
    return photos / "t.csv"


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "flat folder": lambda photos: photos, "list": a_list, "csv": a_table
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_without_labels_are_split_test(photos: Path, layout: str) -> None:
    dataset = open_dataset(LAYOUTS[layout](photos))
    assert (dataset.layout, dataset.classes, dataset.splits) == (layout, (), ("test",))
    assert [(s.id, s.label) for s in dataset.samples] == [(name, None) for name in NAMES]
    assert featurecache.inspect(dataset).splits["test"].images == 4


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_commands_that_need_no_labels_work(
    photos: Path, layout: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    data, cache = LAYOUTS[layout](photos), tmp_path / "cache"
    assert featurecache.featurize(data, **tiny | {"cache": cache}).computed == 4
    backbone = tiny["backbone"]
    out = tmp_path / "v.npz"
    assert featurecache.export(out, data=data, backbone=backbone, cache=cache).rows == 4
    study = featurecache.study_neighbours(
        photos / "a.png", backbone, data=data, cache=cache, out=tmp_path / "study"
    )
    assert {row["path"] for row in study.table} == {"b.png", "c.png", "d.png"}
    assert {row["class"] for row in study.table} == {""}


def test_commands_that_need_labels_say_so(
    photos: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"no split .train.: its images have no labels, .*column of"):
        open_dataset(photos).split("train")
    cache = tmp_path / "cache"
    with pytest.raises(BadInput, match="its images have no labels"):
        featurecache.baselines("b", data=photos, cache=cache)
    with pytest.raises(BadInput, match="its images have no labels"):
        featurecache.train_head(data=photos, cache=cache, backbone="b", runs=tmp_path / "runs")


def test_lists_that_are_refused(photos: Path) -> None:
    file = photos / "list.txt"
    file.write_text("a.png\nx.png\n")
    with pytest.raises(BadInput, match=r"1 file not found: x.png \(line 2\)"):
        open_dataset(file)
    file.write_text("\n")
    with pytest.raises(BadInput, match="holds no rows; expected a line of a path per image"):
        open_dataset(file)
    (photos / "t.csv").write_text("path,split\na.png,train\n")
    with pytest.raises(BadInput, match="line 2: no label; only split test may lack one"):
        open_dataset(photos / "t.csv")
    (photos / "t.csv").write_text("path,label\na.png,x\n")
    with pytest.raises(BadInput, match=r"pass --data .*t.csv, which lists images"):
        open_dataset(photos)
