"""Opening files that others wrote: only regular files of bounded size.

A folder may hold anything under the name of a picture. Opening a pipe waits for a writer, /dev/zero
never ends, some devices act when they are opened, and a sparse file takes far more memory than disk
space.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from featurecache.errors import NotAFile
from featurecache.storage.retries import retried_on_disk

# Do not wait, do not pass the file to child processes, do not translate line ends on Windows.
_NAMES = ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
_FLAGS = sum(getattr(os, name, 0) for name in _NAMES) | os.O_RDONLY
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


@contextlib.contextmanager
def open_regular(
    path: Path, max_bytes: int, *, follow: bool = True
) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of at most `max_bytes`, open for reading, and its size. Links are followed,
    unless `follow` is false.

    Raises OSError for anything else; its `strerror` says what is wrong and what to do.
    """
    fd, size = retried_on_disk(lambda: _open(path, max_bytes, follow))
    with os.fdopen(fd, "rb") as file:
        yield file, size


@contextlib.contextmanager
def open_descriptor(
    path: Path, max_bytes: int, *, follow: bool = True
) -> Iterator[tuple[int, int]]:
    """The file descriptor of such a file, and its size, for readers that open many files: making a
    file object takes as long as opening the file."""
    fd, size = retried_on_disk(lambda: _open(path, max_bytes, follow))
    try:
        yield fd, size
    finally:
        os.close(fd)


def read_regular(path: Path, max_bytes: int, *, follow: bool = True) -> bytes:
    """The bytes of such a file."""

    def read() -> bytes:
        fd, size = _open(path, max_bytes, follow)
        try:
            data = os.read(fd, size)
            while len(data) < size and (more := os.read(fd, size - len(data))):
                data += more
            return data
        finally:
            os.close(fd)

    return retried_on_disk(read)


def _open(path: Path, max_bytes: int, follow: bool) -> tuple[int, int]:
    try:
        _check(path.stat(follow_symlinks=follow), max_bytes)
        flags = _FLAGS if follow else _FLAGS | getattr(os, "O_NOFOLLOW", 0)
        fd = os.open(path, flags)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise OSError(error.errno, "a broken link; repair or remove it") from error
        raise
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, f"no path ({error})") from error
    try:
        status = os.fstat(fd)
        _check(status, max_bytes)  # the name may have changed hands since the first check
    except OSError:
        os.close(fd)
        raise
    return fd, status.st_size


def _check(status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "an unknown kind of file")
        raise NotAFile(errno.EINVAL, f"{kind}, not a regular file; move it away")
    if status.st_size > max_bytes:
        text = f"{status.st_size:,} bytes, more than the {max_bytes:,} allowed"
        raise NotAFile(errno.EFBIG, text)
