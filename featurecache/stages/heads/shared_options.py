"""The options that all stages of heads share, as one typed group of keywords."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from featurecache.executors import Progress
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.settings import check_keywords
from featurecache.images.datasets import DataSource
from featurecache.runs.sources import data_of, source_of


class SharedOptions(TypedDict, total=False):
    """Keywords of a stage; for absent ones see `resolve_options`."""

    data: DataSource
    cache: str | Path
    progress: ProgressOption


class ResolvedOptions(NamedTuple):
    """What to read, and how to report progress."""

    data: DataSource
    cache: str | Path
    progress: Progress


def resolve_options(options: SharedOptions, function: str) -> ResolvedOptions:
    """The options with their defaults. Raises TypeError for an unknown keyword of `function`."""
    check_keywords(options, SharedOptions, function)
    return ResolvedOptions(
        data=options.get("data", "data"),
        cache=options.get("cache", "data/cache"),
        progress=resolve_progress(options.get("progress", False)),
    )


def resolve_run_options(
    options: SharedOptions, function: str, runs: Sequence[Path]
) -> ResolvedOptions:
    """The options, where absent or None the data and the cache that `runs` were made from. Raises
    TypeError, BadInput."""
    check_keywords(options, SharedOptions, function)
    chosen = {name: value for name, value in options.items() if value is not None}
    if "data" not in chosen:
        chosen["data"] = data_of(runs)
    if "cache" not in chosen:
        chosen["cache"] = source_of(runs, "cache")
    return resolve_options(cast(SharedOptions, chosen), function)
