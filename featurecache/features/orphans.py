"""Leftovers of killed processes in a cache: harmless to all readers, and deleted only under a lock.

They are temporary files, data files whose record was never linked, lock files and half-deleted
spaces. Files with other names are never deleted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from featurecache.errors import BadInput, CannotRead, DamagedCache
from featurecache.features.space_files import DATA_FILE
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.storage import durable, locks
from featurecache.storage.store import Store

_TEMPORARY = re.compile(r"\..+\.tmp")
_SPACE = re.compile(r"spaces/([0-9a-f]{64})")


def leftovers(cache: Cache) -> list[str]:
    """The paths of files and half-deleted spaces that no record names, of live processes and dead
    ones."""
    names = (name for folder in _folders(cache.store) for name in _in(cache.store, folder))
    return sorted(map(cache.store.locate, names))


def abandoned(cache: Cache) -> list[Path]:
    """The leftovers of dead processes: those that `sweep` would delete."""
    return _of_the_dead(cache.store, _is_abandoned)


def sweep(cache: Cache) -> list[Path]:
    """Delete the leftovers of dead processes, and return their paths. Without locks nothing is
    deleted."""
    deleted = _of_the_dead(cache.store, _remove)
    sweep_locks(cache)
    return deleted


def _of_the_dead(store: Store, is_match: Callable[[Path], bool]) -> list[Path]:
    """The leftovers that match, in folders that no live process is adding to. A commit holds its
    folder until its record is linked. So leftovers are listed and deleted while the folder is
    locked: a file that was a leftover before may by then have a record."""
    root = store.local_folder
    if root is None:
        return []
    paths = []
    for folder in _folders(store):
        with store.lock_exclusive(folder) as undisturbed:
            names = _in(store, folder) if undisturbed else []
            paths += [root / name for name in names if is_match(root / name)]
    return sorted(paths)


def sweep_locks(cache: Cache) -> None:
    """Delete the lock files that killed processes left. They are empty, and never listed as
    leftovers."""
    for name in _names(cache.store, "locks"):
        claim = cache.store.claim(f"locks/{name}") if "-" in name else None
        if claim is not None:
            claim.release()


def of_run(run: Path) -> list[Path]:
    """Temporary files in the folder of a run, of live processes and dead ones."""
    folders = [run, run / "trained", *run.glob("sweep/*"), *run.glob("training-*")]
    real = [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]
    return [path for folder in real for path in durable.temporaries(folder)]


def _is_abandoned(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return path.is_symlink() or durable.is_abandoned(path)
    with locks.hold_exclusive(path) as undisturbed:
        return undisturbed


def _remove(path: Path) -> bool:
    """Remove a leftover, and return whether it was removed; False if its process is alive."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return True
    if not path.is_dir():
        return durable.remove_abandoned(path)
    with locks.hold_exclusive(path) as undisturbed:
        if undisturbed:
            shutil.rmtree(path)
    return undisturbed


def _folders(store: Store) -> Iterator[str]:
    """The root and the folders in which processes write, without links."""
    yield ""
    yield from (name for name in ("runs", "spaces") if f"{name}/" in _listing(store, ""))
    folders = (f"spaces/{name[:-1]}" for name in _listing(store, "spaces") if name.endswith("/"))
    yield from filter(_SPACE.fullmatch, folders)


def _in(store: Store, folder: str) -> list[str]:
    """The names of leftovers in a folder, from the root of the store."""
    names = _names(store, folder)
    matches = [name for name in names if _TEMPORARY.fullmatch(name)]
    space = _SPACE.fullmatch(folder)
    if space:
        data = [match for match in map(DATA_FILE.fullmatch, names) if match is not None]
        matches += [m[0] for m in data if not _may_name(Space(store, space[1]), m[1], m[0])]
    return [f"{folder}/{name}" if folder else name for name in matches]


def _names(store: Store, folder: str) -> list[str]:
    return [name.rstrip("/") for name in _listing(store, folder)]


def _listing(store: Store, folder: str) -> list[str]:
    """The names in a folder. Empty if it can't be listed; then nothing in it is deleted."""
    try:
        return store.list_folder(folder)
    except OSError:
        return []


def _may_name(space: Space, shard: str, file: str) -> bool:
    """Whether the record of this shard may name this file; True if the record can't be read."""
    record = space.file(f"{shard}.json")
    try:
        return record.exists(listed=True) and space.read_record(record.name).file == file
    except (CannotRead, DamagedCache, BadInput, OSError):
        return True
