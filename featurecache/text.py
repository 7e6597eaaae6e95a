"""Text that comes from outside, made fit to be stored or shown on one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def one_line(error: BaseException, max_length: int = 300) -> str:
    """What a library's error says, on one line of at most `most` characters."""
    return " ".join(str(error).split())[:max_length]


def printable(text: str) -> str:
    """`text` as a terminal or a figure can show it on one line: what they would act on (escape
    sequences, line ends, marks that turn the direction of writing) and what can't be encoded stand
    as escapes.

    File and class names come from strangers. The joiners of Persian, Hindi and emoji stay.
    """
    return "".join(
        char if char.isprintable() or char in "\u200c\u200d" else ascii(char)[1:-1] for char in text
    )


def as_utf8(name: str | Path) -> str:
    """`name` with bytes that are not UTF-8 escaped: names go into JSON, HDF5, CSV and HTML."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def readable_name(class_name: str, words: Mapping[str, str]) -> str:
    """The name of a class to show a reader: its words where the dataset has some, as
    "goldfish, Carassius auratus" for n01443537, or else the class name."""
    return words.get(class_name, class_name)


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2,000 workers`: a count with a noun whose plural ends in s."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: str | Sequence[str]) -> list[str]:
    """A single name as a list of one; several names as a list."""
    return [names] if isinstance(names, str) else list(names)
