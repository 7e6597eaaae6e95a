"""Atomic, durable writes to local disks, which survive a kill at any point (law 4, "Committed or
absent").

A temporary file in the same folder is written and fsynced, gets its name in one step, and then the
folder is fsynced. A failed fsync is never retried, since the kernel may have dropped the pages: the
file is discarded and OSError is raised.
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
    """Write `data` under this name unless it is taken. True for the one writer that wins."""
    is_first = True
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            is_first = False
    # Even if another writer made the name: its own sync may have failed.
    sync_folder(path.parent)
    return is_first


def replace(path: Path, data: bytes | memoryview) -> None:
    """Write `data` under this name. Readers see all of the old bytes or all of the new ones."""
    sweep(path.parent)
    with _temporary(path, data) as temporary, errors_about(path):
        temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name != "posix":  # elsewhere folders can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """A new name in the same folder, for a file that is incomplete or is being deleted."""
    return path.with_name(f".{path.name[:16]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` made this name, here or in another process."""
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, which is removed at the end unless it was renamed. It is
    locked meanwhile, so that `sweep` does not remove it."""
    with contextlib.ExitStack() as cleanup:
        while True:
            temporary = temporary_name(path)
            with errors_about(path):
                descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if not locks.available():  # such platforms can't rename open files either
                os.close(descriptor)
                break
            locks.hold_open(descriptor)
            if locks.is_name_of(temporary, descriptor):
                cleanup.callback(os.close, descriptor)
                break
            os.close(descriptor)  # a sweep removed it before it was locked
        cleanup.callback(temporary.unlink, missing_ok=True)
        yield temporary


@contextlib.contextmanager
def _temporary(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    with temporary_file(path) as temporary:
        with errors_about(path), temporary.open("r+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary


@contextlib.contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """An OSError in here names `path`. Writing and syncing name no file, a rename the temporary
    one, and Arrow puts its own words around the reason."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            del error.filename2  # None would be shown
            error.strerror = os.strerror(error.errno)
        raise


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files in a folder whose owner is gone, and return their paths.

    An owner holds a lock on its file; the kernel releases it when the process ends in any way.
    Without locks nothing is removed.
    """
    return [path for path in temporaries(folder) if remove_abandoned(path)]


def temporaries(folder: Path) -> list[Path]:
    """The temporary files in a folder, of live processes and dead ones."""
    with os.scandir(folder) as entries:
        return sorted(
            folder / entry.name
            for entry in entries
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False)
        )


def is_abandoned(path: Path) -> bool:
    """Whether the owner of a temporary file is gone. False for files of other users."""
    with _abandoned(path) as abandoned:
        return abandoned


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file if its owner is gone and this user may remove it. Returns whether it
    was removed."""
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
