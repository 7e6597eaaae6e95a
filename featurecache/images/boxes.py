"""Bounding boxes in files beside the pictures, as in Tiny ImageNet.

    train/WNID/images/FILE   train/WNID/WNID_boxes.txt    FILE, x0, y0, x1, y1
    val/images/FILE          val/val_annotations.txt      FILE, WNID, x0, y0, x1, y1

Columns are separated by tabs. Pixels are counted from 0 at the top left. x1 and y1 belong to the
box: the box around a full picture of 64x64 is 0, 0, 63, 63.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.storage.safe_open import read_regular

MAX_BOXES_FILE = 64 << 20  # bytes; a million boxes have half


class Box(NamedTuple):
    """Pixels of the picture as it is stored; all four belong to the box."""

    x0: int
    y0: int
    x1: int
    y1: int


def boxes_of(picture: Path) -> tuple[Box, ...]:
    """The boxes of a picture, by the file beside its folder; none where there is no such file.

    Raises BadInput, with the line, for an unreadable file of boxes.
    """
    for folder in picture.absolute().parents[:2]:
        for path, columns in (
            (folder / f"{folder.name}_boxes.txt", 1),
            (folder / "val_annotations.txt", 2),
        ):
            if path.is_file():
                return tuple(_boxes(path, columns, picture.name))
    return ()


def inside(boxes: tuple[Box, ...], height: int, width: int) -> npt.NDArray[np.bool_]:
    """(height, width): the pixels in any of the boxes; what lies outside the picture is cut."""
    mask = np.zeros((height, width), bool)
    for box in boxes:
        mask[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = True
    return mask


def _boxes(path: Path, columns: int, name: str) -> list[Box]:
    """The boxes of the lines that begin with `name`; a line without numbers has none."""
    try:
        text = read_regular(path, MAX_BOXES_FILE).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as a UTF-8 text file ({error})") from error
    boxes = []
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.rstrip("\r").split("\t")
        if fields[0] != name or len(fields) <= columns:
            continue
        try:
            x0, y0, x1, y1 = (int(field) for field in fields[columns:])
        except ValueError:
            x0, y0, x1, y1 = 0, 0, -1, -1
        if not (0 <= x0 <= x1 and 0 <= y0 <= y1):
            raise BadInput(
                f"{path} line {number}: expected x0, y0, x1, y1 in whole pixels, got {line!r}; "
                "correct the line, or remove its numbers"
            )
        boxes.append(Box(x0, y0, x1, y1))
    return boxes
