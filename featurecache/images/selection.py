"""A part of a dataset: one split, or a fixed number of images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TypedDict

import numpy as np

from featurecache.errors import BadInput
from featurecache.images.datasets import Dataset
from featurecache.images.samples import Sample
from featurecache.items import Items


class SampleSelection(TypedDict, total=False):
    """Which samples of a dataset a command computes; all of them by default."""

    split: str | None
    limit: int | None  # at most this number of samples


class _IndexedPart(tuple[Sample, ...]):
    """Some samples of an index, whose items are known (samples.items_of)."""

    items: Items


def select_samples(dataset: Dataset, split: str | None, limit: int | None) -> Dataset:
    """The dataset with the samples of one split only, or with `limit` samples.

    Those with the smallest SHA-256 of their ids are taken: a choice without regard to class or
    order, which is the same each time, and of which a larger limit takes all again. Raises
    BadInput.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit {limit}: must be 1 or more")
    samples = dataset.samples if split is None else dataset.split(split)
    if limit is not None and limit < len(samples):
        hashes = [hashlib.sha256(s.id.encode("utf-8", "surrogateescape")).digest() for s in samples]
        chosen = sorted(sorted(range(len(samples)), key=lambda n: (hashes[n], n))[:limit])
        items = getattr(samples, "items", None)
        part = _IndexedPart(samples[n] for n in chosen)
        if isinstance(items, Items):
            part.items = Items(np.ascontiguousarray(items.array[chosen]))
        samples = part
    return dataset if samples is dataset.samples else replace(dataset, samples=samples)
