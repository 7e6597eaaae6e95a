"""The options that all stages of heads share, as one typed group of keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from featurecache.errors import BadInput
from featurecache.executors import Progress
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.settings import check_keywords, keywords_of
from featurecache.images.datasets import DataSource
from featurecache.runs.run_names import find_runs
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


class ResolvedRuns(NamedTuple):
    """The folders of runs, what to read, and how to report progress."""

    runs: list[Path]
    data: DataSource
    cache: str | Path
    progress: Progress


def resolve_options(
    options: Mapping[str, object], function: str, group: type = SharedOptions
) -> ResolvedOptions:
    """The shared ones of the options, with their defaults. Raises TypeError for a keyword that the
    `group` of `function` lacks."""
    check_keywords(options, group, function)
    shared = keywords_of(SharedOptions, options)
    return ResolvedOptions(
        data=shared.get("data", "data"),
        cache=shared.get("cache", "data/cache"),
        progress=resolve_progress(shared.get("progress", False)),
    )


def resolve_run_options(
    options: Mapping[str, object],
    function: str,
    runs: str | Path | Sequence[str | Path],
    group: type = SharedOptions,
) -> ResolvedRuns:
    """The folders of `runs`, and `resolve_options`, where absent or None the data and the cache
    that they were made from. Raises TypeError before a run is looked up, and BadInput."""
    check_keywords(options, group, function)
    folders = find_runs(runs)
    if not folders:
        raise BadInput(f"{function} needs at least one run")
    chosen = {name: value for name, value in options.items() if value is not None}
    if "data" not in chosen:
        chosen["data"] = data_of(folders)
    if "cache" not in chosen:
        chosen["cache"] = source_of(folders, "cache")
    return ResolvedRuns(folders, *resolve_options(chosen, function, group))
