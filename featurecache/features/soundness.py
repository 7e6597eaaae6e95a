"""A check that the vectors of a shard depend on their pictures.

A network with wrong weights, or a broken engine, may return finite numbers that are the same for
all pictures. A single picture proves nothing (a layer after a ReLU can be all zeros for it), and
neither do pictures that look alike, so all rows of a shard are judged together.
"""

from __future__ import annotations

import numpy as np

from featurecache.errors import FeatureCacheError

MIN_DIFFERENCE = 1.0  # of 255, mean over a picture; below this, two may be the same picture


class VectorCheck:
    """The check of one shard of one space, batch by batch.

    The rows are sound once two vectors differ and one vector contains two different numbers. That
    is usually known after the first batch, and later batches cost nothing.
    """

    def __init__(self, space: str) -> None:
        self._space = space
        self._first: tuple[np.ndarray, np.ndarray] | None = None  # a picture and its vector
        self._rows = 0
        self._differ = False  # whether the pictures differ
        self._same = True  # whether all vectors are equal
        self._flat = True  # whether each vector is one repeated number

    def add(self, pictures: np.ndarray, vectors: np.ndarray, decoded: np.ndarray) -> None:
        """Add pictures (n, S, S, 3) uint8, their vectors (n, D) float32, and (n,) bool: whether the
        image could be decoded."""
        if self.is_sound or not decoded.any():
            return
        pictures, vectors = pictures[decoded], vectors[decoded]
        self._rows += len(vectors)
        if self._first is None:
            self._first = pictures[0].copy(), vectors[0].copy()
        picture, vector = self._first
        self._same = self._same and bool((vectors == vector).all())
        if vectors.shape[1] > 1:  # a vector of length 1 is always flat
            self._flat = self._flat and bool((vectors == vectors[:, :1]).all())
        else:
            self._flat = False
        if not self.is_sound and not self._differ:
            change = np.abs(pictures.astype(np.int16) - picture).mean(axis=(1, 2, 3))
            self._differ = bool((change >= MIN_DIFFERENCE).any())

    @property
    def is_sound(self) -> bool:
        return not (self._same or self._flat)

    def finish(self) -> None:
        """Raise FeatureCacheError if different pictures all have the same vector, or if every
        vector repeats a single number (zeros, for example)."""
        if self._differ and not self.is_sound:
            what = "the same vector" if self._same else "vectors of one repeated number each"
            raise FeatureCacheError(
                f"{self._space}: {self._rows} different pictures all got {what}, so none was "
                "stored. The weights do not fit the network, or the engine is broken: run "
                "`featurecache doctor`, or try --engine torch-cpu, other --weights or another "
                "--layer. After train-network, the training may have collapsed: try a lower lr or "
                "a larger batch_size"
            )
