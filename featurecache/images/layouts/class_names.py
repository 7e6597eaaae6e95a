"""The names of a dataset's classes: what is refused, and what is worth a note."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featurecache.errors import BadInput, nearest
from featurecache.images.layouts.contents import first_few
from featurecache.images.names import difference, looking_alike, same_numbers
from featurecache.text import as_utf8


def check_classes(classes: Sequence[str], root: str) -> list[str]:
    """Notes on unusual class names. Raises BadInput for invalid ones."""
    for label in classes:
        if as_utf8(label) != label:
            raise BadInput(
                f"{as_utf8(root)}: class {as_utf8(label)} has a name that is not UTF-8; rename it"
            )
        if "\0" in label:
            raise BadInput(f"{root}: class {label!a} has a NUL in its name; is the file text?")
    for first, second in looking_alike(classes):
        raise BadInput(
            f"{root}: classes {first!a} and {second!a} look the same and differ in "
            f"{difference(first, second)}; rename one of them"
        )
    cased = [f"{first} and {second}" for first, second in looking_alike(classes, cased=False)]
    numbers = [f"{first} and {second}" for first, second in same_numbers(classes)]
    pairs_by_rule = {"differ only in upper and lower case": cased, "are the same number": numbers}
    return [
        f"classes that {rule}: {first_few(pairs)}" for rule, pairs in pairs_by_rule.items() if pairs
    ]


def class_hint(label: str, others: Iterable[str]) -> str:
    """A hint for an unknown class: how it differs from one that looks the same, or near names."""
    for class_name in others:
        change = difference(label, class_name)
        if change is not None:
            return f"it differs from {class_name!a} in {change}; rename one of them"
    return nearest(label, others)
