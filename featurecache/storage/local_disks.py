"""Disks of this machine whose file times can be relied on.

A file system of a network may show the size and the times that a file had a minute ago, and some
have no time of the last change (ctime) of their own, so that a file whose mtime is set back looks
unchanged. Only the file systems below are known to set ctime at each change, also when a file is
changed through a memory map.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

_EXACT = {"ext4", "xfs", "f2fs"}
_MOUNTS = Path("/proc/self/mountinfo")
_WRITEBACK = Path("/proc/sys/vm")
_MIN_QUIET = 60  # seconds


def is_exact(device: int) -> bool:
    """Is this (`st_dev`) a local disk with one of these file systems? False where that is not
    known, as on other systems than Linux."""
    return device in _exact_devices()


@functools.cache
def _exact_devices() -> frozenset[int]:
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    kinds: dict[int, set[str]] = {}
    for line in lines:
        fields, _, kind = line.partition(" - ")
        major, _, minor = fields.split()[2].partition(":")
        kinds.setdefault(os.makedev(int(major), int(minor)), set()).add(kind.split()[0])
    return frozenset(device for device, names in kinds.items() if names <= _EXACT)


@functools.cache
def quiet_seconds() -> float:
    """How long a file must have been left alone for its times to show every later change.

    The first write to a page of a memory map sets the times, later ones do not until the kernel has
    written the page to the disk, which takes it as long as these settings say.
    """
    try:
        hundredths = sum(
            int((_WRITEBACK / name).read_text())
            for name in ("dirty_expire_centisecs", "dirty_writeback_centisecs")
        )
    except (OSError, ValueError):
        return float("inf")  # not known: no file is quiet
    return max(_MIN_QUIET, 1.5 * hundredths / 100)
