"""Bounding boxes: whose they are, where they lie, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurecache.errors import BadInput
from featurecache.images.boxes import Box, boxes_of, mask_of


def train(root: Path, text: str) -> Path:
    folder = root / "train" / "n01"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "n01_boxes.txt").write_text(text)
    return folder / "images" / "n01_0.JPEG"


def test_boxes_of_tiny_imagenet(tmp_path: Path) -> None:
    picture = train(tmp_path, "n01_0.JPEG\t34\t30\t38\t48\r\nn01_1.JPEG\t0\t0\t63\t63\n")
    assert boxes_of(picture) == (Box(34, 30, 38, 48),)
    assert boxes_of(picture.parent / "n01_2.JPEG") == ()
    val = tmp_path / "val"
    (val / "images").mkdir(parents=True)
    (val / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t1\t2\t3\t4\nval_1.JPEG\tn01\nval_0.JPEG\tn01\t5\t5\t5\t5\n"
    )
    assert boxes_of(val / "images/val_0.JPEG") == (Box(1, 2, 3, 4), Box(5, 5, 5, 5))
    assert boxes_of(val / "images/val_1.JPEG") == ()  # a class and no box
    assert boxes_of(tmp_path / "elsewhere/val_0.JPEG") == ()


@pytest.mark.parametrize(
    "numbers",
    ["1\t2\t3", "1\t2\t3\t4\t5", "a\t2\t3\t4", "1.5\t2\t3\t4", "3\t0\t2\t4", "-1\t0\t2\t4"],
)
def test_a_line_that_is_no_box(tmp_path: Path, numbers: str) -> None:
    picture = train(tmp_path, f"n01_1.JPEG\tnot looked at\nn01_0.JPEG\t{numbers}\n")
    with pytest.raises(BadInput, match=r"n01_boxes.txt line 2: expected x0, y0, x1, y1"):
        boxes_of(picture)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    picture = train(tmp_path, "")
    (picture.parent.parent / "n01_boxes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"n01_boxes.txt: can't be read as a UTF-8 text file"):
        boxes_of(picture)


def test_the_ends_belong_to_a_box() -> None:
    assert mask_of((Box(1, 0, 2, 1),), 3, 4).tolist() == [
        [False, True, True, False],
        [False, True, True, False],
        [False, False, False, False],
    ]
    assert mask_of((Box(0, 0, 63, 63),), 3, 4).all()
    assert not mask_of((Box(9, 9, 12, 12),), 3, 4).any()
    assert not mask_of((), 3, 4).any()
