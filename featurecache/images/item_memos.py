"""The items of files that were hashed before, remembered by their marks (storage/file_marks.py).

Hashing reads every byte of a dataset, which takes minutes for a large one, even if each of its
images is in the cache. A memo has the path, the mark and the item of each file. The item counts
only while the file has the same mark. Only files on a local disk are remembered, and only those
that were left alone for a minute (storage/local_disks.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache.items import Lookup
from featurecache.storage import local_disks, memos
from featurecache.storage.file_marks import MARK_FIELDS, Mark, mark_of_status

MIN_NEW = 256  # files: hashing fewer is quicker than writing a memo
_FORMAT = 1
_MAX_MEMO = 1 << 30  # bytes; ten million files
_HEAD_BYTES = 64
_ROW = np.dtype([("path", "u1", 32), ("mark", "<i8", MARK_FIELDS), ("item", "u1", 32)])

Part = tuple[Path, str]  # a file, and which part of it: "" is the whole


class ItemMemo:
    """What is remembered of the items of some files, one for each sample; None is a sample whose
    bytes are no file."""

    def __init__(self, parts: Sequence[Part | None]) -> None:
        # The marks are taken before anything is hashed: what changes meanwhile has another one.
        self._count = len(parts)
        marked = _marked_rows(parts) if memos.folder() else _NO_ROWS
        self._indices: np.ndarray = marked[0]
        self._rows: np.ndarray = marked[1]
        self._name = _name_of([parts[index] for index in self._indices.tolist()])
        self._stored = self._read() if len(self._rows) else _NO_ROWS[1]
        lookup = Lookup(np.ascontiguousarray(self._stored["path"]))
        self._positions = lookup.positions(np.ascontiguousarray(self._rows["path"]))

    def items(self) -> list[bytes | None]:
        """The item of each sample; None if it must be hashed."""
        items: list[bytes | None] = [None] * self._count
        if not len(self._stored):
            return items
        candidates = self._stored[self._positions]  # of a position -1, some row
        is_same = (candidates["mark"] == self._rows["mark"]).all(axis=1) & (self._positions >= 0)
        for index, item in zip(
            self._indices[is_same].tolist(), candidates["item"][is_same], strict=True
        ):
            items[index] = item.tobytes()
        return items

    def write(self, items: Sequence[bytes | None], new: int) -> None:
        """Store the items, `new` of which were hashed since this was made."""
        if new < MIN_NEW or not len(self._rows):
            return
        hashed = np.array([items[index] is not None for index in self._indices.tolist()], bool)
        rows = self._rows[hashed].copy()
        packed = b"".join(items[index] or b"" for index in self._indices[hashed].tolist())
        rows["item"] = np.frombuffer(packed, np.uint8).reshape(-1, 32)
        others = np.ones(len(self._stored), bool)  # files of other splits, or removed ones
        others[self._positions[self._positions >= 0]] = False
        rows = np.concatenate([rows, self._stored[others]])
        if len(rows) * _ROW.itemsize <= _MAX_MEMO - _HEAD_BYTES:
            memos.write_memo(self._name, _head(len(rows)) + rows.tobytes())

    def _read(self) -> np.ndarray:
        content = memos.read_memo(self._name, _MAX_MEMO) or b""
        count, rest = divmod(len(content) - _HEAD_BYTES, _ROW.itemsize)
        if rest or count < 0 or content[:_HEAD_BYTES] != _head(count):
            return _NO_ROWS[1]
        return np.frombuffer(content, _ROW, offset=_HEAD_BYTES)


_NO_ROWS = (np.empty(0, np.int64), np.empty(0, _ROW))


def _head(count: int) -> bytes:
    text = json.dumps({"format": _FORMAT, "files": count})
    return text.encode().ljust(_HEAD_BYTES - 1) + b"\n"


def _name_of(parts: Sequence[Part | None]) -> str:
    """One memo for the files of a folder, whatever is selected of them."""
    folders = {str(part[0].parent) for part in parts if part is not None}
    folder = os.path.commonpath(folders) if folders else ""
    return f"items-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.rows"


def _marked_rows(parts: Sequence[Part | None]) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the files that have a mark, and their rows without items."""
    marks: dict[Path, Mark | None] = {}
    indices, paths, listed = [], [], []
    for index, part in enumerate(parts):
        if part is None:
            continue
        path, name = part
        if path not in marks:
            marks[path] = _mark_of(path)
        mark = marks[path]
        if mark is not None:
            indices.append(index)
            paths.append(hashlib.sha256(os.fsencode(f"{path}\0{name}")).digest())
            listed.append(mark)
    rows = np.zeros(len(indices), _ROW)
    if indices:
        rows["path"] = np.frombuffer(b"".join(paths), np.uint8).reshape(-1, 32)
        try:
            rows["mark"] = np.array(listed, np.int64)
        except OverflowError:  # inodes above 2**63
            return _NO_ROWS
    return np.array(indices, np.int64), rows


def _mark_of(path: Path) -> Mark | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # reading it reports why
        return None
    if not local_disks.is_exact(status.st_dev):
        return None
    return mark_of_status(status, local_disks.quiet_seconds())
