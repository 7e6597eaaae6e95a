"""Items by the million: 32 bytes each in one array, looked up by sorting instead of hashing.

An item is the SHA-256 of an image's bytes. A Python dict takes 250 bytes per item; these arrays
take 44, the item itself and 12 more bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np

_CHUNK = 1 << 20  # items per comparison

ItemArray = Sequence[bytes] | np.ndarray  # as an array they are (N, 32) uint8


def packed(items: Iterable[bytes] | np.ndarray) -> np.ndarray:
    """Items as an array (N, 32) uint8."""
    if isinstance(items, np.ndarray):
        return items
    return np.frombuffer(b"".join(items), np.uint8).reshape(-1, 32)


def unpacked(data: bytes) -> list[bytes]:
    """The items of a bytes object that has them one after another, 32 bytes each."""
    return [data[start : start + 32] for start in range(0, len(data), 32)]


class Items(Sequence[bytes | None]):
    """The item of each sample, in order; None where it is unknown.

    `array` is (N, 32) uint8, `known` (N,) bool, or None if all are known.
    """

    def __init__(self, array: np.ndarray, known: np.ndarray | None = None) -> None:
        self.array = array
        self.known = known

    @classmethod
    def pack(cls, items: Sequence[bytes | None]) -> Items:
        known = np.array([item is not None for item in items], bool)
        array = packed(item or bytes(32) for item in items)
        return cls(array, None if known.all() else known)

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
        for start in range(0, len(self), _CHUNK):
            raw = self.array[start : start + _CHUNK].tobytes()
            known = None if self.known is None else self.known[start : start + _CHUNK].tolist()
            for row in range(len(raw) // 32):
                is_known = known is None or known[row]
                yield raw[32 * row : 32 * row + 32] if is_known else None

    @property
    def known_array(self) -> np.ndarray:
        """(M, 32) uint8: the known items."""
        return self.array if self.known is None else self.array[self.known]

    @property
    def distinct_array(self) -> np.ndarray:
        """(M, 32) uint8: the known items, each once, in the order of their first occurrences."""
        return self.array if len(self.distinct) == len(self) else self.array[self.distinct]

    @cached_property
    def distinct(self) -> np.ndarray:
        """The position of the first occurrence of each known item, ascending, int64."""
        keys = _words(self.array)[:, 0]
        ordered = np.sort(keys)
        twins = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])  # few: copies, and chance
        if self.known is None and not len(twins):
            return np.arange(len(self))
        first = np.ones(len(self), bool) if self.known is None else self.known.copy()
        starts = range(0, len(self), _CHUNK)
        parts = [
            start + np.flatnonzero(np.isin(keys[start : start + _CHUNK], twins)) for start in starts
        ]
        candidates = np.concatenate([np.empty(0, np.int64), *parts])
        if self.known is not None:
            candidates = candidates[self.known[candidates]]
        words = self.array[candidates].view(np.uint64)
        by_item = np.lexsort((candidates, *words.T))
        repeated = (words[by_item][1:] == words[by_item][:-1]).all(axis=1)
        first[candidates[by_item[1:][repeated]]] = False
        return np.flatnonzero(first)


class Lookup:
    """Positions of items in an array (N, 32) uint8 of items."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        keys = np.ascontiguousarray(_words(array)[:, 0])
        order = np.argsort(keys)
        ordered = keys[order]
        # Whether items may occur twice: if not, none begins with the same 8 bytes as another.
        self.has_twins = bool((ordered[1:] == ordered[:-1]).any())
        if self.has_twins:
            order = np.argsort(keys, kind="stable")  # slower, but the first of equal items is first
            ordered = keys[order]
        self._keys = ordered
        self._order = order.astype(np.uint32) if len(order) < 1 << 32 else order

    def positions(self, items: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """(M,) int64: the first position in the array of each of `items` (M, 32); -1 if absent.
        With a `mask` (N,) bool, the first position where it is True."""
        positions = np.full(len(items), -1, np.int64)
        array_words, words = _words(self.array), _words(items)
        for start in range(0, len(items) if len(self._keys) else 0, _CHUNK):
            # Sorted by key, so that each search touches memory near the previous one.
            rows = start + np.argsort(words[start : start + _CHUNK, 0])
            ranks = np.searchsorted(self._keys, words[rows, 0])
            while len(rows):
                in_range = ranks < len(self._keys)
                rows, ranks = rows[in_range], ranks[in_range]
                same_key = self._keys[ranks] == words[rows, 0]
                rows, ranks = rows[same_key], ranks[same_key]
                candidates = self._order[ranks]
                # Of their four words the first is equal, and NumPy is slow on short rows.
                a, b = np.take(array_words, candidates, 0), np.take(words, rows, 0)
                equal = (a[:, 1] == b[:, 1]) & (a[:, 2] == b[:, 2]) & (a[:, 3] == b[:, 3])
                if mask is not None:
                    equal &= mask[candidates]
                positions[rows[equal]] = candidates[equal]
                rows, ranks = rows[~equal], ranks[~equal] + 1
        return positions

    def holds(self, items: np.ndarray) -> np.ndarray:
        """(M,) bool: which of `items` (M, 32) are in the array."""
        are_held = np.empty(len(items), bool)
        for start in range(0, len(items), _CHUNK):
            part = slice(start, start + _CHUNK)
            are_held[part] = self.positions(items[part]) >= 0
        return are_held


def _words(array: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: the bytes of each item as numbers. The first is different for nearly all
    items."""
    return np.ascontiguousarray(array).view(np.uint64)


def group_numbers(array: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """(N,) int64: a number for each set of rows that belong together, in order of the items.

    Rows with the same item belong together, and so do rows of the same group, and all rows that
    are linked by several of these. "" is no group. `array` is (N, 32).
    """
    from scipy.sparse import coo_array, csgraph  # here, because most commands do without

    keys = np.ascontiguousarray(array).view("V32").ravel()
    distinct, image = np.unique(keys, return_inverse=True)
    codes: dict[str, int] = {}
    numbers = (codes.setdefault(group, len(codes)) for group in groups)
    group = np.fromiter(numbers, np.int64, len(image))
    is_linked = group != codes.get("", -1)
    links = image[is_linked], len(distinct) + group[is_linked]
    nodes = len(distinct) + len(codes)  # images, then groups
    graph = coo_array((np.ones(len(links[0]), np.int8), links), (nodes, nodes))
    _, part = csgraph.connected_components(graph, directed=False)
    _, first, part = np.unique(part[: len(distinct)], return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    rows: np.ndarray = order[part][image]
    return rows
