"""Memos: what this machine has derived at some expense, such as the digest of a network's weights.

They lie in $FEATURECACHE_MEMOS, by default in the user's cache folder; `off` turns them off. They
take at most $FEATURECACHE_MEMOS_SIZE (4G) together: those that were not used for longest are
removed first. A memo can be deleted at any time, and nothing depends on it but time: whoever reads
one compares what it was derived from with what there is now (file_marks.py).

Only a folder that belongs to this user, and that nobody else can write to, is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from featurecache.byte_sizes import parse_size, size_text
from featurecache.storage import durable
from featurecache.storage.safe_open import read_regular
from featurecache.text import counted

OFF = "off"  # the value of the variable that turns memos off
_FOLDER, _LIMIT = "FEATURECACHE_MEMOS", "FEATURECACHE_MEMOS_SIZE"
_HEAD = 65  # bytes before the content: the SHA-256 of the content in hexadecimal, and a newline


def folder() -> Path | None:
    """The folder of memos; None if they are turned off, or if this user has no home."""
    if os.environ.get(_FOLDER) == OFF:
        return None
    try:
        return user_folder(_FOLDER, "memos")
    except RuntimeError:  # no home folder is known
        return None


def user_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, by default one in the user's cache folder.
    Raises RuntimeError if that is needed and the user has no home."""
    named = os.environ.get(variable)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "featurecache" / name


def read_memo(name: str, max_bytes: int) -> bytes | None:
    """The content of a memo, or None: not there, not readable, damaged, or in a folder that others
    can write to."""
    memo_folder = folder()
    if memo_folder is None:
        return None
    try:
        if not _is_private(memo_folder):
            return None
        data = read_regular(memo_folder / name, max_bytes + _HEAD, follow=False)
        head, content = data[:_HEAD], data[_HEAD:]
        if head != _head_of(content):
            return None
        with contextlib.suppress(OSError):  # a folder that is only read here
            os.utime(memo_folder / name)  # it was used now
        return content
    except OSError:
        return None


def write_memo(name: str, content: bytes) -> bool:
    """Store a memo, in place of an earlier one of this name. False if that is not possible here."""
    memo_folder = folder()
    if memo_folder is None:
        return False
    try:
        memo_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(memo_folder):
            return False
        limit = parse_size(os.environ.get(_LIMIT, "4G"), _LIMIT)
        if len(content) > limit:
            return False
        make_room(memo_folder.iterdir(), len(content), limit)
        durable.replace(memo_folder / name, _head_of(content) + content)
    except OSError:  # a home that is only read, a full disk: it is derived again
        return False
    return True


def forget_memo(name: str) -> None:
    """Remove a memo that turned out to be wrong."""
    memo_folder = folder()
    if memo_folder is not None:
        with contextlib.suppress(OSError):
            (memo_folder / name).unlink(missing_ok=True)


def memo_state() -> str:
    """What `doctor` says of the memos of this machine."""
    memo_folder = folder()
    if memo_folder is None:
        return "off"
    if not memo_folder.is_dir():
        return f"none yet in {memo_folder}"
    if not _is_private(memo_folder):
        return f"not used: others can write to {memo_folder}, or own it"
    sizes = [path.lstat().st_size for path in memo_folder.iterdir()]
    return f"{counted(len(sizes), 'file')}, {size_text(sum(sizes))} in {memo_folder}"


def _head_of(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n"


def _is_private(memo_folder: Path) -> bool:
    """Does a folder belong to this user, and can nobody else write to it?"""
    if os.name != "posix":
        return True  # a user's cache folder has no other writers there
    status = memo_folder.stat()
    is_own = status.st_uid == os.geteuid()
    return is_own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def make_room(paths: Iterable[Path], size: int, limit: int) -> None:
    """Remove files, those that were not used for longest first, until they and `size` more bytes
    take at most `limit` bytes."""
    files = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and not durable.is_temporary(path.name):
                files.append((status.st_mtime, status.st_size, path))
    surplus = sum(used for _, used, _ in files) + size - limit
    for _, used, path in sorted(files):
        if surplus <= 0:
            break
        path.unlink(missing_ok=True)
        surplus -= used
