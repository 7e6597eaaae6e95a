"""Bytes put on a disk whole or not at all, whatever is killed when (DESIGN law 4).

A temporary file in the same folder, written, fsynced, given its name in one step, then the folder
fsynced. A failed fsync is never retried: the kernel may have dropped the pages; the file is
discarded and the OSError is the caller's.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from featurecache.storage import locks

_TEMPORARY = re.compile(r"\..{1,16}\.\d+\.[0-9a-f]{16}\.tmp", re.DOTALL)


def link_new(path: Path, data: bytes) -> bool:
    """Give `data` this name unless it is taken: of several writers at once one wins (True)."""
    first = True
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            first = False  # and yet the name may not be durable: its giver may have failed to sync
    sync_folder(path.parent)
    return first


def replace(path: Path, data: bytes) -> None:
    """Give `data` this name; readers see the old bytes or the new ones, whole."""
    sweep(path.parent)
    with _temporary(path, data) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name != "posix":  # a folder can't be opened there, and the rename must do
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """A new name in the same folder, for what is not whole yet, or no longer."""
    return path.with_name(f".{path.name[:16]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


def is_temporary(name: str) -> bool:
    """Is this a name that `temporary_name` gave, here or in another process?"""
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, removed in the end unless it has another name by then. It is
    locked meanwhile, so that `sweep` leaves it alone."""
    with contextlib.ExitStack() as held:
        while True:
            temporary = temporary_name(path)
            try:
                descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            except OSError as error:
                error.filename = str(path)
                raise
            if not locks.available():  # and where an open file can't be renamed
                os.close(descriptor)
                break
            locks.hold_open(descriptor)
            if locks.is_name_of(temporary, descriptor):
                held.callback(os.close, descriptor)
                break
            os.close(descriptor)  # a sweep was quicker than the lock
        held.callback(temporary.unlink, missing_ok=True)
        yield temporary


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    with temporary_file(path) as temporary:
        try:
            with temporary.open("r+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno is not None:
                error.filename = str(path)  # write and fsync do not say which file was refused
            raise
        yield temporary


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files in a folder whose owner is gone; gives those that are removed.

    An owner holds a lock on its file, which the kernel drops when it ends, however it ends. Where
    there are no locks nothing is removed.
    """
    return [path for path in temporaries(folder) if remove_abandoned(path)]


def temporaries(folder: Path) -> list[Path]:
    """The files in a folder whose name `temporary_name` gave, of processes alive or dead."""
    with os.scandir(folder) as entries:
        return sorted(
            folder / entry.name
            for entry in entries
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False)
        )


def is_abandoned(path: Path) -> bool:
    """Is the owner of a temporary file gone? False, too, for one of another user."""
    with _abandoned(path) as abandoned:
        return abandoned


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file, if its owner is gone and this user may."""
    with _abandoned(path) as abandoned:
        if abandoned:
            path.unlink(missing_ok=True)
        return abandoned


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # of another user, or removed by another sweep
        yield False
        return
    try:
        yield locks.is_abandoned(descriptor) and locks.is_name_of(path, descriptor)
    finally:
        os.close(descriptor)
