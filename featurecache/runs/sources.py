"""The data and the cache that runs were made from, which commands on these runs use by default."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from featurecache.errors import BadInput, FeatureCacheWarning
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.layouts.csv_tables import CsvColumns
from featurecache.json_files import damaged_run
from featurecache.runs.record import RunRecord, read_run

DEFAULTS = {"data": "data", "cache": "data/cache"}
_FIELDS = {"data": "path", "cache": "cache"}  # of `data` in a run's record
_FROM_RUN = "from_run"  # of `data` in a run's record: the same paths, relative to the run
_COLUMNS = "columns"  # of `data` in a run's record: what the options for columns were


def source_fields(dataset: Dataset, cache: object, run: Path) -> dict[str, Any]:
    """What a run's record says about its sources: absolute paths, and URLs as they are. Data that
    is not named by a path, such as an array or a part of a dataset, is left out. The paths relative
    to the run find them again after the folder that holds everything was moved."""
    fields: dict[str, Any] = {_FIELDS["cache"]: _absolute_name(str(cache))}
    if dataset.location:
        fields[_FIELDS["data"]] = _absolute_name(dataset.location)
    paths = {name: _relative_path(str(path), run) for name, path in fields.items()}
    fields[_FROM_RUN] = {name: path for name, path in paths.items() if path is not None}
    if dataset.columns:
        fields[_COLUMNS] = dict(dataset.columns)
    return fields


def data_of(runs: Sequence[Path]) -> str | Dataset:
    """The data that runs were made from, as `source_of` finds it, read by the same columns. Raises
    BadInput."""
    name = source_of(runs, "data")
    columns = [_columns_of(read_run(run)) for run in runs]
    if not any(columns):
        return name
    if any(chosen != columns[0] for chosen in columns):
        raise BadInput(
            f"these runs read different columns of {name}; pass --data and the options for columns"
        )
    return open_dataset(name, **columns[0])


def _columns_of(record: RunRecord) -> CsvColumns:
    columns = record.data.get(_COLUMNS, {})
    known = CsvColumns.__annotations__.keys()
    if not isinstance(columns, dict) or columns.keys() - known:
        raise damaged_run(record._path, f"data.{_COLUMNS}: not {', '.join(known)}")
    return cast(CsvColumns, columns)


def source_of(runs: Sequence[Path], source: str) -> str:
    """The `source` (`data` or `cache`) that runs were made from, or its usual place if their
    records do not say. Warns if it has moved and is now in that place.

    Raises BadInput if it has moved elsewhere, or if the runs were made from different ones.
    """
    records = [read_run(run) for run in runs]
    recorded = {
        str(name) for record in records if (name := record.data.get(_FIELDS[source])) is not None
    }
    if not recorded:
        return DEFAULTS[source]
    if len(recorded) > 1:
        names = " and ".join(sorted(recorded))
        raise BadInput(f"these runs were made from different {source}: {names}; pass --{source}")
    (name,) = recorded
    if _exists(name):
        return name
    text = f"{runs[0]}: its {source} is no longer at {name}"
    pairs = zip(runs, records, strict=True)
    candidates = [_moved_path(run, record, source) for run, record in pairs]
    candidates += [_typed_name(record) for record in records if source == "data"]
    candidates.append(DEFAULTS[source])
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            hint = f"using {candidate}; pass --{source} if it is elsewhere"
            warnings.warn(f"{text}; {hint}", FeatureCacheWarning, stacklevel=3)
            return candidate
    raise BadInput(f"{text}; pass --{source}")


def _typed_name(record: RunRecord) -> str:
    return str(record.data.get("given", ""))


def _relative_path(name: str, run: Path) -> str | None:
    """A path relative to a run; None for a URL, a word, or a path on another drive."""
    if not Path(name).is_absolute():
        return None
    try:
        return os.path.relpath(name, run.absolute())
    except ValueError:
        return None


def _moved_path(run: Path, record: RunRecord, source: str) -> str:
    """Where a source is now if it was moved together with the run; empty if that is not known."""
    paths = record.data.get(_FROM_RUN)
    path = paths.get(_FIELDS[source]) if isinstance(paths, dict) else None
    return os.path.normpath(run / path) if isinstance(path, str) else ""


def _absolute_name(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).exists() and "://" not in name else name


def _exists(name: str) -> bool:
    return "://" in name or not Path(name).is_absolute() or Path(name).exists()
