"""What the killed leave in a cache: harmless to every reader, and deleted only under a lock.

Temporary files, data files whose record was never linked, lock files, half-deleted spaces. Files
that featurecache did not name are nobody's business, and are left alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from featurecache.errors import BadInput, CannotRead, DamagedCache
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.storage import durable, locks, object_store

_TEMPORARY = re.compile(r"\..+\.tmp")
_SPACE = re.compile(r"[0-9a-f]{64}")
_DATA = re.compile(r"([0-9a-f]{64})-[0-9a-f]{16}\.h5")


def leftovers(cache: Cache) -> list[Path]:
    """Files (and half-deleted spaces) that no record names, of processes alive or dead."""
    return sorted(path for folder in _folders(cache) for path in _in(cache, folder))


def abandoned(cache: Cache) -> list[Path]:
    """The leftovers of processes that are gone: those that `sweep` would delete."""
    return _of_the_dead(cache, _is_abandoned)


def sweep(cache: Cache) -> list[Path]:
    """Delete the leftovers of processes that are gone; gives what is deleted. On file systems
    without locks nothing is."""
    deleted = _of_the_dead(cache, _remove)
    sweep_locks(cache)
    return deleted


def _of_the_dead(cache: Cache, fits: Callable[[Path], bool]) -> list[Path]:
    """The leftovers that fit in folders that no live process is adding to. A commit holds its
    folder until its record is there, so they are listed, and used, while the folder is held: what
    was a leftover before may be named by a record by then."""
    found = []
    for folder in _folders(cache):
        with locks.hold_exclusive(folder) as undisturbed:
            found += [path for path in (_in(cache, folder) if undisturbed else []) if fits(path)]
    return sorted(found)


def sweep_locks(cache: Cache) -> None:
    """Delete the lock files that killed processes left: they are empty, and not listed."""
    for name in _names(cache.root / "locks"):
        claim = locks.claim(cache.root / "locks" / name) if "-" in name else None
        if claim is not None:
            claim.release()


def of_run(run: Path) -> list[Path]:
    """Temporary files in the folder of a run, of processes alive or dead."""
    folders = [run, run / "trained", *run.glob("sweep/*"), *run.glob("training-*")]
    real = [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]
    return [path for folder in real for path in durable.temporaries(folder)]


def _is_abandoned(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return path.is_symlink() or durable.is_abandoned(path)
    with locks.hold_exclusive(path) as undisturbed:
        return undisturbed


def _remove(path: Path) -> bool:
    """False where its process is still alive."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return True
    if not path.is_dir():
        return durable.remove_abandoned(path)
    with locks.hold_exclusive(path) as undisturbed:
        if undisturbed:
            shutil.rmtree(path)
    return undisturbed


def _folders(cache: Cache) -> Iterator[Path]:
    yield cache.root
    spaces = cache.root / "spaces"
    folders = [spaces / name for name in _names(spaces) if _SPACE.fullmatch(name)]
    for path in [cache.root / "runs", spaces, *folders]:
        if object_store.is_remote(path) or (path.is_dir() and not path.is_symlink()):
            yield path


def _in(cache: Cache, folder: Path) -> list[Path]:
    names = _names(folder)
    found = [folder / name for name in names if _TEMPORARY.fullmatch(name)]
    if folder.parent == cache.root / "spaces":
        space = Space(folder, {}, "", None)
        data = [match for match in map(_DATA.fullmatch, names) if match is not None]
        found += [folder / name[0] for name in data if not _may_name(space, name[1], name[0])]
    return found


def _names(folder: Path) -> list[str]:
    """The names in a folder; none of one that can't be listed, of which nothing is deleted."""
    try:
        return object_store.names(folder)
    except OSError:
        return []


def _may_name(space: Space, shard: str, file: str) -> bool:
    """Does the record of this shard name this file? One that can't be read may."""
    record = space.path / f"{shard}.json"
    try:
        return object_store.has(record, listed=True) and space.read_record(record).file == file
    except (CannotRead, DamagedCache, BadInput, OSError):
        return True
