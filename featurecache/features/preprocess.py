"""Preprocessing: from the pixels of a picture to the input of a network.

`Preprocess` is sent to worker processes, which import neither torch nor timm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a network: resize, centre crop, then mean and std."""

    input_size: int
    interpolation: str
    crop: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to (input_size, input_size, 3) uint8.

        The geometry is that of timm's evaluation transform (timm/data/transforms_factory.py):
        resize to floor(input_size / crop) on the shorter side (`center`) or on both (`squash`),
        then centre crop. The engine applies mean and std, so that it is sent bytes, not floats.
        """
        from PIL import Image

        (height, width), (top, left) = self.geometry(*pixels.shape[:2])
        picture = Image.fromarray(pixels)
        if picture.size != (width, height):
            filter = Image.Resampling(INTERPOLATIONS[self.interpolation])
            picture = picture.resize((width, height), filter)
        box = (left, top, left + self.input_size, top + self.input_size)
        return np.asarray(picture.crop(box))

    def geometry(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) after resizing a picture of this size, and (top, left) of the crop."""
        scale = math.floor(self.input_size / self.crop)
        if self.crop_mode == "squash":
            high, wide = scale, scale
        elif width <= height:
            high, wide = int(scale * height / width), scale
        else:
            high, wide = scale, int(scale * width / height)
        return (high, wide), (
            round((high - self.input_size) / 2),
            round((wide - self.input_size) / 2),
        )

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """`__call__` as matrices for pictures of this size, without the rounding to bytes.

        They are `down` (input_size, height) and `across` (input_size, width), float64: each channel
        of the result is down @ channel @ across.T.
        """
        from PIL import Image

        filter = Image.Resampling(INTERPOLATIONS[self.interpolation])
        resized, starts = self.geometry(height, width)
        matrices = []
        for length, new_length, start in zip((height, width), resized, starts, strict=True):
            unit = Image.fromarray(np.eye(length, dtype=np.float32))
            lines = np.asarray(unit.resize((length, new_length), filter), np.float64)
            matrices.append(lines[start : start + self.input_size])
        return matrices[0], matrices[1]
