"""Sizes such as `500M` or `20G`."""

from __future__ import annotations

import re

from featurecache.errors import BadInput

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_size(size: str, what: str) -> int:
    """The number of bytes of a size such as `500M` or `20G`. Raises BadInput that begins with
    `what`."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)([kmgt]?)b?", size.lower())
    if match is None:
        raise BadInput(f"{what} {size!r}: expected a size such as 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(size: float) -> str:
    """A number of bytes to read, such as `2.5 GB` or `4.0 MB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"
