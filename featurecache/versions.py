"""Versions of the installed distributions."""

from __future__ import annotations

import functools
import importlib.metadata


def installed_versions(*distributions: str) -> dict[str, str]:
    """The installed version of each distribution; "none" for one that is not there."""
    return {name: _version(name) for name in distributions}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
