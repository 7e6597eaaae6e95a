"""The rules about names: splits, columns, folders of other systems, class names."""

from __future__ import annotations

import pytest

from featurecache.images import names


@pytest.mark.parametrize(
    ("name", "whole", "inside"),
    [
        ("train", "train", ["train"]),
        ("Training set", "train", ["train"]),
        ("VAL", "val", ["val"]),
        ("val_images", "val", ["val"]),
        ("TestSet", "test", ["test"]),
        ("dev", "val", ["val"]),
        ("train2017", None, ["train"]),
        ("imagenet1k-validation-00", None, ["val"]),
        ("imagenet_val-000000-val", None, ["val"]),
        ("cocoVal", None, ["val"]),
        ("bullet_train", None, ["train"]),
        ("train-val-0", None, ["train", "val"]),
        ("contest", None, []),
        ("invalid", None, []),
        ("brain-0", None, []),
        ("images", None, []),
    ],
)
def test_splits_in_names(name: str, whole: str | None, inside: list[str]) -> None:
    assert names.split_of(name) == whole
    assert names.splits_in(name) == inside


def test_names_that_mean_no_single_split() -> None:
    for name in ("trainval", "train_val", "test-dev", "holdout", "held-out-0"):
        assert names.is_undecided(name), name
    for name in ("train", "valid", "train_valves", "cat"):
        assert not names.is_undecided(name), name


def test_split_folders_beside_each_other() -> None:
    assert names.split_folders_of(["coco_train2017", "coco_val2017", "cat"]) == {
        "coco_train2017": "train",
        "coco_val2017": "val",
    }
    assert names.split_folders_of(["bullet_train", "test tube", "cat"]) == {}


@pytest.mark.parametrize(
    ("header", "column"),
    [("Split", "split"), (" LABEL\u00a0", "label"), ("\ufeffpath", "path"), ("subset", "subset")],
)
def test_columns(header: str, column: str) -> None:
    assert names.column_of(header) == column


def test_columns_that_look_like_one() -> None:
    headers = ("Subset", "splt", "data_split", "width", "id")
    alike = [header for header in headers if names.looks_like_column(header, "split")]
    assert alike == ["Subset", "splt", "data_split"]
    assert names.looks_like_column("file_name", "path")


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("caf\u00e9", "cafe\u0301", "NFC and NFD"),
        ("cat", "cat ", "spaces"),
        ("cat", "ca\u200bt", "invisible characters"),
        ("cat", "Cat", "upper and lower"),
    ],
)
def test_what_names_differ_in(first: str, second: str, what: str) -> None:
    assert what in (names.difference(first, second) or "")
    assert names.difference("cat", "dog") is None


def test_joiners_of_scripts_tell_names_apart() -> None:
    assert names.looking_alike(["\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"]) == []
    assert names.looking_alike(["A", "a"]) == []
    assert names.looking_alike(["A", "a"], cased=False) == [("A", "a")]
