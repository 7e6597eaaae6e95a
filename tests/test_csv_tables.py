"""Columns of CSV files: named by options, called as documented, or guessed from usual names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featurecache.cli import cli
from featurecache.errors import BadInput, UnknownName
from featurecache.images.datasets import Dataset, open_dataset


def table(folder: Path, text: str, images: int = 2) -> Path:
    for number in range(1, images + 1):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    file = folder / "t.csv"
    file.write_text(text, encoding="utf-8")
    return file


def rows(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(s.id, dataset.classes[s.label or 0], s.split) for s in dataset.samples]


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("filename,class", "columns read: 'filename' as path, 'class' as label"),
        ("Image,Target", "columns read: 'Image' as path, 'Target' as label"),
        ("file_name,label", "columns read: 'file_name' as path, 'label' as label"),
        ("path,category", "columns read: 'path' as path, 'category' as label"),
    ],
)
def test_usual_names_are_guessed_and_noted(tmp_path: Path, header: str, note: str) -> None:
    dataset = open_dataset(table(tmp_path, f"{header}\n1.png,a\n2.png,b\n"))
    assert rows(dataset) == [("1.png", "a", "train"), ("2.png", "b", "train")]
    assert dataset.notes == (note,)


def test_a_documented_name_precedes_a_usual_one(tmp_path: Path) -> None:
    dataset = open_dataset(table(tmp_path, "filename,path,label,class\nx,1.png,a,b\n"))
    assert rows(dataset) == [("1.png", "a", "train")]
    assert dataset.notes == (
        "columns read: 'path' as path, 'label' as label; not used: 'filename', 'class'",
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("filename,image,label", "'filename' and 'image' may be the path; .*--path-column NAME"),
        ("path,class,target", "'class' and 'target' may be the label; .*--label-column NAME"),
        ("path,labels,x", "expected one column 'label'; .*labels.*--label-column NAME"),
        ("cat.jpg,cat", "line 1: is about an image; .*path,label"),
        ("path,label,subset", "'subset' looks like 'split'.*--split-column 'subset'"),
    ],
)
def test_columns_that_can_not_be_decided(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_dataset(table(tmp_path, f"{header}\n1.png,2.png,a\n"))


def test_options_name_columns(tmp_path: Path) -> None:
    file = table(
        tmp_path, "image,filename,Breed,subset,label\n1.png,x,a,train,q\n2.png,x,a,val,q\n"
    )
    dataset = open_dataset(file, path_column="image", label_column="Breed", split_column="subset")
    assert rows(dataset) == [("1.png", "a", "train"), ("2.png", "a", "val")]
    assert dataset.notes == (
        "columns read: 'image' as path, 'Breed' as label, 'subset' as split; "
        "not used: 'filename', 'label'",
    )


def test_options_that_fit_no_column(tmp_path: Path) -> None:
    file = table(tmp_path, "path,label,label\n1.png,a,b\n")
    with pytest.raises(UnknownName, match=r"--label-column.*'kind'"):
        open_dataset(file, label_column="kind")
    with pytest.raises(BadInput, match="2 columns are called 'label'"):
        open_dataset(file, label_column="label")
    with pytest.raises(BadInput, match="--label-column path: another option"):
        open_dataset(file, path_column="path", label_column="path")
    with pytest.raises(BadInput, match=r"--path-column is for a \.csv or"):
        open_dataset(tmp_path, path_column="x")
    with pytest.raises(BadInput, match=r"no such file"):
        open_dataset(tmp_path / "none.csv", path_column="x")
    with pytest.raises(BadInput, match=r"--path-column is for a \.csv or"):
        open_dataset(open_dataset("digits"), path_column="x")


def test_the_command_line_takes_columns_before_and_after_the_data(tmp_path: Path) -> None:
    file = table(tmp_path, "one,two\n1.png,a\n2.png,b\n")
    options = ["--path-column", "one", "--label-column", "two", "--json"]
    for words in (["--data", str(file), *options], [*options, "--data", str(file)]):
        result = CliRunner().invoke(cli, ["inspect", *words], catch_exceptions=False)
        assert result.exit_code == 0 and '"a"' in result.output
    with pytest.raises(BadInput, match="expected one column 'path'"):
        CliRunner().invoke(cli, ["inspect", "--data", str(file)], catch_exceptions=False)
