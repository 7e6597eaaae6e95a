"""The data and the cache that runs were made from, which commands on these runs use by default."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from featurecache.errors import BadInput, FeatureCacheWarning
from featurecache.runs.record import RunRecord, read_run

DEFAULTS = {"data": "data", "cache": "data/cache"}
_FIELDS = {"data": "path", "cache": "cache"}  # of `data` in a run's record


def source_fields(data: object, cache: object) -> dict[str, str]:
    """What a run's record says about its sources: absolute paths, and URLs as they are. Data that
    is not named by a path, such as an array, is left out."""
    fields = {_FIELDS["cache"]: _absolute_name(str(cache))}
    if isinstance(data, str | Path):
        fields[_FIELDS["data"]] = _absolute_name(str(data))
    return fields


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
    candidates = [_typed_name(record) for record in records if source == "data"] + [
        DEFAULTS[source]
    ]
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            warnings.warn(f"{text}; using {candidate}", FeatureCacheWarning, stacklevel=3)
            return candidate
    raise BadInput(f"{text}; pass --{source}")


def _typed_name(record: RunRecord) -> str:
    return str(record.data.get("given", ""))


def _absolute_name(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).exists() and "://" not in name else name


def _exists(name: str) -> bool:
    return "://" in name or not Path(name).is_absolute() or Path(name).exists()
