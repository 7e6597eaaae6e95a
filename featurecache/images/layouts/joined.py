"""Several datasets as one: equal class names are the same class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Protocol

from featurecache.images.layouts.contents import first_few
from featurecache.images.samples import Sample


class Part(Protocol):
    """A dataset, as far as this module knows it."""

    @property
    def root(self) -> str: ...
    @property
    def samples(self) -> Sequence[Sample]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


def joined_classes(parts: Sequence[Part]) -> tuple[list[str], list[str]]:
    """The classes of all parts, sorted, and notes on those that only some have."""
    classes = sorted({name for part in parts for name in part.classes})
    notes = []
    for part in parts:
        others = {name for other in parts if other is not part for name in other.classes}
        only = [name for name in part.classes if name not in others]
        if only and others:
            notes.append(f"classes that only {part.root} has: {first_few(only)}")
    return classes, notes


def joined_samples(parts: Sequence[Part], classes: Sequence[str]) -> Iterator[Sample]:
    """The samples of all parts, with labels of all classes. The ids of a part that has an id of
    another part begin with its name."""
    numbers = {name: number for number, name in enumerate(classes)}
    counts = Counter(sample.id for part in parts for sample in part.samples)
    names = [PurePath(part.root).name or "data" for part in parts]
    for number, (part, name) in enumerate(zip(parts, names, strict=True), 1):
        labels = [numbers[class_name] for class_name in part.classes]
        prefix = ""
        if any(counts[sample.id] > 1 for sample in part.samples):
            prefix = f"{name}/" if names.count(name) == 1 else f"{name}-{number}/"
        for sample in part.samples:
            label = None if sample.label is None else labels[sample.label]
            yield replace(sample, id=prefix + sample.id, label=label)
