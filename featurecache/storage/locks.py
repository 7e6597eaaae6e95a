"""Locks between processes. They save work and guard deletions; no row depends on them (law 4,
"Committed or absent").

The kernel releases a lock when its holder ends in any way, so nobody waits for a dead process. If a
file system or a platform has no locks, every claim is granted, so work may be done twice, and
nothing is ever locked exclusively, so nothing is deleted.
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

_POLL_INTERVAL = 0.2  # seconds
_SIGNATURE = re.compile(r"(\d+) ([\w.-]+)\n")
_MAX_SIGNATURE = 300  # bytes
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


def available() -> bool:
    """Whether this platform has locks. A file system may still lack them."""
    return fcntl is not None


class Claim:
    """The right to do a piece of work, until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor  # None without locks

    @classmethod
    def unlocked(cls) -> Claim:
        """A claim that excludes nobody, for stores without locks and for read-only ones."""
        return cls(Path(), None)

    def sign(self) -> None:
        """Write into the lock file which process has the claim."""
        if self._descriptor is not None:
            signature = f"{os.getpid()} {socket.gethostname()}\n".encode("ascii", "replace")
            with contextlib.suppress(OSError):  # a full disk: others read "another process"
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, signature)

    def release(self) -> None:
        """Give up the claim. A second call does nothing."""
        if self._descriptor is not None:
            # The last process that shares the claim can lock it exclusively, and removes the file.
            if _lock(self._descriptor, exclusive=True, wait=False):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def claim(path: Path) -> Claim | None:
    """Claim the work that the lock file `path` represents; None while another process has it."""
    return _claim(path, exclusive=True)


@contextlib.contextmanager
def claimed(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Claim it as soon as nobody else has it. Until then `waiting` is called repeatedly with a
    phrase that names the holder."""
    while (granted := claim(path)) is None:
        waiting(_holder(path))
        time.sleep(_POLL_INTERVAL)
    try:
        granted.sign()
        yield
    finally:
        granted.release()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            signature = file.read(_MAX_SIGNATURE).decode("ascii", "replace")
        match = _SIGNATURE.fullmatch(signature)
        if match:
            return f"process {match[1]} on {match[2]}"
    return "another process"


def claim_shared(path: Path) -> Claim:
    """Claim it together with other processes that share it. Waits while one has it exclusively."""
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
        os.close(descriptor)  # the last holder removed this name meanwhile: try again


def is_name_of(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def hold_open(descriptor: int) -> None:
    """Lock an open file until it is closed."""
    _lock(descriptor, exclusive=True, wait=True)


def is_abandoned(descriptor: int) -> bool:
    """Whether no other process holds this open file. If so, none will until it is closed. False
    without locks."""
    return _lock(descriptor, exclusive=True, wait=False, unsupported=False)


@contextlib.contextmanager
def hold_shared(folder: Path) -> Iterator[None]:
    """Hold a folder together with other processes that add to it: none can lock it exclusively
    meanwhile."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, exclusive=False, wait=True)
        if is_name_of(folder, descriptor):
            break
        os.close(descriptor)  # it was renamed during the wait
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_exclusive(folder: Path) -> Iterator[bool]:
    """Whether no other process holds this folder. If so, none begins to add to it meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = _lock(descriptor, exclusive=True, wait=False, unsupported=False)
        # Another folder may have the name by now: gc renames the folders that it deletes.
        yield locked and is_name_of(folder, descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, exclusive: bool, wait: bool, unsupported: bool = True) -> bool:
    """Lock an open file, and return whether it is locked; `unsupported` where there are no
    locks."""
    if fcntl is None:
        return unsupported
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return unsupported
        raise
    return True
