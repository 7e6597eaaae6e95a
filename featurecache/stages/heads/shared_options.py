"""The options that all stages of heads share, as one typed group of keywords."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypedDict

from featurecache.executors import Progress, silent
from featurecache.features.settings import check_keywords


class SharedOptions(TypedDict, total=False):
    """Keywords of a stage; an absent one has the default of ResolvedOptions."""

    data: str | Path
    cache: str | Path
    progress: Progress


class ResolvedOptions(NamedTuple):
    """What to read, and how to report progress."""

    data: str | Path = "data"
    cache: str | Path = "data/cache"
    progress: Progress = silent


def resolve_options(options: SharedOptions, function: str) -> ResolvedOptions:
    """The options with their defaults. Raises TypeError for an unknown keyword of `function`."""
    check_keywords(options, SharedOptions, function)
    return ResolvedOptions(**options)
