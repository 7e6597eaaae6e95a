"""Marks: what tells, without reading a file, that it is still the one that was read before.

A mark is size, inode, device, and the times of the last change of the content (mtime) and of the
file (ctime), in nanoseconds. mtime alone can be set back; ctime can't, short of setting the clock
of the machine.

A file that changes twice within one tick of its file system's clock can have the same mark before
and after the second change (git calls such an index entry racy). So a mark is taken before the file
is read, and only of a file that was left alone for QUIET_SECONDS by then: whatever changes it later
gives it another ctime. Where times are kept in whole seconds, or on a platform without ctime, files
have no mark: they are read again.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

QUIET_SECONDS = 5  # more than the ticks of file systems, and the skew of clocks in one network

Mark = list[int]  # as it is in JSON
MARK_FIELDS = 5


def mark_of(path: Path) -> Mark | None:
    """The mark of the regular file at `path`, links followed. None if it has none, or has changed
    too recently."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return mark_of_status(status)


def mark_of_status(status: os.stat_result, quiet_seconds: float | None = None) -> Mark | None:
    """The mark of a file from its status, as `mark_of`, if it was left alone for so long."""
    if quiet_seconds is None:
        quiet_seconds = QUIET_SECONDS
    if os.name != "posix" or not stat.S_ISREG(status.st_mode):
        return None
    changed = max(status.st_ctime_ns, status.st_mtime_ns)
    quiet = changed + quiet_seconds * 10**9 < time.time_ns()
    has_fine_times = status.st_ctime_ns % 10**9 != 0
    if not (quiet and has_fine_times):
        return None
    return [
        status.st_size,
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]


def marks_below(folder: Path, suffixes: tuple[str, ...]) -> list[list[object]] | None:
    """(path below the folder, mark) of all files in a folder and its sub-folders whose name ends
    with one of `suffixes`, sorted. None if one of them has no mark."""
    marks: list[list[object]] = []
    for path in _files_below(folder):
        if path.endswith(suffixes):
            mark = mark_of(Path(path))
            if mark is None:
                return None
            marks.append([path[len(str(folder)) + 1 :], mark])
    return sorted(marks, key=lambda pair: str(pair[0]))


def _files_below(folder: Path) -> Iterable[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (os.path.join(parent, name) for name in files)  # noqa: PTH118  many, and fast
