"""Samples of a sequence, without chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Entry = TypeVar("Entry")


def spaced_indices(total: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the indices 0..total-1, evenly spaced, from the first to the last one."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(np.int64)


def evenly_spaced(rows: Sequence[Entry], count: int) -> list[Entry]:
    """At most `count` of the rows, evenly spaced, in their order."""
    return [rows[index] for index in spaced_indices(len(rows), count).tolist()]
