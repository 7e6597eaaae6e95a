"""The result of a layout: the images of a dataset as they are listed, before labels are
numbered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from featurecache.errors import BadInput
from featurecache.images.samples import MAX_FILE, Member
from featurecache.storage.stored_file import StoredFile, open_file

_MAX_SHOWN = 5  # names of a long list in an error message


class Entry(NamedTuple):
    """An image: its split, class name (None without a label), the source of its bytes, its id, its
    group, and the folder of the dataset of generated images that it is of."""

    split: str
    label: str | None
    source: str | Member | bytes
    id: str
    group: str = ""
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The images at `root`. `words` are readable names of classes, perhaps also of absent ones;
    `notes` are sentences about what looks like a part of the dataset and is not used."""

    root: str
    layout: str
    entries: Sequence[Entry]
    words: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def read_text(path: Path | StoredFile) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises BadInput."""
    try:
        with open_file(path, MAX_FILE) as (file, size):
            return file.read(size).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as a UTF-8 text file ({error})") from error


def first_few(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    text = ", ".join(names[:_MAX_SHOWN])
    return text + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")
