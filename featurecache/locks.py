"""Locks between processes. They save work and guard deleting; no row depends on them (law 4).

The kernel drops a lock when its holder ends, however it ends, so nothing waits for the dead. Where
a file system or a platform has no locks, every claim is granted: work may be done twice, and
`alone` never is, so nothing is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from featurecache import places

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


class Claim:
    """A piece of work that this process is at, until `release`."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor  # None where there are no locks

    def release(self) -> None:
        """Let others have it. The second call does nothing."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)  # while it is held: nobody else owns the name
            os.close(self._descriptor)
            self._descriptor = None


def claim(path: Path) -> Claim | None:
    """Claim the work that the lock file `path` stands for; None while another process has it."""
    if places.is_remote(path):
        return Claim(path, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(descriptor, exclusive=True, wait=False):
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return Claim(path, descriptor)
        os.close(descriptor)  # the last holder removed this name as we opened it: once more


@contextlib.contextmanager
def together(folder: Path) -> Iterator[None]:
    """Hold a folder together with others who add to it: nobody is `alone` in it meanwhile."""
    if places.is_remote(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, exclusive=False, wait=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Is nobody else at this folder? While it is held, nobody begins to add to it."""
    if places.is_remote(folder):
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, exclusive=True, wait=False, without=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, exclusive: bool, wait: bool, without: bool = True) -> bool:
    """Lock an open file; `without` is the answer where there are no locks."""
    if fcntl is None:
        return without
    how = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return without
        raise
    return True
