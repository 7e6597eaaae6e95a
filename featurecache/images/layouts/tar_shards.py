"""Tar shards, as webdataset lays them out: `KEY.jpg` beside `KEY.cls`, a thousand or so in a file.

The class is what `KEY.cls` says: a number or a name. The split is the first word of the shard's
name, or its folder's name (`train-0001.tar`, `val/0001.tar`); else it is train. Images are read
from the shard where they lie, by offset; of a shard in an object store just those bytes.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurecache import places
from featurecache.errors import BadInput, one_line
from featurecache.images.layouts.contents import Contents, Entry, first_few
from featurecache.images.names import PICTURE_SUFFIXES, is_picture, split_of
from featurecache.images.samples import MAX_FILE, Member

_MOST_LABEL = 1024  # bytes of a .cls file
_BRACES = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")


def shard_paths(data: str | Path) -> list[Path]:
    """The tar files that `data` means: one, `NAME-{000..099}.tar`, or those of a folder."""
    text = str(data)
    match = _BRACES.fullmatch(text)
    if match and text.endswith(".tar"):
        before, first, last, after = match.groups()
        numbers = range(int(first), int(last) + 1)
        return [places.place(f"{before}{n:0{len(first)}}{after}") for n in numbers]
    path = places.place(data)
    if text.endswith(".tar"):
        return [path]
    try:
        return [path / name for name in places.names(path) if name.endswith(".tar")]
    except OSError as error:
        raise BadInput(f"{data}: can't be listed ({error.strerror or error})") from error


def tar_shards(data: str, paths: Sequence[Path]) -> Contents:
    """The images of the tar files `paths`, which `data` means. Raises BadInput."""
    if not paths:
        raise BadInput(f"{data}: holds no .tar shards")
    found = [entry for path in paths for entry in _members(path)]
    twice = [name for name, count in Counter(e.id for e in found).items() if count > 1]
    if twice:
        raise BadInput(f"{data}: {len(twice)} names stand twice in shards: {first_few(twice)}")
    return Contents(root=data, layout="tar shards", entries=found)


def _members(shard: Path) -> Iterator[Entry]:
    """The images of one shard."""
    words = (re.split(r"[-_.]", shard.name.lower())[0], shard.parent.name.lower())
    split = next((split for word in words if (split := split_of(word))), "train")
    labels: dict[str, str] = {}
    found: list[tuple[str, str, Member]] = []
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for one in tar:
                key, _, ending = one.name.rpartition(".")
                if not one.isreg() or one.issparse() or one.name.rpartition("/")[2][:1] == ".":
                    continue
                if ending.lower() == "cls" and one.size <= _MOST_LABEL:
                    reader = tar.extractfile(one)
                    labels[key] = reader.read().decode("utf-8").strip() if reader else ""
                elif is_picture(one.name) and one.size <= MAX_FILE:
                    found.append((key, one.name, Member(shard, one.offset_data, one.size)))
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise BadInput(f"{shard}: not a tar shard that can be read ({one_line(error)})") from error
    if not found:
        raise BadInput(f"{shard}: holds no images ({', '.join(PICTURE_SUFFIXES)})")
    for key, name, member in found:
        label = labels.get(key) or None
        if label is None and split != "test":
            raise BadInput(f"{shard}: {name} has no label; expected {key}.cls beside it")
        yield Entry(split, label, member, f"{shard.stem}/{name}")
