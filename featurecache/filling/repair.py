"""Repair: recompute the rows of shards in quarantine and commit them as new shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from featurecache.errors import BadInput, FeatureCacheError
from featurecache.executors import Progress
from featurecache.features import quarantine
from featurecache.features.engines import engines_here
from featurecache.features.spaces import Space
from featurecache.filling.recompute import Recomputer
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.samples import Sample, items_of, sources_of

LostShard = tuple[Space, quarantine.QuarantinedShard]  # a space without a key has no description


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The number of recomputed rows, the shards that still lack rows, and why."""

    rows: int
    lost: list[LostShard]
    left: list[str]


def recompute_lost(
    lost: Sequence[LostShard], data: DataSource, recomputer: Recomputer, progress: Progress
) -> Repaired:
    """Recompute and commit the rows of `lost` whose images are in `data`, with the engine that made
    them if this machine has it. Raises FeatureCacheError where the disk refuses."""
    try:
        dataset = open_dataset(data)
    except BadInput as error:
        reason = f"nothing was recomputed ({error}); give --data, or run featurize"
        return Repaired(rows=0, lost=list(lost), left=[reason])
    repair = _Repair(dataset, recomputer, progress)
    incomplete = []
    for number, (space, shard) in enumerate(lost, 1):
        progress(number, len(lost), "repair")
        missing = repair.recompute(space, shard)
        if missing is None or missing:
            incomplete.append((space, replace(shard, items=missing)))
    return Repaired(rows=repair.rows, lost=incomplete, left=repair.left)


class _Repair:
    """The repair of a cache from one dataset."""

    def __init__(self, dataset: Dataset, recomputer: Recomputer, progress: Progress) -> None:
        self.rows = 0
        self.left: list[str] = []
        self._recomputer = recomputer
        self._root = dataset.root
        self._sources = sources_of(dataset.samples, items_of(dataset.samples, progress)[0])
        self._finished: dict[str, set[bytes]] = {}  # space -> items

    def recompute(self, space: Space, shard: quarantine.QuarantinedShard) -> list[bytes] | None:
        """Recompute and commit the rows that a shard held. Returns the items that are still
        missing, or None if they are unknown."""
        if not space.key:  # `verify` has reported it
            return shard.items
        prefix = f"{space.view} / {space.backbone or 'pictures'}"
        if shard.items is None:
            self.left.append(
                f"{prefix}: the rows of {shard.file} are unknown; run the featurize or augment "
                f"that made it, which computes missing rows, then delete {quarantine.folder(space)}"
            )
            return None
        finished = self._finished.setdefault(space.name, set())
        try:
            missing = [item for item in space.missing(shard.items) if item not in finished]
        except FeatureCacheError as error:  # another of its records is bad, or can't be read
            self.left.append(f"{prefix}: {error}")
            return shard.items
        available = [item for item in missing if item in self._sources]
        if len(available) < len(missing):
            self.left.append(
                f"{prefix}: {len(missing) - len(available)} images of a bad shard are not in "
                f"{self._root}; give the --data that has them, or delete "
                f"{quarantine.folder(space)} if they are gone for good"
            )
        if available:
            try:
                self._commit(space, shard.engine, [(self._sources[i], i) for i in available])
                finished.update(available)
                self.rows += len(available)
            except FeatureCacheError as error:
                self.left.append(f"{prefix}: {error}")
        return [item for item in missing if item not in finished]

    def _commit(self, space: Space, engine: str, rows: Sequence[tuple[Sample, bytes]]) -> None:
        began = time.perf_counter()
        engines = (record.provenance.get("engine", "") for record in space.records)
        maker = engine or next(engines, "")  # for the same bytes, if possible (law 5, "Same bytes")
        made = self._recomputer.make(space, rows, maker if maker in engines_here() else "")
        seconds = time.perf_counter() - began
        items = [item for _, item in rows]
        space.commit(items, made.arrays, made.failed, made.provenance, seconds)
