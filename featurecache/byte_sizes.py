"""Sizes such as `500M` or `20G`, and the memory of this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featurecache.errors import BadInput

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_size(size: str, what: str) -> int:
    """The number of bytes of a size such as `500M` or `20G`. Raises BadInput that begins with
    `what`."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)([kmgt]?)b?", size.lower())
    if match is None:
        raise BadInput(f"{what} {size!r}: expected a size such as 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])


def machine_memory() -> int | None:
    """This machine's memory in bytes; None if the platform does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def available_memory() -> int | None:
    """The bytes that a process can take now: what Linux reports, elsewhere all of the memory."""
    try:
        report = Path("/proc/meminfo").read_text()
    except OSError:
        return machine_memory()
    match = re.search(r"^MemAvailable: *(\d+) kB$", report, re.MULTILINE)
    return machine_memory() if match is None else int(match[1]) * 1024
