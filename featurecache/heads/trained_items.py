"""The images that a head was trained on: a file in its run folder, written after training.

The dataset may change later; the images that a run has seen do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.items import ItemArray, Lookup, packed
from featurecache.json_files import damaged_run, read_file
from featurecache.storage import durable

FILE = "trained_items.bin"
_DTYPE = np.dtype([("item", "u1", (32,)), ("fold", "<u2")])
_CHUNK = 1 << 16  # items that are text at a time
_MAX_BYTES = 4 << 30  # 126 million images


def root_of(items: npt.NDArray[np.uint8]) -> str:
    """The root hash of images (N, 32): of their distinct items, sorted."""
    distinct = np.unique(np.ascontiguousarray(items).view("V32").ravel())
    digest = hashlib.sha256(b"[")  # canonical JSON, of some items at a time
    for start in range(0, len(distinct), _CHUNK):
        texts = distinct[start : start + _CHUNK].tobytes().hex(",", 32).replace(",", '","')
        digest.update(f'{"," if start else ""}"{texts}"'.encode())
    digest.update(b"]")
    return digest.hexdigest()


@dataclass(frozen=True)
class TrainedItems:
    """The images of a training: distinct `items` (N, 32) uint8, and `folds` (N,) uint16, the fold
    that held each image out, from 1, or 0 if every network was trained on it. With one network a
    held-out image is unseen. With K networks only the network of its fold has not seen it."""

    items: npt.NDArray[np.uint8]
    folds: npt.NDArray[np.uint16]

    @classmethod
    def from_pairs(
        cls, items: npt.NDArray[np.uint8], pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> TrainedItems:
        """From the `items` (N, 32) of all rows and the (train, validation) rows of each fold."""
        folds = np.zeros(len(items), np.uint16)
        used = np.zeros(len(items), bool)
        for number, (train_idx, val_idx) in enumerate(pairs, 1):
            folds[val_idx] = number
            used[train_idx] = used[val_idx] = True
        rows = np.flatnonzero(used)
        _, first = np.unique(items[rows].view("V32").ravel(), return_index=True)
        rows = rows[first]
        return cls(items[rows], folds[rows])

    @property
    def networks(self) -> int:
        """The number of networks, one per fold."""
        return int(self.folds.max(initial=1))

    @property
    def common_items(self) -> npt.NDArray[np.uint8]:
        """The images (M, 32) that no fold held out: what a generator was fitted on."""
        items: npt.NDArray[np.uint8] = self.items[self.folds == 0]
        return items

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.items)

    def folds_of(self, items: ItemArray) -> npt.NDArray[np.int64]:
        """The fold (M,) of each of these images, as in `folds`; -1 if the run has not seen it."""
        positions = self._lookup.positions(packed(items))
        return np.where(positions >= 0, self.folds[positions].astype(np.int64), -1)

    def save(self, run: Path) -> None:
        """Write 34 bytes per image (item and fold), then the SHA-256 of these bytes."""
        rows = np.zeros(len(self.items), _DTYPE)
        rows["item"], rows["fold"] = self.items, self.folds
        content = rows.tobytes()
        durable.replace(run / FILE, content + hashlib.sha256(content).digest())

    @classmethod
    def load(cls, run: Path) -> TrainedItems | None:
        """What `save` wrote; None for an older run without the file. Raises CannotRead,
        DamagedRun."""
        path = run / FILE
        if not path.exists():
            return None
        data = read_file(path, _MAX_BYTES, damaged_run)
        content = data[:-32]
        intact = hashlib.sha256(content).digest() == data[-32:]
        if not intact or not content or len(content) % _DTYPE.itemsize:
            remedy = "delete it, or train into another --out"
            raise damaged_run(path, "not the list of a run's images", remedy)
        rows = np.frombuffer(content, _DTYPE)
        return cls(np.ascontiguousarray(rows["item"]), rows["fold"])
