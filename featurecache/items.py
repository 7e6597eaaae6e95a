"""Items by the million: 32 bytes each in one array, looked up by sorting and not by hashing.

An item is the SHA-256 of an image's bytes. A Python dict takes 250 bytes for each of them; here it
is the item itself and 16 bytes beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np

_AT_ONCE = 1 << 20  # items that are compared at a time


class Items(Sequence[bytes | None]):
    """The item of each sample, in order; None where there is none.

    `array` is (N, 32) uint8, `known` (N,) bool, or None where all are.
    """

    def __init__(self, array: np.ndarray, known: np.ndarray | None = None) -> None:
        self.array = array
        self.known = known

    @classmethod
    def of(cls, items: Sequence[bytes | None]) -> Items:
        known = np.array([item is not None for item in items], bool)
        packed = b"".join(item or bytes(32) for item in items)
        return cls(np.frombuffer(packed, np.uint8).reshape(-1, 32), None if known.all() else known)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> bytes | Items | None:
        if isinstance(index, slice):
            return Items(self.array[index], None if self.known is None else self.known[index])
        if self.known is not None and not self.known[index]:
            return None
        return bytes(self.array[index])

    def __iter__(self) -> Iterator[bytes | None]:
        for start in range(0, len(self), _AT_ONCE):
            raw = self.array[start : start + _AT_ONCE].tobytes()
            known = None if self.known is None else self.known[start : start + _AT_ONCE].tolist()
            for row in range(len(raw) // 32):
                fine = known is None or known[row]
                yield raw[32 * row : 32 * row + 32] if fine else None

    @cached_property
    def distinct(self) -> np.ndarray:
        """The places of known items that are not at an earlier place too, in order, int64."""
        first = np.ones(len(self), bool) if self.known is None else self.known.copy()
        keys = _keys(self.array)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.zeros(len(self), bool)  # has a neighbour that begins alike
        equal = ordered[1:] == ordered[:-1]
        same[1:] |= equal
        same[:-1] |= equal
        some = np.sort(order[same])  # few: copies of an image, and what begins alike by chance
        if self.known is not None:
            some = some[self.known[some]]
        words = self.array[some].view(np.uint64)
        by_item = np.lexsort((some, *words.T))
        repeated = (words[by_item][1:] == words[by_item][:-1]).all(axis=1)
        first[some[by_item[1:][repeated]]] = False
        return np.flatnonzero(first)


class Lookup:
    """Where items are in an array (N, 32) uint8 of them."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        keys = _keys(array)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def places(self, items: np.ndarray) -> np.ndarray:
        """The place of each of `items` (M, 32), the first if there are several; -1 where it is not
        there. int64."""
        found = np.full(len(items), -1, np.int64)
        if not len(self._keys):
            return found
        wanted = _keys(items)
        # In order of their keys, so that neighbours are looked for near each other.
        asked = np.argsort(wanted)
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            at = np.searchsorted(self._keys, wanted[some])
            while len(some):
                there = at < len(self._keys)
                some, at = some[there], at[there]
                alike = self._keys[at] == wanted[some]
                some, at = some[alike], at[alike]
                places = self._order[at]
                equal = (self.array[places] == items[some]).all(axis=1)
                found[some[equal]] = places[equal]
                some, at = some[~equal], at[~equal] + 1
        return found


def _keys(array: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each item as a number: what nearly always tells two apart."""
    return np.ascontiguousarray(array).view(np.uint64)[:, 0]
