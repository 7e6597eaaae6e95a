"""Opening files that others wrote: regular ones of bounded size, and nothing else.

A folder may hold anything under a picture's name. Opening a pipe waits for a writer, /dev/zero
never ends, some devices act on being opened, and a file of holes takes memory that it never cost
its author.
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

# Not to wait, not to be had by a child, and on Windows not to have line ends translated.
_NAMES = ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
_FLAGS = sum(getattr(os, name, 0) for name in _NAMES) | os.O_RDONLY
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


@contextlib.contextmanager
def open_regular(path: Path, most: int, *, follow: bool = True) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of at most `most` bytes, open for reading, and its size. Links are followed,
    unless `follow` is false.

    Raises OSError, whose `strerror` says what is wrong and what to do, for anything else.
    """
    file, size = retried_on_disk(lambda: _open(path, most, follow))
    with file:
        yield file, size


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The bytes of such a file."""

    def whole() -> bytes:
        file, size = _open(path, most, follow)
        with file:
            return file.read(size)

    return retried_on_disk(whole)


def _open(path: Path, most: int, follow: bool) -> tuple[BinaryIO, int]:
    try:
        _check(path.stat(follow_symlinks=follow), most)
        flags = _FLAGS if follow else _FLAGS | getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise OSError(error.errno, "a link that leads nowhere; mend or remove it") from error
        raise
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, f"no path ({error})") from error
    try:
        found = os.fstat(file.fileno())
        _check(found, most)  # since the first look something else may have taken the name
    except OSError:
        file.close()
        raise
    return file, found.st_size


def _check(found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "nothing known")
        raise NotAFile(errno.EINVAL, f"{kind}, not a regular file; move it away")
    if found.st_size > most:
        raise NotAFile(errno.EFBIG, f"{found.st_size:,} bytes, more than the {most:,} allowed")
