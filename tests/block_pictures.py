"""Pictures that show what an augmenter does: blocks of colour with some noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def block_picture(number: int, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Picture `number`, (H, W, 3) uint8; the sizes take turns."""
    rng = np.random.default_rng(number)
    height, width = sizes[number % len(sizes)]
    blocks = rng.integers(0, 236, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.integers(0, 20, (height, width, 3))
    return (blocks[:height, :width] + noise).astype(np.uint8)
