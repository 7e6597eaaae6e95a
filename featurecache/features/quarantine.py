"""Quarantine: what was set aside of a space, and which of its rows are not computed again yet.

A shard is set aside data first, then its record, which moves in one step. While the record is in
its old place `verify` reports it; from then on the record in quarantine says which rows are to be
computed again, until committed shards hold them. So a repair that was interrupted anywhere goes on
where it was, and nothing else has to be remembered (docs/format.md).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput, CannotRead, DamagedCache, FeatureCacheError
from featurecache.features import shards
from featurecache.features.space_files import MAX_RECORD, Record
from featurecache.features.spaces import Space, damaged
from featurecache.items import Lookup
from featurecache.json_files import read_file
from featurecache.storage import durable, object_store

FOLDER = "quarantine"
_UNKNOWN = "unknown-"  # begins the name of a record whose items can't be told
_RECORD = re.compile(rf"(?:{_UNKNOWN})?([0-9a-f]{{64}})\.json")
_DATA = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})\.h5")
_MAX_DATA = 1 << 40  # bytes


@dataclass(frozen=True)
class SetAside:
    """A shard in quarantine: the name of its record there, what it held (None if that can't be
    told), and the engine that made it, where its record can be read."""

    file: str
    items: list[bytes] | None
    engine: str = ""

    @property
    def rows(self) -> int | None:
        return None if self.items is None else len(self.items)


def folder(space: Space) -> Path:
    return space.path / FOLDER


def set_aside(space: Space, name: str, names: Iterable[str]) -> None:
    """Move a damaged record and its data out of every reader's sight, to be looked at. `names` are
    those in the space's folder. Raises CannotRead, FeatureCacheError where the disk refuses."""
    if name == "space.json":
        return _move(space, name, name)
    record = _RECORD.fullmatch(name)
    if record is not None and not name.startswith(_UNKNOWN):
        items = _read(space, space.path / name, record[1]).items
        for data in names:
            found = _DATA.fullmatch(data)
            if found is not None and found[1] == record[1]:
                _move(space, data, data)
        if items is None:
            return _move(space, name, _UNKNOWN + name)
    _move(space, name, name)


def pending(space: Space, held: Sequence[Record]) -> list[SetAside]:
    """The shards in quarantine with rows that none of the records `held` has; of a shard whose rows
    are not known, the record itself must be there again. Raises CannotRead."""
    names = [] if object_store.is_link(folder(space)) else _names(folder(space))
    here = [match for match in map(_RECORD.fullmatch, names) if match is not None]
    if not here:
        return []
    committed = {record.shard for record in held}
    packed = [np.frombuffer(record.items, np.uint8) for record in held]
    rows = Lookup(np.concatenate(packed or [np.empty(0, np.uint8)]).reshape(-1, 32))
    found = []
    for match in here:
        if match[1] in committed:
            continue
        shard = _read(space, folder(space) / match[0], match[1])
        if shard.items is None:
            # Before there were such names nobody noted it, and its rows may be in other shards.
            found += [shard] if match[0].startswith(_UNKNOWN) else []
            continue
        items = list(dict.fromkeys(shard.items))
        absent = rows.positions(np.frombuffer(b"".join(items), np.uint8).reshape(-1, 32)) < 0
        if absent.any():
            missing = list(itertools.compress(items, absent.tolist()))
            found.append(SetAside(shard.file, missing, shard.engine))
    return found


def _read(space: Space, path: Path, shard: str) -> SetAside:
    """What a record that is damaged, or whose data is, says of its shard."""
    with contextlib.suppress(DamagedCache, BadInput):  # BadInput: of a newer version
        record = space.read_record(path)
        return SetAside(path.name, record.item_list, record.provenance.get("engine", ""))
    return SetAside(path.name, _claimed_items(path, shard) or _items_of_data(space, shard))


def _claimed_items(path: Path, shard: str) -> list[bytes] | None:
    """The items that a damaged record still lists, if they are the ones its name is the hash of."""
    # A pipe, a device, a link list nothing.
    data = b""
    with contextlib.suppress(DamagedCache):
        data = read_file(path, MAX_RECORD, damaged, follow=False)
    found = re.search(rb'"items": "((?:[0-9a-f]{64})+)"', data)
    return _checked(bytes.fromhex(found[1].decode()) if found else b"", shard)


def _items_of_data(space: Space, shard: str) -> list[bytes] | None:
    """The items in a data file of the shard that has the bytes that its name is the hash of."""
    for place in (space.path, folder(space)):
        for name in _names(place):
            match = _DATA.fullmatch(name)
            if match is None or match[1] != shard:
                continue
            with contextlib.suppress(DamagedCache):
                data = read_file(place / name, _MAX_DATA, damaged, follow=False)
                items = _checked(shards.items_in(data, match[2]), shard)
                if items is not None:
                    return items
    return None


def _names(path: Path) -> list[str]:
    try:
        return object_store.names(path)
    except OSError as error:
        raise CannotRead(path, error) from error


def _checked(packed: bytes, shard: str) -> list[bytes] | None:
    items = [packed[i : i + 32] for i in range(0, len(packed), 32)]
    return items if items and shards.shard_name(items) == shard else None


def _move(space: Space, name: str, new_name: str) -> None:
    aside = folder(space)
    try:
        if object_store.is_remote(space.path):
            with contextlib.suppress(FileNotFoundError):
                object_store.move(space.path / name, aside / new_name)
            return
        if aside.is_symlink():
            raise FeatureCacheError(f"{aside} is a link; remove it, then repair again")
        aside.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another repair was first
            (space.path / name).replace(aside / new_name)
        durable.sync_folder(aside)
        durable.sync_folder(space.path)
    except OSError as error:
        raise FeatureCacheError(
            f"{space.path / name}: can't be moved to {aside} ({error.strerror}); it stays where "
            "it is: mend that, then repair again"
        ) from error
