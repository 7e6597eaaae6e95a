"""Images that a Python program holds: arrays, PIL images or paths of files, in a sequence."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from featurecache.errors import BadInput, UnknownName
from featurecache.images.layouts.contents import Contents, Entry, first_few
from featurecache.images.names import split_of
from featurecache.images.samples import SPLITS
from featurecache.text import counted

ROOT = "images in memory"


@runtime_checkable
class Table(Protocol):
    """A table that can be written as CSV, such as a pandas DataFrame."""

    def to_csv(self, *, index: bool) -> str:
        """The text of the table."""


def in_memory(
    pictures: Sequence[Any] | np.ndarray,
    labels: Sequence[object] | np.ndarray | None = None,
    splits: Sequence[str] | None = None,
    groups: Sequence[object] | np.ndarray | None = None,
) -> Contents:
    """A dataset of (H, W, 3) or (H, W) uint8 arrays, PIL images or paths, in their order.

    Images with `labels` are in split train, those without in test, unless `splits` says otherwise.
    Raises BadInput.
    """
    if not len(pictures):
        raise BadInput(f"{ROOT}: there are none; pass at least one array, PIL image or path")
    for name, values in (("labels", labels), ("splits", splits), ("groups", groups)):
        if values is not None and len(values) != len(pictures):
            raise BadInput(f"{ROOT}: {len(pictures)} images and {len(values)} {name}")
    digits = len(str(len(pictures) - 1))
    entries, missing = [], []
    for index, picture in enumerate(pictures):
        label = None if labels is None or labels[index] is None else str(labels[index])
        word = ("test" if label is None else "train") if splits is None else splits[index]
        group = "" if groups is None else str(groups[index])
        split = split_of(word)
        if split is None:
            raise UnknownName("split", word, SPLITS, where=f"image {index}")
        if label is None and split != "test":
            raise BadInput(f"image {index}: no label; only split test may lack one")
        if isinstance(picture, str | Path):
            file = os.fspath(picture)
            if "://" not in file and not os.path.lexists(file):
                missing.append(file)
            entries.append(Entry(split, label, file, Path(file).as_posix(), group))
        else:
            name = f"{index:0{digits}}"
            entries.append(Entry(split, label, _encoded(picture, index), name, group))
    if missing:
        raise BadInput(f"{counted(len(missing), 'file')} not found: {first_few(missing)}")
    return Contents(root=ROOT, layout="memory", entries=entries)


def _encoded(picture: object, index: int) -> bytes:
    """A picture as an image file: PPM or PGM, whose bytes depend on the pixels alone; PNG for PIL
    images with transparency, a palette or more than 8 bits."""
    if isinstance(picture, Image.Image):
        if picture.mode not in ("RGB", "L"):
            file = io.BytesIO()
            try:
                picture.save(file, "PNG")
            except OSError as error:
                raise BadInput(
                    f"image {index}: a PIL image of mode {picture.mode}; convert it to RGB"
                ) from error
            return file.getvalue()
        picture = np.asarray(picture)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        what = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
        raise BadInput(
            f"image {index}: {what}; expected an array of uint8 (0 to 255), a PIL image or a path"
        )
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    if not picture.size or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
        raise BadInput(f"image {index}: shape {picture.shape}; expected (H, W, 3) or (H, W)")
    kind = "P6" if picture.ndim == 3 else "P5"
    header = f"{kind}\n{picture.shape[1]} {picture.shape[0]}\n255\n".encode()
    return header + np.ascontiguousarray(picture).tobytes()
