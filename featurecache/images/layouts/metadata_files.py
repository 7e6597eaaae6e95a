"""Folders with a `metadata.csv` or `metadata.jsonl`, as Hugging Face's imagefolder has them: the
column `file_name` is relative to the file's folder, and a column of labels says the classes.

ROOT/metadata.csv                        splits by a column, or by split folders in the names
ROOT/{train,val,test}/metadata.csv       a file in each split folder; test may have none
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.images.layouts.contents import Entry, first_few
from featurecache.images.layouts.csv_files import csv_file, header_of
from featurecache.images.layouts.folders import entries, unlabelled
from featurecache.images.layouts.listing import Tree
from featurecache.images.names import column_of, is_usual_column, split_folders_of

_NAMES = ("metadata.csv", "metadata.jsonl")
_PATH = "file_name"


def has_metadata(tree: Tree, root: str) -> bool:
    """Whether a folder, or one of its split folders, has a metadata file with labels."""
    folders = [root, *(f"{root}/{name}" for name in split_folders_of(tree.top(root).folders))]
    return any(_metadata_in(folder) for folder in folders)


def _metadata_in(folder: str) -> Path | None:
    """The metadata file with labels of a folder. Raises BadInput if there are two."""
    files = [path for name in _NAMES if (path := Path(folder, name)).is_file()]
    files = [path for path in files if _has_columns(header_of(path))]
    if len(files) > 1:
        raise BadInput(f"{folder}: holds {' and '.join(_NAMES)}; keep one of them")
    return files[0] if files else None


def _has_columns(header: list[str]) -> bool:
    has_labels = any(column_of(c) == "label" or is_usual_column(c, "label") for c in header)
    return _PATH in header and has_labels


def metadata_contents(tree: Tree, root: str) -> tuple[list[Entry], list[str]]:
    """The images that metadata files list, and notes. Raises BadInput."""
    split_by_folder = split_folders_of(tree.top(root).folders)
    file = _metadata_in(root)
    listed: list[Entry] = []
    notes: list[str] = []
    if file is not None:
        _add(file, "", split_by_folder, listed, notes)
    else:
        for folder, split in split_by_folder.items():
            file = _metadata_in(f"{root}/{folder}")
            if file is not None:
                _add(file, f"{folder}/", {"": split}, listed, notes)
            elif split == "test":
                listed += entries(root, split, unlabelled(tree, f"{root}/{folder}"))
            else:
                raise BadInput(
                    f"{root}/{folder}: holds no metadata file with the columns {_PATH} and label, "
                    "but another split folder does; add one"
                )
    known = {os.path.normpath(Path(str(entry.source)).absolute()) for entry in listed}
    unlisted = [p for p in tree.pictures(root) if os.path.normpath(Path(p).absolute()) not in known]
    if unlisted:
        names = first_few([path.removeprefix(f"{root}/") for path in sorted(unlisted)])
        notes.append(f"images that no metadata file lists, and are not used: {names}")
    return listed, notes


def _add(
    file: Path,
    prefix: str,
    split_by_folder: Mapping[str, str],
    listed: list[Entry],
    notes: list[str],
) -> None:
    contents = csv_file(file, {"path_column": _PATH}, split_by_folder=split_by_folder)
    listed += [entry._replace(id=prefix + entry.id) for entry in contents.entries]
    notes += [f"{prefix}{file.name}: {note}" for note in contents.notes]
