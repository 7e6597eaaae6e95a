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
from featurecache.settings import DEFAULTS

_FIELDS = {"data": "path", "cache": "cache"}  # of `data` in a run's record
_FROM_RUN = "from_run"  # of `data` in a run's record: the same paths, relative to the run
_SEVERAL = "paths"  # of `data` in a run's record: instead of `path`, of several datasets
_COLUMNS = "columns"  # of `data` in a run's record: what the options for columns were


def source_fields(dataset: Dataset, cache: object, run: Path) -> dict[str, Any]:
    """What a run's record says about its sources: absolute paths, and URLs as they are. Data that
    is not named by a path, such as an array or a part of a dataset, is left out. The paths relative
    to the run find them again after the folder that holds everything was moved."""
    fields: dict[str, Any] = {_FIELDS["cache"]: _absolute_name(str(cache))}
    if dataset.location:
        fields[_FIELDS["data"]] = _absolute_name(dataset.location)
    paths = {name: _relative_path(str(path), run) for name, path in fields.items()}
    if dataset.locations:
        several = [_absolute_name(name) for name in dataset.locations]
        fields[_SEVERAL] = several
        paths |= {f"{_SEVERAL}.{n}": _relative_path(path, run) for n, path in enumerate(several)}
    fields[_FROM_RUN] = {name: path for name, path in paths.items() if path is not None}
    if dataset.columns:
        fields[_COLUMNS] = dict(dataset.columns)
    return fields


def data_of(runs: Sequence[Path]) -> str | Dataset:
    """The data that runs were made from, as `source_of` finds it, read by the same columns. Raises
    BadInput."""
    records = [read_run(run) for run in runs]
    counts = {len(_several(record)) for record in records}
    if len(counts) > 1:
        raise BadInput("these runs were made from different data; pass --data")
    columns = [_columns_of(record) for record in records]
    name: str | list[str] = [
        _source_of(runs, records, "data", f"{_SEVERAL}.{number}") for number in range(max(counts))
    ] or source_of(runs, "data")
    if not any(columns):
        return name if isinstance(name, str) else open_dataset(name)
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
    return _source_of(runs, [read_run(run) for run in runs], source, _FIELDS[source])


def _source_of(runs: Sequence[Path], records: Sequence[RunRecord], source: str, field: str) -> str:
    """`source_of`; `field` is the one of the records that has it."""
    recorded = {name for record in records if (name := _field(record, field)) is not None}
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
    candidates = [_moved_path(run, record, field) for run, record in pairs]
    if field == _FIELDS[source]:
        candidates += [str(record.data.get("given", "")) for record in records if source == "data"]
        candidates.append(DEFAULTS[source])
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            hint = f"using {candidate}; pass --{source} if it is elsewhere"
            warnings.warn(f"{text}; {hint}", FeatureCacheWarning, stacklevel=3)
            return candidate
    raise BadInput(f"{text}; pass --{source}")


def _relative_path(name: str, run: Path) -> str | None:
    """A path relative to a run; None for a URL, a word, or a path on another drive."""
    if not Path(name).is_absolute():
        return None
    try:
        return os.path.relpath(name, run.absolute())
    except ValueError:
        return None


def _field(record: RunRecord, field: str) -> str | None:
    """A field of `data`, or `paths.N`, an entry of one."""
    if field.startswith(f"{_SEVERAL}."):
        return _several(record)[int(field.partition(".")[2])]
    value = record.data.get(field)
    return None if value is None else str(value)


def _several(record: RunRecord) -> list[str]:
    """The paths of several datasets; empty for one. Raises DamagedRun."""
    paths = record.data.get(_SEVERAL, [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise damaged_run(record._path, f"data.{_SEVERAL}: not a list of paths")
    return paths


def _moved_path(run: Path, record: RunRecord, field: str) -> str:
    """Where a source is now if it was moved together with the run; empty if that is not known."""
    paths = record.data.get(_FROM_RUN)
    path = paths.get(field) if isinstance(paths, dict) else None
    return os.path.normpath(run / path) if isinstance(path, str) else ""


def _absolute_name(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).exists() and "://" not in name else name


def _exists(name: str) -> bool:
    return "://" in name or not Path(name).is_absolute() or Path(name).exists()
