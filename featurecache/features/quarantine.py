"""Quarantine: damaged files of a space, and which of their rows are not recomputed yet.

The data of a shard is moved first, then its record, which moves in one step. Until then `verify`
reports the record; afterwards the record in quarantine lists the rows to recompute, until committed
shards hold them. So a repair that is interrupted at any point continues there, and needs no other
state (docs/format.md).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featurecache.errors import BadInput, CannotRead, DamagedCache, FeatureCacheError
from featurecache.features import shards
from featurecache.features.cache_files import damaged
from featurecache.features.space_files import DATA_FILE, MAX_RECORD, Record
from featurecache.features.spaces import Space
from featurecache.items import Lookup, unpacked
from featurecache.json_files import read_file
from featurecache.storage.store import Store, names_in
from featurecache.storage.stored_file import StoredFile

FOLDER = "quarantine"
_UNKNOWN = "unknown-"  # begins the name of a record whose items are unknown
_RECORD = re.compile(rf"(?:{_UNKNOWN})?([0-9a-f]{{64}})\.json")
_MAX_DATA = 1 << 40  # bytes


@dataclass(frozen=True, kw_only=True)
class QuarantinedShard:
    """A shard in quarantine: the name of its record there, its items (None if they are unknown),
    and the engine that made it, if its record can be read."""

    file: str
    items: list[bytes] | None
    engine: str = ""

    @property
    def rows(self) -> int | None:
        return None if self.items is None else len(self.items)


def folder(space: Space) -> StoredFile:
    """The quarantine folder of a space."""
    return space.file(FOLDER)


def quarantine_file(space: Space, name: str, names: Iterable[str]) -> None:
    """Move a damaged record and its data, or a damaged description, to quarantine. `names` are
    those in the space's folder. Raises CannotRead, FeatureCacheError where the disk refuses."""
    new_name = name
    record = _RECORD.fullmatch(name)
    if record is not None and not name.startswith(_UNKNOWN):
        if _read(space, name, record[1]).items is None:
            new_name = _UNKNOWN + name
        for match in filter(None, map(DATA_FILE.fullmatch, names)):
            if match[1] == record[1]:
                move_file(space.store, space.folder, match[0], match[0])
    move_file(space.store, space.folder, name, new_name)


def pending(space: Space, committed: Sequence[Record]) -> list[QuarantinedShard]:
    """The shards in quarantine with rows that no `committed` record holds. A shard whose rows are
    unknown is pending until its own record is committed again. Raises CannotRead."""
    names = [] if space.store.is_link(folder(space).key) else _names(folder(space))
    matches = [match for match in map(_RECORD.fullmatch, names) if match is not None]
    if not matches:
        return []
    shard_names = {record.shard for record in committed}
    packed = [np.frombuffer(record.items, np.uint8) for record in committed]
    rows = Lookup(np.concatenate(packed or [np.empty(0, np.uint8)]).reshape(-1, 32))
    pending_shards = []
    for match in matches:
        if match[1] in shard_names:
            continue
        shard = _read(space, f"{FOLDER}/{match[0]}", match[1])
        if shard.items is None:
            # Older versions did not mark such records, and their rows may be in other shards.
            pending_shards += [shard] if match[0].startswith(_UNKNOWN) else []
            continue
        items = list(dict.fromkeys(shard.items))
        absent = rows.positions(np.frombuffer(b"".join(items), np.uint8).reshape(-1, 32)) < 0
        if absent.any():
            missing = list(itertools.compress(items, absent.tolist()))
            pending_shards.append(replace(shard, items=missing))
    return pending_shards


def _read(space: Space, name: str, shard: str) -> QuarantinedShard:
    """The shard of a record that is damaged, or whose data is damaged."""
    file = space.file(name)
    with contextlib.suppress(DamagedCache, BadInput):  # BadInput: of a newer version
        record = space.read_record(name)
        engine = record.provenance.get("engine", "")
        return QuarantinedShard(file=file.name, items=record.item_list, engine=engine)
    items = _listed_items(file, shard) or _items_of_data(space, shard)
    return QuarantinedShard(file=file.name, items=items)


def _listed_items(file: StoredFile, shard: str) -> list[bytes] | None:
    """The items that a damaged record still lists, if their hash is the name of the shard."""
    data = b""
    with contextlib.suppress(DamagedCache):  # a pipe, a device or a link lists nothing
        data = read_file(file, MAX_RECORD, damaged)
    match = re.search(rb'"items": "((?:[0-9a-f]{64})+)"', data)
    return _checked(bytes.fromhex(match[1].decode()) if match else b"", shard)


def _items_of_data(space: Space, shard: str) -> list[bytes] | None:
    """The items in a data file of the shard whose bytes match the hash in its name."""
    for parent in (space.file("").parent, folder(space)):
        for name in _names(parent):
            match = DATA_FILE.fullmatch(name)
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
    items = unpacked(packed)
    return items if items and shards.shard_name(items) == shard else None


def move_file(store: Store, folder: str, name: str, new_name: str) -> None:
    """Move a file of a folder to the folder's quarantine. Raises FeatureCacheError where the disk
    refuses."""
    file, target = StoredFile(store, f"{folder}/{name}"), StoredFile(store, f"{folder}/{FOLDER}")
    try:
        if store.is_link(target.key):
            raise FeatureCacheError(f"{target} is a link; remove it, then repair again")
        with contextlib.suppress(FileNotFoundError):  # another repair was first
            store.move(file.key, f"{target.key}/{new_name}")
    except OSError as error:
        raise FeatureCacheError(
            f"{file}: can't be moved to {target} ({error.strerror}), and was left in its folder; "
            "repair the disk, then run verify --repair again"
        ) from error
