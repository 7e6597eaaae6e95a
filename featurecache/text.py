"""Text from outside, made safe to store or to show on one line; and text for people."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def one_line(error: BaseException, max_length: int = 300) -> str:
    """The message of a library's error, on one line of at most `max_length` characters."""
    return " ".join(str(error).split())[:max_length]


def reason_of(error: Exception) -> str:
    """Why something failed: the words of the system for an OSError that has them, else the
    message."""
    return getattr(error, "strerror", None) or str(error)


def printable(text: str) -> str:
    """`text` made safe for one line of a terminal or a figure.

    Escape sequences, line ends, bidirectional marks and characters that can't be encoded are
    replaced by backslash escapes, because file and class names are untrusted. The joiners of
    Persian, Hindi and emoji are kept.
    """
    return "".join(
        char if char.isprintable() or char in "\u200c\u200d" else ascii(char)[1:-1] for char in text
    )


def as_utf8(name: str | Path) -> str:
    """`name` as valid UTF-8, other bytes escaped, so that it fits JSON, HDF5, CSV and HTML."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def readable_name(class_name: str, words: Mapping[str, str]) -> str:
    """The name of a class to show to a reader: its words if the dataset has them, such as
    "goldfish, Carassius auratus" for n01443537, else the class name."""
    return words.get(class_name, class_name)


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2,000 workers`: a count with a noun whose plural ends in s."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: str | Sequence[str]) -> list[str]:
    """A single name as a list of one; several names as a list."""
    return [names] if isinstance(names, str) else list(names)
