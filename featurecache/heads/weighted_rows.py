"""Training rows with weighted views, read in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurecache.heads.logistic import PARTS, parts_of

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Index = npt.NDArray[np.int64]

_BLOCK = 1 << 22  # numbers per block: 3,276 rows of 1,280


@dataclass(frozen=True, kw_only=True)
class Rows:
    """N images: `views` read the vectors (B, D) of some of them, `shares` (V,) are the weights of
    the views, which sum to 1. `groups` (N,) mark images that may not be held out one by one."""

    views: Sequence[Callable[[Index], Vectors]]
    shares: Sequence[float]
    labels: Labels
    classes: int
    groups: Labels | None = None

    @classmethod
    def of_array(cls, X: Vectors, y: Labels, classes: int) -> Rows:
        """The rows of one array (N, D), each a different image."""
        return cls(views=[lambda rows: X[rows]], shares=[1.0], labels=y, classes=classes)

    def blocks(self, rows: Index, width: int) -> Iterator[tuple[list[Vectors], Index]]:
        """The vectors of some rows in every view, and their numbers; `width` bounds the block."""
        step = max(1, _BLOCK // (width * len(self.views)))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield [read(part) for read in self.views], part

    def held_out(self) -> npt.NDArray[np.bool_]:
        """(N,) a fifth of the rows of each class; all False if there are too few."""
        mask = parts_of(self.labels, self.classes, self.groups) == PARTS - 1
        has_two = len(np.unique(self.labels[~mask])) > 1
        return mask if has_two else np.zeros(len(mask), np.bool_)
