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

import numpy as np

from featurecache.errors import BadInput, CannotRead, DamagedCache, FeatureCacheError
from featurecache.features import shards
from featurecache.features.cache_files import damaged
from featurecache.features.space_files import MAX_RECORD, Record
from featurecache.features.spaces import Space
from featurecache.items import Lookup
from featurecache.json_files import read_file
from featurecache.storage.store import Store, names_in
from featurecache.storage.stored_file import StoredFile

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


def folder(space: Space) -> StoredFile:
    return space.file(FOLDER)


def set_aside(space: Space, name: str, names: Iterable[str]) -> None:
    """Move a damaged record and its data out of every reader's sight, to be looked at. `names` are
    those in the space's folder. Raises CannotRead, FeatureCacheError where the disk refuses."""
    if name == "space.json":
        return move_aside(space.store, space.folder, name, name)
    record = _RECORD.fullmatch(name)
    if record is not None and not name.startswith(_UNKNOWN):
        items = _read(space, name, record[1]).items
        for data in names:
            found = _DATA.fullmatch(data)
            if found is not None and found[1] == record[1]:
                move_aside(space.store, space.folder, data, data)
        if items is None:
            return move_aside(space.store, space.folder, name, _UNKNOWN + name)
    move_aside(space.store, space.folder, name, name)


def pending(space: Space, held: Sequence[Record]) -> list[SetAside]:
    """The shards in quarantine with rows that none of the records `held` has; of a shard whose rows
    are not known, the record itself must be there again. Raises CannotRead."""
    names = [] if space.store.is_link(folder(space).key) else _names(folder(space))
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
        shard = _read(space, f"{FOLDER}/{match[0]}", match[1])
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


def _read(space: Space, name: str, shard: str) -> SetAside:
    """What a record that is damaged, or whose data is, says of its shard."""
    file = space.file(name)
    with contextlib.suppress(DamagedCache, BadInput):  # BadInput: of a newer version
        record = space.read_record(name)
        return SetAside(file.name, record.item_list, record.provenance.get("engine", ""))
    return SetAside(file.name, _claimed_items(file, shard) or _items_of_data(space, shard))


def _claimed_items(file: StoredFile, shard: str) -> list[bytes] | None:
    """The items that a damaged record still lists, if they are the ones its name is the hash of."""
    # A pipe, a device, a link list nothing.
    data = b""
    with contextlib.suppress(DamagedCache):
        data = read_file(file, MAX_RECORD, damaged)
    found = re.search(rb'"items": "((?:[0-9a-f]{64})+)"', data)
    return _checked(bytes.fromhex(found[1].decode()) if found else b"", shard)


def _items_of_data(space: Space, shard: str) -> list[bytes] | None:
    """The items in a data file of the shard that has the bytes that its name is the hash of."""
    for parent in (space.file("").parent, folder(space)):
        for name in _names(parent):
            match = _DATA.fullmatch(name)
            if match is None or match[1] != shard:
                continue
            with contextlib.suppress(DamagedCache):
                data = read_file(parent / name, _MAX_DATA, damaged)
                items = _checked(shards.items_in(data, match[2]), shard)
                if items is not None:
                    return items
    return None


def _names(parent: StoredFile) -> list[str]:
    try:
        return names_in(parent.store, parent.key)
    except OSError as error:
        raise CannotRead(parent, error) from error


def _checked(packed: bytes, shard: str) -> list[bytes] | None:
    items = [packed[i : i + 32] for i in range(0, len(packed), 32)]
    return items if items and shards.shard_name(items) == shard else None


def move_aside(store: Store, folder: str, name: str, new_name: str) -> None:
    """Move a file of a folder to its quarantine. Raises FeatureCacheError where the disk
    refuses."""
    file, target = StoredFile(store, f"{folder}/{name}"), StoredFile(store, f"{folder}/{FOLDER}")
    try:
        if store.is_link(target.key):
            raise FeatureCacheError(f"{target} is a link; remove it, then repair again")
        with contextlib.suppress(FileNotFoundError):  # another repair was first
            store.move(file.key, f"{target.key}/{new_name}")
    except OSError as error:
        raise FeatureCacheError(
            f"{file}: can't be moved to {target} ({error.strerror}); it stays where it is: repair "
            "the disk, then run verify --repair again"
        ) from error
