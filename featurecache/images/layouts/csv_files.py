"""CSV files: path,label[,split], paths relative to the file's folder."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.images.layouts.contents import Contents, Entry, first_few, read_text
from featurecache.images.names import COLUMNS, column_of, looks_like_column, split_of
from featurecache.images.samples import MAX_FILE, SPLITS
from featurecache.storage.safe_open import open_regular
from featurecache.storage.stored_file import StoredFile

_MAX_HEADER = 1 << 16  # bytes


def csv_file(path: Path | StoredFile) -> Contents:
    """The images that a CSV file lists, in its order."""
    remote = isinstance(path, StoredFile)
    if isinstance(path, StoredFile):
        root, folder = str(path), str(path.parent)
    else:
        root, folder = path.as_posix(), os.path.normpath(path.parent.absolute())
    seen: dict[str, tuple[str | None, str, int]] = {}  # path -> class name, split, line
    entries: list[Entry] = []
    missing: list[str] = []
    unsplit: list[int] = []  # lines
    table = _Table(path)
    for line, row in table.rows():
        listed_path, label = row["path"], row["label"] or None
        split = split_of(row.get("split", "") or "train")
        unsplit += [line] if row.get("split") == "" else []
        if not listed_path:
            raise BadInput(f"{path} line {line}: the path is empty")
        if split is None:
            raise UnknownName("split", row["split"], SPLITS, where=f"{path} line {line}")
        if label is None and split != "test":
            raise BadInput(f"{path} line {line}: no label; only split test may lack one")
        elsewhere = remote or "://" in listed_path
        if elsewhere:
            file = listed_path if "://" in listed_path else f"{folder.rstrip('/')}/{listed_path}"
        else:
            file = os.path.normpath(os.path.join(folder, listed_path))  # noqa: PTH118  one spelling
        if file in seen:
            if seen[file][:2] == (label, split):
                continue
            what = "labels" if seen[file][0] != label else "splits"
            raise BadInput(
                f"{path} lines {seen[file][2]} and {line}: {listed_path} has two {what}; "
                "keep one line"
            )
        seen[file] = (label, split, line)
        inside = not elsewhere and file.startswith(f"{folder}{os.sep}")
        name = Path(file).relative_to(folder).as_posix() if inside else listed_path
        entries.append(Entry(split, label, file, name if elsewhere else Path(name).as_posix()))
        if not elsewhere and not os.path.lexists(file):  # others are reported when they are read
            missing.append(f"{listed_path} (line {line})")
    if missing:
        raise BadInput(f"{path}: {len(missing)} files do not exist: {first_few(missing)}")
    if not entries:
        raise BadInput(f"{path}: holds no rows; expected a line of path,label[,split] per image")
    notes = []
    if table.unused:
        notes.append(f"columns that are not used: {first_few([*map(repr, table.unused)])}")
    if unsplit:
        lines = first_few([*map(str, unsplit)])
        notes.append(f"lines without a split, which are train: {lines}")
    return Contents(root=root, layout="csv", entries=entries, notes=notes)


def tables_in(folder: Path) -> Iterator[Path]:
    """The CSV files directly in a folder that have the columns of a dataset."""
    for name in sorted(path.name for path in folder.iterdir()):
        if name.lower().endswith(".csv") and not name.startswith("."):
            try:
                with open_regular(folder / name, MAX_FILE) as (file, _):
                    head = file.readline(_MAX_HEADER).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError):
                continue  # the user did not name this file, so it is no error
            if {"path", "label"} <= {column_of(column) for column in head.split(",")}:
                yield folder / name


class _Table:
    """The rows of a CSV file with a header. Raises BadInput."""

    def __init__(self, path: Path | StoredFile) -> None:
        self._path = path
        self._reader = csv.reader(io.StringIO(read_text(path)), strict=True)
        try:
            self._header = _header(path, next(self._reader, []))
        except csv.Error as error:
            raise self._not_csv(error) from error
        self.unused = [name for name in self._header if name not in COLUMNS]

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(line number, row with its values stripped) of each row."""
        header, reader = self._header, self._reader
        # Columns that hold only names of splits so far, and those that hold at least one.
        unread = set() if "split" in header else set(self.unused)
        named: set[str] = set()
        try:
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise BadInput(
                        f"{self._path} line {reader.line_num}: {len(values)} values, "
                        f"the header has {len(header)}"
                    )
                row = dict(zip(header, (value.strip() for value in values), strict=True))
                unread = {name for name in unread if not row[name] or split_of(row[name])}
                named |= {name for name in unread if row[name]}
                yield reader.line_num, row
        except csv.Error as error:
            raise self._not_csv(error) from error
        if unread & named:
            name = min(unread & named)
            raise _not_used(self._path, name, "split", "holds names of splits")

    def _not_csv(self, error: csv.Error) -> BadInput:
        return BadInput(f"{self._path} line {self._reader.line_num}: not valid CSV ({error})")


def _header(path: Path | StoredFile, names: Sequence[str]) -> list[str]:
    """The names of the columns. Raises BadInput if one of COLUMNS is missing, or if another name
    may stand for it."""
    if len(names) == 1 and len(re.split("[;\t|]", names[0])) > 1:
        raise BadInput(
            f"{path} line 1: its columns are not separated by commas; write it with commas"
        )
    header = [column_of(name) for name in names]
    for column in COLUMNS:
        similar = [name for name in header if looks_like_column(name, column)]
        if header.count(column) > 1:
            raise BadInput(
                f"{path} line 1: {header.count(column)} columns are called {column!r}; keep one"
            )
        if column != "split" and column not in header:
            near = nearest(column, similar or header)
            raise BadInput(f"{path} line 1: expected one column {column!r}; {near}")
        if column not in header and similar:
            raise _not_used(path, similar[0], column, f"looks like {column!r}")
    return header


def _not_used(path: Path | StoredFile, name: str, column: str, why: str) -> BadInput:
    return BadInput(
        f"{path} line 1: column {name!r} {why} and would not be used; rename it {column!r}, or "
        "remove it"
    )
