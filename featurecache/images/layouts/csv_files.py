"""Files that list images, with paths relative to the file's folder: CSV files and JSON Lines with
the columns path[,label][,split], which csv_tables.py reads, and text files with a path per line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from featurecache.errors import BadInput, UnknownName
from featurecache.images.layouts.contents import Contents, Entry, first_few, read_text
from featurecache.images.layouts.csv_tables import CsvColumns, CsvTable, column_names
from featurecache.images.names import column_of, split_of
from featurecache.images.samples import MAX_FILE, SPLITS
from featurecache.storage.safe_open import open_regular
from featurecache.storage.stored_file import StoredFile
from featurecache.text import counted

TABLES = (".csv", ".jsonl", ".txt")
_MAX_HEADER = 1 << 16  # bytes


def csv_file(
    path: Path | StoredFile,
    columns: CsvColumns | None = None,
    content: str | None = None,
    split_by_folder: Mapping[str, str] = MappingProxyType({}),
) -> Contents:
    """The images that a table or a text file lists, in its order; `columns` names columns of it.
    Without labels all are in split test. `content` is a CSV file's text that is not on disk. Where
    no column says the split, it is that of the first folder of the path, or that of ""."""
    remote = isinstance(path, StoredFile)
    if isinstance(path, StoredFile):
        root, folder = str(path), str(path.parent)
    else:
        root, folder = path.as_posix(), os.path.normpath(path.parent.absolute())
    seen: dict[str, tuple[str | None, str, str, int]] = {}  # path -> label, split, group, line
    entries: list[Entry] = []
    missing: list[str] = []
    unsplit: list[int] = []  # lines
    is_table = path.suffix.lower() != ".txt"
    table = CsvTable(path, columns or {}, content) if is_table else _Lines(path)
    for line, row in table.rows():
        listed_path, label = row["path"], row.get("label") or None
        by_folder = split_by_folder.get(listed_path.partition("/")[0], split_by_folder.get(""))
        default_split = by_folder or ("train" if "label" in row else "test")
        split = split_of(row.get("split", "") or default_split)
        unsplit += [line] if row.get("split") == "" else []
        group = row.get("group", "")
        if "group" in row and not group:
            raise BadInput(f"{path} line {line}: the group is empty")
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
            if seen[file][:3] == (label, split, group):
                continue
            same = [a == b for a, b in zip(seen[file], (label, split, group), strict=False)]
            what = ("labels", "splits", "groups")[same.index(False)]
            raise BadInput(
                f"{path} lines {seen[file][3]} and {line}: {listed_path} has two {what}; "
                "keep one line"
            )
        seen[file] = (label, split, group, line)
        inside = not elsewhere and file.startswith(f"{folder}{os.sep}")
        name = Path(file).relative_to(folder).as_posix() if inside else listed_path
        name = name if elsewhere else Path(name).as_posix()
        entries.append(Entry(split, label, file, name, group))
        if not elsewhere and not os.path.lexists(file):  # others are reported when they are read
            missing.append(f"{listed_path} (line {line})")
    if missing:
        raise BadInput(f"{path}: {counted(len(missing), 'file')} not found: {first_few(missing)}")
    if not entries:
        row_format = "path,label[,split]" if is_table else "a path"
        raise BadInput(f"{path}: holds no rows; expected a line of {row_format} per image")
    notes = table.notes
    if unsplit:
        lines = first_few([*map(str, unsplit)])
        notes.append(f"lines without a split, which are train: {lines}")
    return Contents(root=root, layout="csv" if is_table else "list", entries=entries, notes=notes)


def tables_in(folder: Path) -> Iterator[Path]:
    """The CSV files directly in a folder that have the columns of a dataset."""
    for name in sorted(path.name for path in folder.iterdir()):
        if name.lower().endswith(".csv") and not name.startswith("."):
            columns = {column_of(column) for column in header_of(folder / name)}
            if {"path", "label"} <= columns:
                yield folder / name


def header_of(path: Path) -> list[str]:
    """The names of the columns of a table, none if it can't be read: it may not be a dataset."""
    try:
        with open_regular(path, MAX_FILE) as (file, _):
            head = file.readline(_MAX_HEADER).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []
    return column_names(head, path.suffix)


class _Lines:
    """The paths of a text file, one per line, as rows of a table. Raises BadInput."""

    def __init__(self, path: Path | StoredFile) -> None:
        self._lines = read_text(path).splitlines()
        self.notes: list[str] = []

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(line number, row) of each line that is not blank."""
        for number, line in enumerate(self._lines, start=1):
            if line.strip():
                yield number, {"path": line.strip()}
