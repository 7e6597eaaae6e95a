"""Soundness: do the vectors of a shard say anything about their pictures?

A network of wrong weights, or a broken engine, may give finite numbers that are the same for every
picture. One picture alone proves nothing (a layer behind a ReLU can be all zeros for it), nor do
pictures that look alike, so the judgement is over all rows of a shard.
"""

from __future__ import annotations

import numpy as np

from featurecache.errors import FeatureCacheError

MIN_DIFFERENCE = 1.0  # of 255, on average over a picture: what is less may be one picture twice


class VectorCheck:
    """The rows of one shard of one space, batch by batch.

    They are sound as soon as two vectors differ and one holds two different numbers. That is so
    within the first batch, and all later ones cost nothing.
    """

    def __init__(self, space: str) -> None:
        self._space = space
        self._first: tuple[np.ndarray, np.ndarray] | None = None  # a picture and its vector
        self._rows = 0
        self._differ = False  # the pictures do
        self._same = True  # all vectors are one
        self._flat = True  # each vector is one number, repeated

    def add(self, pictures: np.ndarray, vectors: np.ndarray, decoded: np.ndarray) -> None:
        """(n, S, S, 3) uint8, (n, D) float32, and (n,) bool: could the image be decoded?"""
        if self.is_sound or not decoded.any():
            return
        pictures, vectors = pictures[decoded], vectors[decoded]
        self._rows += len(vectors)
        if self._first is None:
            self._first = pictures[0].copy(), vectors[0].copy()
        picture, vector = self._first
        self._same = self._same and bool((vectors == vector).all())
        if vectors.shape[1] > 1:  # of one number alone nothing can be said
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
        """Raise FeatureCacheError if different pictures have all the same vector, or vectors that
        are each one number repeated (zeros, say)."""
        if self._differ and not self.is_sound:
            what = "the same vector" if self._same else "vectors of one repeated number each"
            raise FeatureCacheError(
                f"{self._space}: {self._rows} different pictures all got {what}; nothing of them "
                "was stored. The weights do not fit the network, or the engine is broken: look at "
                "`featurecache doctor`, try --engine torch-cpu, other --weights or another --layer"
            )
