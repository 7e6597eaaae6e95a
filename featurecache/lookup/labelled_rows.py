"""The labelled rows of a dataset that a training or an evaluation uses."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.images.datasets import Dataset
from featurecache.images.layouts.indexes import Indexed
from featurecache.images.samples import SPLITS, Sample, items_of, samples_at
from featurecache.items import Lookup, packed
from featurecache.text import counted

_CHUNK = 1 << 16  # rows that are objects at a time


class LabelledRow(NamedTuple):
    """A labelled image to train or evaluate on."""

    item: bytes
    label: int
    split: str
    id: str
    group: str = ""
    origin: str = ""  # the dataset of generated images that it is of


class LabelledRows(Sequence[LabelledRow]):
    """N labelled images as arrays: `items` (N, 32) uint8, `labels` (N,) int64, and `splits` (N,)
    int8, positions in SPLITS. A row becomes an object when it is accessed; with an index, its name
    is read then."""

    def __init__(
        self,
        named: Sequence[Sample | LabelledRow],
        positions: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray,
        splits: np.ndarray,
    ) -> None:
        """`positions` (N,) are those of the rows in `named`, which has their names."""
        self._named, self._positions = named, positions
        self.items, self.labels, self.splits = items, labels, splits

    @classmethod
    def pack(cls, rows: Sequence[LabelledRow]) -> LabelledRows:
        """These rows, which may be arrays already."""
        if isinstance(rows, cls):
            return rows
        return cls(
            rows,
            np.arange(len(rows)),
            packed(row.item for row in rows),
            np.array([row.label for row in rows], np.int64),
            np.array([SPLITS.index(row.split) for row in rows], np.int8),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> LabelledRow: ...
    @overload
    def __getitem__(self, index: slice) -> LabelledRows: ...
    def __getitem__(self, index: int | slice) -> LabelledRow | LabelledRows:
        if isinstance(index, slice):
            return self.where(index)
        position = range(len(self))[index]
        return next(iter(self[position : position + 1]))

    def __iter__(self) -> Iterator[LabelledRow]:
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            content, labels = self.items[part].tobytes(), self.labels[part].tolist()
            named = samples_at(self._named, self._positions[part])
            for row, (name, label) in enumerate(zip(named, labels, strict=True)):
                item = content[32 * row : 32 * row + 32]
                yield LabelledRow(item, label, name.split, name.id, name.group, name.origin)

    def where(self, index: slice | np.ndarray) -> LabelledRows:
        """Some of the rows: a slice, their numbers, or (N,) bool."""
        columns = (self._positions, self.items, self.labels, self.splits)
        return LabelledRows(self._named, *(column[index] for column in columns))

    def are_in(self, items: Collection[bytes]) -> np.ndarray:
        """(N,) bool: which rows have one of these items."""
        if not items:
            return np.zeros(len(self), bool)
        return Lookup(packed(items)).holds(self.items)

    @property
    def is_train(self) -> np.ndarray:
        """(N,) bool."""
        is_train: np.ndarray = self.splits == SPLITS.index("train")
        return is_train

    @cached_property
    def groups(self) -> list[str]:
        """The group of each row; empty if no row has one."""
        if isinstance(self._named, Indexed) and not self._named.has_groups:
            return []
        groups = [row.group for row in self]
        return groups if any(groups) else []

    @cached_property
    def is_generated(self) -> np.ndarray:
        """(N,) bool: which images are of a dataset of generated images."""
        if isinstance(self._named, Indexed):
            return np.zeros(len(self), bool)
        return np.array([bool(row.origin) for row in self], bool)


class TrainingRows(NamedTuple):
    """The rows that a training uses. `notes` report omissions and oddities, one sentence each.
    `copies` counts by label the training images omitted because they are copies of held-out ones.
    """

    rows: LabelledRows
    notes: list[str]
    copies: Counter[int]


def items_by_split(
    dataset: Dataset, splits: Iterable[str], progress: Progress = silent
) -> Iterator[tuple[Sample, bytes | None]]:
    """The samples of these splits with their items. With an index no image is opened."""
    for split in splits:
        samples = dataset.split(split)
        yield from zip(samples, items_of(samples, progress)[0], strict=True)


def labelled_rows(
    dataset: Dataset, splits: Sequence[str], progress: Progress = silent
) -> LabelledRows:
    """The rows of these splits that can be read. Raises BadInput for an unlabelled split."""
    if not splits:
        return LabelledRows.pack([])
    all_labels, all_splits = _codes(dataset.samples)
    position_parts: list[np.ndarray] = []
    for split in splits:
        dataset.split(split)  # the error says why there is none
        positions = np.flatnonzero(all_splits == SPLITS.index(split))
        if (all_labels[positions] < 0).any():
            hint = "use another split" if dataset.classes else "no image of it has any"
            raise BadInput(f"split {split!r} of {dataset.root} has no labels; {hint}")
        position_parts.append(positions)
    item_parts: list[np.ndarray] = []
    for number, split in enumerate(splits):
        items = items_of(dataset.split(split), progress)[0]
        if items.known is not None:
            position_parts[number] = position_parts[number][items.known]
        item_parts.append(items.known_array)
    positions = np.concatenate(position_parts)
    return LabelledRows(
        dataset.samples,
        positions,
        item_parts[0] if len(item_parts) == 1 else np.concatenate(item_parts),
        all_labels[positions],
        all_splits[positions],
    )


def _codes(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 label, -1 for none, and (N,) int8 position of the split in SPLITS."""
    if isinstance(samples, Indexed):
        return samples.labels.astype(np.int64), samples.splits
    labels = [-1 if sample.label is None else sample.label for sample in samples]
    splits = [SPLITS.index(sample.split) for sample in samples]
    return np.array(labels, np.int64), np.array(splits, np.int8)


def decodable(rows: Sequence[LabelledRow], spaces: Iterable[Space]) -> LabelledRows:
    """The rows that have a vector in each of these spaces. Raises BadInput if there are none."""
    table = LabelledRows.pack(rows)
    return table.where(_decoded(table, np.ones(len(table), bool), spaces))


def _decoded(rows: LabelledRows, part: np.ndarray, spaces: Iterable[Space]) -> np.ndarray:
    """(N,) bool: which rows of the `part` (N,) bool have a vector in each of these spaces. Raises
    BadInput if there are none."""
    bad: dict[bytes, str] = {}
    for space in spaces:
        bad |= space.failed
    decoded: np.ndarray = part & ~rows.are_in(bad)
    if part.any() and not decoded.any():
        first = rows[int(part.argmax())]
        raise BadInput(
            f"none of the {counted(int(part.sum()), 'image')} could be decoded; the first: "
            f"{first.id}: {bad[first.item]}"
        )
    if not decoded.any():
        raise BadInput("none of the images can be read")
    return decoded


def rows_digest(rows: Sequence[LabelledRow]) -> str:
    """The hash of items, labels, splits and groups that a run's record holds."""
    table = LabelledRows.pack(rows)
    digest = hashlib.sha256(b"[")  # canonical JSON, of some rows at a time
    for start in range(0, len(table), _CHUNK):
        part = table[start : start + _CHUNK]
        items, columns = part.items.tobytes().hex(), (part.labels.tolist(), part.splits.tolist())
        ends = [f",{json.dumps(g)}]" if g else "]" for g in part.groups] or ["]"] * len(part)
        texts = [
            f'["{items[64 * row : 64 * row + 64]}",{label},"{SPLITS[split]}"{end}'
            for row, (label, split, end) in enumerate(zip(*columns, ends, strict=True))
        ]
        digest.update(("," if start else "").encode() + ",".join(texts).encode())
    digest.update(b"]")
    return digest.hexdigest()


def training_rows(
    dataset: Dataset,
    splits: Sequence[str],
    rows: Sequence[LabelledRow],
    spaces: Sequence[Space],
    progress: Progress = silent,
    validation_spaces: Sequence[Space] | None = None,
) -> TrainingRows:
    """The subset of the `labelled_rows` of these splits that a training on `spaces` uses. Images of
    a split other than train are only read in the `validation_spaces`, by default in all.

    An image that is also in a split other than train, used here or not, is never trained on
    (law 8, "Views of one image never straddle a split").
    """
    notes = []
    table = LabelledRows.pack(rows)
    judged = spaces if validation_spaces is None else validation_spaces
    used = np.zeros(len(table), bool)
    for part, of_part in ((table.is_train, spaces), (~table.is_train, judged)):
        used |= _decoded(table, part, of_part) if part.any() else part
    lost = sum(len(dataset.split(split)) for split in splits) - int(used.sum())
    if lost:
        notes.append(f"left out {counted(lost, 'image')} that could not be read or decoded")
    others = [split for split in dataset.splits if split != "train"]
    shared = used & table.is_train & _are_held_out(table.items, dataset, others, progress)
    copies = Counter(table.labels[shared].tolist())
    if copies:
        notes.append(
            f"left out {counted(copies.total(), 'training image')} that another split also contains"
        )
    used &= ~shared
    if table.groups:
        held_out_groups = {s.group for split in others for s in dataset.split(split) if s.group}
        in_held_out = np.array([group in held_out_groups for group in table.groups], bool)
        straddling = used & table.is_train & in_held_out
        names = {table.groups[row] for row in np.flatnonzero(straddling)}
        if names:
            notes.append(
                f"left out {counted(int(straddling.sum()), 'training image')} of "
                f"{counted(len(names), 'group')} that another split also contains"
            )
        used &= ~straddling
    parts = (np.flatnonzero(used & part) for part in (table.is_train, ~table.is_train))
    chosen = table.where(np.concatenate([*parts]))
    contradicting = _contradicting(chosen)
    if contradicting:
        several = "1 image has" if contradicting == 1 else f"{contradicting:,} images have"
        notes.append(f"{several} more than one class")
    return TrainingRows(chosen, notes, copies)


def _are_held_out(
    items: np.ndarray, dataset: Dataset, splits: Iterable[str], progress: Progress
) -> np.ndarray:
    """(N,) bool: which of the items (N, 32) are of images of these splits."""
    held_out = np.zeros(len(items), bool)
    for split in splits:
        others = items_of(dataset.split(split), progress)[0]
        held_out |= Lookup(others.known_array).holds(items)
    return held_out


def _contradicting(rows: LabelledRows) -> int:
    """The number of images with several labels."""
    lookup = Lookup(rows.items)
    if not lookup.has_twins:
        return 0
    first = lookup.positions(rows.items)  # of the same image
    return len(np.unique(first[rows.labels != rows.labels[first]]))
