"""Repair: compute the rows of shards in quarantine again, which a committed shard then holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import Progress
from featurecache.features import quarantine
from featurecache.features.engines import engines_here
from featurecache.features.spaces import Space
from featurecache.filling.recompute import Recomputer
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import Sample, items_of, sources_of

Lost = tuple[Space, quarantine.SetAside]  # a space without a key has no description


@dataclass
class Repaired:
    """The number of rows that were computed again, the shards of which some are not, and why."""

    rows: int = 0
    lost: list[Lost] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def compute_lost(
    lost: Sequence[Lost], data: str | Path, again: Recomputer, progress: Progress
) -> Repaired:
    """Compute and commit the rows of `lost` whose images are in `data`, with the engine that made
    them where it is here. Raises FeatureCacheError where the disk refuses."""
    found = Repaired()
    try:
        dataset = open_dataset(data)
    except BadInput as error:
        found.left.append(f"nothing was computed again ({error}); give --data, or run featurize")
        return replace(found, lost=list(lost))
    sources = sources_of(dataset.samples, items_of(dataset.samples, progress)[0])
    done: dict[str, set[bytes]] = {}
    for number, (space, shard) in enumerate(lost, 1):
        progress(number, len(lost), "repair")
        aside = quarantine.folder(space)
        if not space.key:  # `verify` has said so
            found.lost.append((space, shard))
            continue
        about = f"{space.view} / {space.backbone or 'pictures'}"
        if shard.items is None:
            found.left.append(
                f"{about}: what {shard.file} held can't be told; run the featurize or augment that "
                f"made it, which computes what is missing, then delete {aside}"
            )
            found.lost.append((space, shard))
            continue
        finished = done.setdefault(space.name, set())
        try:
            missing = [item for item in space.missing(shard.items) if item not in finished]
        except FeatureCacheError as error:  # another of its records is bad, or can't be read
            found.left.append(f"{about}: {error}")
            found.lost.append((space, shard))
            continue
        here = [item for item in missing if item in sources]
        if len(here) < len(missing):
            found.left.append(
                f"{about}: {len(missing) - len(here)} images of a bad shard are not in "
                f"{dataset.root}; give the --data that has them, or delete {aside} if they are "
                "gone for good"
            )
        if here:
            try:
                _compute(space, shard.engine, [(sources[item], item) for item in here], again)
                finished.update(here)
                found.rows += len(here)
            except FeatureCacheError as error:
                found.left.append(f"{about}: {error}")
        missing = [item for item in missing if item not in finished]
        if missing:
            found.lost.append((space, replace(shard, items=missing)))
    return found


def _compute(
    space: Space, engine: str, rows: Sequence[tuple[Sample, bytes]], again: Recomputer
) -> None:
    began = time.perf_counter()
    others = (record.provenance.get("engine", "") for record in space.records)
    maker = engine or next(others, "")  # the same bytes, if it can be (law 5)
    made = again.make(space, rows, maker if maker in engines_here() else "")
    took = time.perf_counter() - began
    space.commit([item for _, item in rows], made.arrays, made.failed, made.provenance, took)
