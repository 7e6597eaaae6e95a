"""Measuring the seconds that each part of the work takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Made = TypeVar("Made")


@contextlib.contextmanager
def timed(spent: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - start


def timed_each(made: Iterable[Made], spent: dict[str, float], part: str) -> Iterator[Made]:
    """Yield from `made`, and add the time that each result takes to `part`."""
    iterator = iter(made)
    while True:
        with timed(spent, part):
            result = next(iterator, None)
        if result is None:
            return
        yield result
