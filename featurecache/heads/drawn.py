"""Vectors that a generator makes: other ones for each fold, and perhaps for each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Drawn:
    """Vectors (N, D) of N images. `make` gives those of a fold and an epoch, both from 1. Indexed
    like an array, they are those of the first epoch of the first fold."""

    ndim = 2

    def __init__(self, shape: tuple[int, int], make: Callable[[int, int], Array]) -> None:
        self.shape = shape
        self.make = make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        result: Array = self.make(1, 1)[rows]
        return result

    def changed(self, function: Callable[[Array], Array], width: int) -> Drawn:
        """The vectors after a function that maps (N, D) to (N, `width`)."""
        return Drawn((self.shape[0], width), lambda fold, epoch: function(self.make(fold, epoch)))
