"""The images that a generator is fitted on, in memory: image_size² · 3 bytes for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurecache.executors import Progress
from featurecache.executors.pool import ordered
from featurecache.features.preprocess import Preprocess
from featurecache.runs.training_pictures import ImageItem, pixels_or_reason

_AT_ONCE = 64  # images per task


def square(size: int) -> Preprocess:
    """The whole height or width of a picture in `size` pixels, and the centre of the other side. A
    picture of that size stays as it is."""
    return Preprocess(size, "bilinear", 1.0, "center", (0.5,) * 3, (0.5,) * 3)


def load_images(
    images: Sequence[ImageItem],
    size: int,
    workers: int,
    progress: Progress,
) -> tuple[npt.NDArray[np.uint8], dict[int, str]]:
    """The pictures (N, size, size, 3) of these images, and the reasons why some, by their number,
    can't be decoded; those are black."""
    pictures = np.zeros((len(images), size, size, 3), np.uint8)
    reasons: dict[int, str] = {}
    starts = range(0, len(images), _AT_ONCE)
    parts = (images[start : start + _AT_ONCE] for start in starts)
    for start, made in zip(starts, ordered(_pictures, square(size), parts, workers), strict=True):
        for number, picture in enumerate(made, start):
            if isinstance(picture, str):
                reasons[number] = picture
            else:
                pictures[number] = picture
        progress(start + len(made), len(images), "read images")
    return pictures, reasons


def _pictures(preprocess: Preprocess, images: Sequence[ImageItem]) -> list[np.ndarray | str]:
    read = (pixels_or_reason(sample, item) for sample, item in images)
    return [made if isinstance(made, str) else preprocess(made) for made in read]
