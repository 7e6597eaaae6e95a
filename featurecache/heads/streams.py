"""Vectors that do not fit into memory: an epoch reads them in windows.

The rows, in stored order, are cut into chunks, and the chunks are shuffled. A window is as many
chunks as fit into memory; its rows are loaded and shuffled, and minibatches are taken from it. Each
row is therefore read once per epoch, in contiguous runs, and a minibatch is drawn from CHUNKS
stretches spread over the whole set. This is not a shuffle of all rows: `mixing` measures how far it
is from one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from featurecache.byte_sizes import size_text
from featurecache.errors import BadInput
from featurecache.heads.splits import Index, Labels
from featurecache.text import counted

CHUNKS = 256  # per window; fewer mix less, more make reads shorter


class Source(Protocol):
    """Rows (N, D) float32 that are read on access, indexed like an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class Stream:
    """Vectors (N, D) that are read as needed, in windows of `window` rows."""

    ndim = 2

    def __init__(self, source: Source, window: int) -> None:
        self.source, self.window = source, window
        self.shape = source.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.source[rows]


def window_of(memory: int, width: int, views: int, batch_size: int) -> int:
    """The number of rows of a window over `views` views that fits into `memory` bytes, rounded down
    to whole minibatches. Raises BadInput if fewer than two minibatches fit."""
    rows = memory // (4 * width * views)
    if rows < 2 * batch_size:
        needed = size_text(8 * batch_size * width * views)
        raise BadInput(
            f"--memory: two minibatches of {counted(batch_size, 'row')} in {counted(views, 'view')}"
            f" take {needed}, but --memory is {size_text(memory)}"
        )
    return rows // batch_size * batch_size


def windowed(rows: Index, window: int, rng: np.random.Generator) -> Index:
    """The row numbers in the order of an epoch that goes from window to window."""
    ordered = np.sort(rows)
    chunk = max(1, window // CHUNKS)
    chunks = [ordered[start : start + chunk] for start in range(0, len(ordered), chunk)]
    shuffled = np.concatenate([chunks[n] for n in rng.permutation(len(chunks))])
    windows = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    return np.concatenate([rng.permutation(window_rows) for window_rows in windows])


class Mixing(NamedTuple):
    """How far the label distribution of a window is from that of all rows: total variation, 0 to 1,
    averaged over the windows of an epoch. `here` is for windows, `shuffled` for a full shuffle."""

    here: float
    shuffled: float


def mixing(labels: Labels, window: int, classes: int) -> Mixing:
    """The Mixing of rows with these labels, given in stored order."""
    rng = np.random.default_rng(0)
    rows = np.arange(len(labels))
    all_shares = np.bincount(labels, minlength=classes) / len(labels)

    def distance(order: Index) -> float:
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        shares = [np.bincount(labels[rows], minlength=classes) / len(rows) for rows in windows]
        distances = [np.abs(share - all_shares).sum() / 2 for share in shares]
        return float(np.average(distances, weights=[len(rows) for rows in windows]))

    return Mixing(distance(windowed(rows, window, rng)), distance(rng.permutation(rows)))
