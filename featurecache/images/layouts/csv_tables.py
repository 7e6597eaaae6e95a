"""The rows of a CSV file or of JSON Lines, and the meaning of their columns.

A column is the one that an option names; else the one called `path`, `label` or `split`; else, of
paths and labels, the only one with a usual name, such as `filename` or `class`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.images.layouts.contents import first_few, read_text
from featurecache.images.names import (
    COLUMNS,
    column_of,
    is_picture,
    is_usual_column,
    looks_like_column,
    split_of,
)
from featurecache.storage.stored_file import StoredFile
from featurecache.text import one_line


class CsvColumns(TypedDict, total=False):
    """The names of columns of a CSV file; an absent one, or None, is detected."""

    path_column: str | None
    label_column: str | None
    split_column: str | None
    group_column: str | None


class _JsonLines:
    """The rows of a file with a JSON object per line, as csv.reader gives those of a CSV file: the
    names of all columns first. Raises BadInput."""

    def __init__(self, path: Path | StoredFile, text: str) -> None:
        self._rows: list[tuple[int, dict[str, object]]] = []
        self.line_num = 1
        self.nested: set[str] = set()  # names of columns with lists or objects
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()  # half a character is no text
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path} line {number}: not JSON ({one_line(error)})") from error
            if not isinstance(row, dict):
                raise BadInput(f"{path} line {number}: expected a JSON object per line")
            self._rows.append((number, row))
            self.nested |= {name for name, value in row.items() if isinstance(value, list | dict)}

    def __iter__(self) -> Iterator[list[str]]:
        names = list(dict.fromkeys(name for _, row in self._rows for name in row))
        if names:
            yield names
        for number, row in self._rows:
            self.line_num = number
            yield [_json_text(row.get(name)) for name in names]


def _json_text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def column_names(head: str, suffix: str) -> list[str]:
    """The names of the columns in the first line of a table; none if it is not one."""
    if suffix.lower() != ".jsonl":
        return [name.strip() for name in head.split(",")]
    try:
        row = json.loads(head)
    except (ValueError, RecursionError):
        return []
    return list(row) if isinstance(row, dict) else []


class CsvTable:
    """The rows of a CSV file with a header, or of JSON Lines. Raises BadInput."""

    def __init__(
        self, path: Path | StoredFile, columns: CsvColumns, content: str | None = None
    ) -> None:
        self._path = path
        text = read_text(path) if content is None else content
        is_json = path.suffix.lower() == ".jsonl"
        reader = _JsonLines(path, text) if is_json else csv.reader(io.StringIO(text), strict=True)
        self._reader, self._lines = reader, iter(reader)
        try:
            names = next(self._lines, [])
        except csv.Error as error:
            raise self._not_csv(error) from error
        self._columns = _positions(path, names, columns)
        self._width = len(names)
        used = set(self._columns.values())
        nested = [
            names[n] for n in used if isinstance(reader, _JsonLines) and names[n] in reader.nested
        ]
        if nested:
            raise BadInput(f"{path}: column {nested[0]!r} holds lists or objects; expected text")
        unused = {n: column_of(name) for n, name in enumerate(names) if n not in used}
        self._unused = unused
        read = {column: column_of(names[n]) for column, n in self._columns.items()}
        parts = [", ".join(f"{name!r} as {column}" for column, name in read.items())]
        if "label" not in read:
            parts.append(
                "none as label (--label-column NAME names one), so all images are unlabelled, in "
                "split test"
            )
        if unused:
            parts.append(f"not used: {first_few([*map(repr, unused.values())])}")
        guessed = [c for c in read if read[c] != c and not columns.get(f"{c}_column")]
        has_surprise = guessed or len(parts) > 1
        self.notes = [f"columns read: {'; '.join(parts)}"] if has_surprise else []

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(line number, stripped values by column) of each row; absent columns have no value."""
        reader = self._reader
        # Columns that hold only names of splits so far, and those that hold at least one.
        unread = set() if "split" in self._columns else set(self._unused)
        named: set[int] = set()
        try:
            for raw in self._lines:
                if not raw:
                    continue
                if len(raw) != self._width:
                    raise BadInput(
                        f"{self._path} line {reader.line_num}: {len(raw)} values, "
                        f"the header has {self._width}"
                    )
                values = [value.strip() for value in raw]
                unread = {n for n in unread if not values[n] or split_of(values[n])}
                named |= {n for n in unread if values[n]}
                yield reader.line_num, {c: values[n] for c, n in self._columns.items()}
        except csv.Error as error:
            raise self._not_csv(error) from error
        if unread & named:
            name = min(self._unused[n] for n in unread & named)
            raise _not_used(self._path, name, "split", "holds names of splits")

    def _not_csv(self, error: csv.Error) -> BadInput:
        return BadInput(f"{self._path} line {self._reader.line_num}: not valid CSV ({error})")


def _positions(
    path: Path | StoredFile, names: Sequence[str], columns: CsvColumns
) -> dict[str, int]:
    """The position of each of COLUMNS that the file has. Raises BadInput if paths have none, if
    several columns fit, or if another column may stand for an absent one."""
    if len(names) == 1 and len(re.split("[;\t|]", names[0])) > 1:
        raise BadInput(
            f"{path} line 1: its columns are not separated by commas; write it with commas"
        )
    if any(map(is_picture, names)):
        raise BadInput(
            f"{path} line 1: is about an image; the first line has the names of the columns, "
            "such as path,label"
        )
    header = [column_of(name) for name in names]
    positions = _chosen(path, names, columns)
    for column in COLUMNS:
        if column in positions:
            continue
        rest = [n for n in range(len(header)) if n not in positions.values()]
        same = [n for n in rest if header[n] == column]
        if len(same) > 1:
            raise BadInput(f"{path} line 1: {len(same)} columns are called {column!r}; keep one")
        usual = same or [n for n in rest if is_usual_column(header[n], column)]
        if len(usual) > 1:
            column_names = " and ".join(repr(header[n]) for n in usual)
            raise BadInput(
                f"{path} line 1: columns {column_names} may be the {column}; choose with "
                f"--{column}-column NAME"
            )
        similar = [header[n] for n in rest if looks_like_column(header[n], column)]
        if usual:
            positions[column] = usual[0]
        elif column == "path" or (column == "label" and similar):
            near = nearest(column, similar or [header[n] for n in rest])
            raise BadInput(
                f"{path} line 1: expected one column {column!r}; {near}; or name it with "
                f"--{column}-column NAME"
            )
        elif column == "split" and similar:
            raise _not_used(path, similar[0], column, f"looks like {column!r}")
    return positions


def _chosen(path: Path | StoredFile, names: Sequence[str], columns: CsvColumns) -> dict[str, int]:
    """The positions of the columns that options name. Raises BadInput, UnknownName."""
    positions: dict[str, int] = {}
    for option, wanted in cast(Mapping[str, str | None], columns).items():
        if wanted is None:
            continue
        flag = f"--{option.replace('_', '-')}"
        same = [n for n, name in enumerate(names) if wanted in (name, column_of(name))]
        if not same:
            raise UnknownName("column", wanted, [*map(column_of, names)], where=f"{path}, {flag}")
        if len(same) > 1:
            raise BadInput(f"{path} line 1: {len(same)} columns are called {wanted!r}; keep one")
        if same[0] in positions.values():
            raise BadInput(f"{path}: {flag} {wanted}: another option names the same column")
        positions[option.removesuffix("_column")] = same[0]
    return positions


def _not_used(path: Path | StoredFile, name: str, column: str, why: str) -> BadInput:
    return BadInput(
        f"{path} line 1: column {name!r} {why} and would not be used; pass --{column}-column "
        f"{name!r}, rename it {column!r}, or remove it"
    )
