"""Bounding boxes in files beside the pictures, as in Tiny ImageNet.

    train/WNID/images/FILE   train/WNID/WNID_boxes.txt    FILE, x0, y0, x1, y1
    val/images/FILE          val/val_annotations.txt      FILE, WNID, x0, y0, x1, y1

Columns are separated by tabs. Pixels are counted from 0 at the top left. x1 and y1 are inclusive:
the box around a whole picture of 64x64 is 0, 0, 63, 63.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.storage.safe_open import read_regular

MAX_BOXES_FILE = 64 << 20  # bytes; a million boxes take half of it


class Box(NamedTuple):
    """A box in pixels of the picture as it is stored. All four coordinates are inclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


def boxes_of(picture: Path) -> tuple[Box, ...]:
    """The boxes of a picture, from the file beside its folder; none if there is no such file.

    Raises BadInput, with the line, for a malformed file.
    """
    for folder in picture.absolute().parents[:2]:
        for path, columns in (
            (folder / f"{folder.name}_boxes.txt", 1),
            (folder / "val_annotations.txt", 2),
        ):
            if path.is_file():
                return tuple(_boxes(path, columns, picture.name))
    return ()


def mask_of(boxes: tuple[Box, ...], height: int, width: int) -> npt.NDArray[np.bool_]:
    """A mask (height, width) of the pixels inside any of the boxes. Boxes are cut at the edges of
    the picture."""
    mask = np.zeros((height, width), bool)
    for box in boxes:
        mask[box.y0 : box.y1 + 1, box.x0 : box.x1 + 1] = True
    return mask


def _boxes(path: Path, columns: int, name: str) -> list[Box]:
    """The boxes in the lines that start with `name`. A line without numbers has no box."""
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
