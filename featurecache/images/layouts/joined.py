"""Several datasets as one: equal class names are the same class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Protocol

from featurecache.errors import BadInput
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
    """The classes of all parts, sorted, and notes on those that only some have. Raises BadInput for
    a class of generated images that no part with real images has."""
    _check_generated(parts)
    classes = sorted({name for part in parts for name in part.classes})
    notes = []
    for part in parts:
        others = {name for other in parts if other is not part for name in other.classes}
        only = [name for name in part.classes if name not in others]
        if only and others:
            notes.append(f"classes that only {part.root} has: {first_few(only)}")
    return classes, notes


def _check_generated(parts: Sequence[Part]) -> None:
    is_real = [any(not sample.origin for sample in part.samples) for part in parts]
    real = {name for part, has in zip(parts, is_real, strict=True) if has for name in part.classes}
    for part, has_real in zip(parts, is_real, strict=True):
        only = [] if has_real else [name for name in part.classes if name not in real]
        if real and only:
            raise BadInput(
                f"{part.root}: has generated images of classes that no real dataset beside it has: "
                f"{first_few(only)}; fit the generator on the classes of the others, give real "
                f"images of these too, or name it as a view of a schedule, gen:{part.root}"
            )


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
