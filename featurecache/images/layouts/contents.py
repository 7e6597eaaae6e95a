"""What a layout gives: the images of a dataset as they are listed, before labels are numbered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from featurecache.errors import BadInput
from featurecache.images.samples import MAX_FILE, Member
from featurecache.storage.stored_file import StoredFile, open_file

_MAX_SHOWN = 5  # names of a long list that an error message shows


class Entry(NamedTuple):
    """An image: its split, class name (None where it has no label), where its bytes are, its id."""

    split: str
    label: str | None
    source: str | Member
    id: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What was found at `root`. `words` are readable names of classes, of others too; `notes` say
    what looks like a part of the dataset and is not, or is not used, one sentence each."""

    root: str
    layout: str
    entries: Sequence[Entry]
    words: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def read_text(path: Path | StoredFile) -> str:
    """A UTF-8 text file, a byte order mark left out. Raises BadInput."""
    try:
        with open_file(path, MAX_FILE) as (file, size):
            return file.read(size).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as a UTF-8 text file ({error})") from error


def first_few(names: Sequence[str]) -> str:
    """The first of a list of names, and how many more there are."""
    text = ", ".join(names[:_MAX_SHOWN])
    return text + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")
