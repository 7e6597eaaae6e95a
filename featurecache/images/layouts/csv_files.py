"""CSV files: path,label[,split], paths relative to the file's folder."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from featurecache import places
from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.images.layouts.contents import Contents, Entry, first_few, read_text
from featurecache.images.names import split_of
from featurecache.images.samples import SPLITS


def csv_file(path: Path) -> Contents:
    """The images that a CSV file lists, in its order."""
    remote = places.is_remote(path)
    folder = str(path.parent) if remote else os.path.normpath(path.parent.absolute())
    seen: dict[str, tuple[str | None, str, int]] = {}  # path -> class name, split, line
    found: list[Entry] = []
    missing: list[str] = []
    for line, row in _rows(path):
        given, label = row["path"], row["label"] or None
        split = split_of(row.get("split", "") or "train")
        if not given:
            raise BadInput(f"{path} line {line}: the path is empty")
        if split is None:
            raise UnknownName("split", row["split"], SPLITS, where=f"{path} line {line}")
        if label is None and split != "test":
            raise BadInput(f"{path} line {line}: no label; only split test may lack one")
        elsewhere = remote or "://" in given
        if elsewhere:
            file = given if "://" in given else f"{folder.rstrip('/')}/{given}"
        else:
            file = os.path.normpath(os.path.join(folder, given))  # noqa: PTH118  one spelling
        if file in seen:
            if seen[file][:2] == (label, split):
                continue
            what = "labels" if seen[file][0] != label else "splits"
            raise BadInput(
                f"{path} lines {seen[file][2]} and {line}: {given} has two {what}; keep one line"
            )
        seen[file] = (label, split, line)
        inside = not elsewhere and file.startswith(f"{folder}{os.sep}")
        name = Path(file).relative_to(folder).as_posix() if inside else given
        found.append(Entry(split, label, file, name if elsewhere else Path(name).as_posix()))
        if not elsewhere and not os.path.lexists(file):  # else reading it says so
            missing.append(f"{given} (line {line})")
    if missing:
        raise BadInput(f"{path}: {len(missing)} files are not there: {first_few(missing)}")
    if not found:
        raise BadInput(f"{path}: holds no rows; expected a line of path,label[,split] per image")
    root = str(path) if remote else path.as_posix()
    return Contents(root=root, layout="csv", entries=found)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row with its values stripped) of each row of a CSV file with a header."""
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in ("path", "label"):
            if header.count(column) != 1:
                raise BadInput(
                    f"{path} line 1: expected one column {column!r}; {nearest(column, header)}"
                )
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise BadInput(
                    f"{path} line {reader.line_num}: {len(values)} values, "
                    f"the header has {len(header)}"
                )
            yield (
                reader.line_num,
                dict(zip(header, (value.strip() for value in values), strict=True)),
            )
    except csv.Error as error:
        raise BadInput(f"{path} line {reader.line_num}: not valid CSV ({error})") from error
