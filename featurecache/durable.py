"""Bytes put on a disk whole or not at all, whatever is killed when (DESIGN law 4).

A temporary file in the same folder, written, fsynced, given its name in one step, then the folder
fsynced. A failed fsync is never retried: the kernel may have dropped the pages; the file is
discarded and the OSError is the caller's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from featurecache import places


def link_new(path: Path, data: bytes) -> bool:
    """Give `data` this name unless it is taken: of several writers at once one wins (True)."""
    if places.is_remote(path):
        return places.put_new(path, data)
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
    if places.is_remote(path):
        return places.put(path, data)
    with _temporary(path, data) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    # Elsewhere a folder can't be opened, and the rename must do.
    if os.name != "posix" or places.is_remote(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name[:16]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno is not None:
                error.filename = str(path)  # write and fsync do not say which file was refused
            raise
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
