"""Folders with Hugging Face's metadata files, tables of JSON Lines, and class folders that hold
split folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import BadInput, UnknownName
from featurecache.images.datasets import Dataset, open_dataset

RNG = np.random.default_rng(0)


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8)).save(file)


def write(file: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    rows = [
        {"file_name": name, "label": label, "width": 6}
        for name, label in zip(names, labels, strict=True)
    ]
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(map(str, row.values())) for row in [dict.fromkeys(rows[0]), *rows]]
        lines[0] = "file_name,label,width"
        file.write_text("\n".join(lines))


def rows(dataset: Dataset) -> list[tuple[str, str, str | None]]:
    return [(s.split, s.id, None if s.label is None else dataset.classes[s.label]) for s in dataset]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_metadata_file_beside_the_images(tmp_path: Path, suffix: str, nested: bool) -> None:
    root = tmp_path / "data" / "photos" if nested else tmp_path / "data"
    pictures(root, "1.png", "2.png", "3.png")
    write(root / f"metadata{suffix}", ["1.png", "2.png"], ["cat", "dog"])
    dataset = open_dataset(tmp_path / "data")
    assert dataset.layout == "metadata"
    assert rows(dataset) == [("train", "1.png", "cat"), ("train", "2.png", "dog")]
    assert any("no metadata file lists, and are not used: 3.png" in n for n in dataset.notes)
    assert any("; not used: 'width'" in n for n in dataset.notes)


def test_metadata_of_split_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "train/1.png", "train/2.png", "validation/1.png", "test/1.png")
    write(tmp_path / "train" / "metadata.csv", ["1.png", "2.png"], ["cat", "dog"])
    with pytest.raises(BadInput, match="validation: holds no metadata file"):
        open_dataset(tmp_path)
    write(tmp_path / "validation" / "metadata.jsonl", ["1.png"], ["dog"])
    by_folder = rows(open_dataset(tmp_path))
    assert by_folder == [
        ("train", "train/1.png", "cat"), ("train", "train/2.png", "dog"),
        ("val", "validation/1.png", "dog"), ("test", "test/1.png", None),
    ]  # fmt: skip
    (tmp_path / "train" / "metadata.csv").unlink()
    (tmp_path / "validation" / "metadata.jsonl").unlink()
    names = ["train/1.png", "train/2.png", "validation/1.png", "test/1.png"]
    write(tmp_path / "metadata.csv", names, ["cat", "dog", "dog", "cat"])
    assert rows(open_dataset(tmp_path)) == [*by_folder[:3], ("test", "test/1.png", "cat")]


def test_metadata_without_labels_changes_nothing(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\ncat/1.png,a cat\n")
    assert open_dataset(tmp_path).layout == "class folders"
    write(tmp_path / "metadata.csv", ["cat/1.png"], ["x"])
    write(tmp_path / "metadata.jsonl", ["cat/1.png"], ["x"])
    with pytest.raises(BadInput, match="keep one of them"):
        open_dataset(tmp_path)


def test_json_lines(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png")
    file = tmp_path / "t.jsonl"
    file.write_text('{"path": "1.png", "kind": 3}\n\n{"path": "2.png", "kind": 4, "box": [1]}\n')
    assert open_dataset(file, label_column="kind").classes == ("3", "4")
    assert open_dataset(file).splits == ("test",)
    for text, message in {
        '{"path": "1.png"}\n{': "line 2: not JSON",
        "[1]": "line 1: expected a JSON object per line",
        '{"path": "1.png"}\n{"path": "9.png"}': r"9.png \(line 2\)",
        '{"path": "1.png", "label": ["a"]}': "column 'label' holds lists or objects",
        '{"path": "1.png", "label": "\\ud800"}': "line 1: not JSON",
        "": "expected one column 'path'",
    }.items():
        file.write_text(text)
        with pytest.raises(BadInput, match=message):
            open_dataset(file)
    file.write_text('{"path": "1.png"}')
    with pytest.raises(UnknownName, match="unknown column 'kind'"):
        open_dataset(file, label_column="kind")


def test_class_folders_that_hold_split_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/valid/2.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "split classes"
    assert rows(dataset) == [
        ("train", "cat/train/1.png", "cat"), ("train", "dog/train/1.png", "dog"),
        ("val", "dog/valid/2.png", "dog"), ("test", "cat/test/1.png", "cat"),
    ]  # fmt: skip
    pictures(tmp_path, "dog/val/1.png")
    with pytest.raises(BadInput, match=r"dog/val.* both split val"):
        open_dataset(tmp_path)
    (tmp_path / "dog" / "val" / "1.png").unlink()
    pictures(tmp_path, "stray.png")
    with pytest.raises(BadInput, match=r"stray\.png: an image outside the class folders"):
        open_dataset(tmp_path)
    (tmp_path / "stray.png").unlink()
    pictures(tmp_path, "cow/train/small/1.png")  # a dataset beside others, not a class
    with pytest.raises(BadInput, match="holds split folders, so it is a dataset, not a class"):
        open_dataset(tmp_path)
