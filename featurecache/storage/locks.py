"""Locks between processes. They save work and guard deleting; no row depends on them (law 4).

The kernel drops a lock when its holder ends, however it ends, so nothing waits for the dead. Where
a file system or a platform has no locks, every claim is granted: work may be done twice, and
`alone` never is, so nothing is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_LOOK_AGAIN = 0.2  # seconds
_SIGNATURE = re.compile(r"(\d+) ([\w.-]+)\n")
_MAX_SIGNATURE = 300  # bytes
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


def available() -> bool:
    """Does this platform have locks? A file system may still have none."""
    return fcntl is not None


class Claim:
    """A piece of work that this process is at, until `release`."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor  # None where there are no locks

    @classmethod
    def unlocked(cls) -> Claim:
        """A claim that keeps nobody out: of a store without locks, or one that is only read."""
        return cls(Path(), None)

    def sign(self) -> None:
        """Say in the lock file who has it."""
        if self._descriptor is not None:
            signature = f"{os.getpid()} {socket.gethostname()}\n".encode("ascii", "replace")
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, signature)

    def release(self) -> None:
        """Let others have it. The second call does nothing."""
        if self._descriptor is not None:
            # Of those who share it the last one removes the name: nobody else owns it then.
            if _lock(self._descriptor, exclusive=True, wait=False):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def claim(path: Path) -> Claim | None:
    """Claim the work that the lock file `path` stands for; None while another process has it."""
    return _claim(path, exclusive=True)


@contextlib.contextmanager
def claimed(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Claim it, once nobody else has it. `waiting` is called again and again with who has it."""
    while (held := claim(path)) is None:
        waiting(_holder(path))
        time.sleep(_LOOK_AGAIN)
    try:
        held.sign()
        yield
    finally:
        held.release()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            found = _SIGNATURE.fullmatch(file.read(_MAX_SIGNATURE).decode("ascii", "replace"))
        if found:
            return f"process {found[1]} on {found[2]}"
    return "another process"


def claim_shared(path: Path) -> Claim:
    """Claim it together with others who share it, once nobody has it alone."""
    claim = _claim(path, exclusive=False)
    assert claim is not None
    return claim


def _claim(path: Path, exclusive: bool) -> Claim | None:
    path.parent.mkdir(exist_ok=True)
    while True:
        descriptor = os.open(path, (os.O_RDWR if exclusive else os.O_RDONLY) | os.O_CREAT, 0o666)
        if not _lock(descriptor, exclusive=exclusive, wait=not exclusive):
            os.close(descriptor)
            return None
        if is_name_of(path, descriptor):
            return Claim(path, descriptor)
        os.close(descriptor)  # the last holder removed this name as we opened it: once more


def is_name_of(path: Path, descriptor: int) -> bool:
    """Does an open file still have this name?"""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def hold_open(descriptor: int) -> None:
    """Lock an open file until it is closed."""
    _lock(descriptor, exclusive=True, wait=True)


def is_abandoned(descriptor: int) -> bool:
    """Does nobody else hold this open file? Until it is closed nobody will. False where there are
    no locks."""
    return _lock(descriptor, exclusive=True, wait=False, without=False)


@contextlib.contextmanager
def hold_shared(folder: Path) -> Iterator[None]:
    """Hold a folder together with others who add to it: nobody is `alone` in it meanwhile."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, exclusive=False, wait=True)
        if is_name_of(folder, descriptor):
            break
        os.close(descriptor)  # it was renamed as we waited
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_exclusive(folder: Path) -> Iterator[bool]:
    """Is nobody else at this folder? While it is held, nobody begins to add to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = _lock(descriptor, exclusive=True, wait=False, without=False)
        # Another folder may have its name by now: gc renames those that it deletes.
        yield locked and is_name_of(folder, descriptor)
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
