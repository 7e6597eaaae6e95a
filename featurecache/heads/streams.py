"""Vectors that do not fit into memory: an epoch goes through them in windows.

The rows, in the order in which they lie, are cut into chunks; the chunks are shuffled; as many as
fit are a window, whose rows are shuffled and are in memory while minibatches are taken from it. So
each row is read once an epoch, in runs, and a minibatch is drawn from CHUNKS places all over the
set. It is not a shuffle of all rows: `mixing` says how far from one it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from featurecache.errors import BadInput
from featurecache.heads.splits import Index, Labels

CHUNKS = 256  # of a window: fewer mix less, more are shorter reads


class Source(Protocol):
    """Rows that are read when they are asked for: an array (N, D) of float32, but for its place."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class Stream:
    """Vectors (N, D) that are read as they are needed, in windows of `window` rows."""

    ndim = 2

    def __init__(self, source: Source, window: int) -> None:
        self.source, self.window = source, window
        self.shape = source.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.source[rows]


def window_of(memory: int, width: int, views: int, batch_size: int) -> int:
    """The rows of a window of `views` views that take `memory` bytes, in whole minibatches. Raises
    BadInput where not two of these fit."""
    rows = memory // (4 * width * views)
    if rows < 2 * batch_size:
        raise BadInput(
            f"--memory: two minibatches of {batch_size} rows through {views} views take "
            f"{8 * batch_size * width * views:,} bytes, and {memory:,} are given"
        )
    return rows // batch_size * batch_size


def windowed(taken: Index, window: int, rng: np.random.Generator) -> Index:
    """These row numbers in the order of an epoch, which goes from window to window."""
    ordered = np.sort(taken)
    chunk = max(1, window // CHUNKS)
    chunks = [ordered[start : start + chunk] for start in range(0, len(ordered), chunk)]
    shuffled = np.concatenate([chunks[n] for n in rng.permutation(len(chunks))])
    windows = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    return np.concatenate([rng.permutation(rows) for rows in windows])


class Mixing(NamedTuple):
    """How far the labels of a window are from those of all rows: total variation, 0 to 1, the mean
    over the windows of an epoch; and what it is where rows are shuffled as a whole."""

    here: float
    shuffled: float


def mixing(labels: Labels, window: int, classes: int) -> Mixing:
    """The Mixing of rows with these labels, in the order in which they lie."""
    rng = np.random.default_rng(0)
    rows = np.arange(len(labels))
    all_shares = np.bincount(labels, minlength=classes) / len(labels)

    def distance(order: Index) -> float:
        some = [order[start : start + window] for start in range(0, len(order), window)]
        shares = [np.bincount(labels[rows], minlength=classes) / len(rows) for rows in some]
        apart = [np.abs(share - all_shares).sum() / 2 for share in shares]
        return float(np.average(apart, weights=[len(rows) for rows in some]))

    return Mixing(distance(windowed(rows, window, rng)), distance(rng.permutation(rows)))
