"""Diff: in which rows do two caches differ?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import compared


@dataclass(frozen=True)
class Difference:
    """One space of two caches, A and B. `missing` rows are in A alone, `extra` in B alone; of the
    rows in both, `drifted` have other bytes, or other failures. `relative` is the greatest
    |b - a| over the greatest |a| of any shard (0 for pictures: they are the same or not)."""

    space: str
    view: str
    backbone: str | None
    rows_a: int
    rows_b: int
    missing: int
    extra: int
    drifted: int
    relative: float

    @property
    def same(self) -> bool:
        return not (self.missing or self.extra or self.drifted)


def diff(a: str | Path, b: str | Path, *, progress: Progress = silent) -> list[Difference]:
    """Compare the caches `a` and `b`, space by space; each shard's hash is checked as it is read.

    Shards that are the same file by their records are not opened. Raises BadInput where there is
    no cache, DamagedCache for bytes that are not what their record says.
    """
    caches = Cache(a), Cache(b)
    for cache in caches:
        if not cache.exists:
            raise BadInput(f"no cache at {cache.root}")
    here, there = ({space.name: space for space in cache.spaces()} for cache in caches)
    found = []
    for number, name in enumerate(sorted(here.keys() | there.keys()), 1):
        progress(number, len(here.keys() | there.keys()), "diff")
        known = here.get(name) or there[name]
        one = here.get(name) or caches[0].space(known.key)
        other = there.get(name) or caches[1].space(known.key)
        drifted, relative = _drift(one, other)
        found.append(
            Difference(
                name,
                known.view,
                known.backbone,
                len(one.rows),
                len(other.rows),
                len(one.rows.keys() - other.rows.keys()),
                len(other.rows.keys() - one.rows.keys()),
                drifted,
                relative,
            )
        )
    return sorted(found, key=lambda d: (d.view, d.backbone or "", d.space))


def _drift(a: Space, b: Space) -> tuple[int, float]:
    """Of the rows in both: how many differ, and by how much at most."""
    if a.root_hash == b.root_hash:
        return 0, 0.0
    drifted, relative = 0, 0.0
    for number, record in enumerate(a.records):
        items = [
            item
            for item in record.item_list
            if item in b.rows
            and a.rows[item][0] == number
            and b.records[b.rows[item][0]].sha256 != record.sha256
        ]
        if not items:
            continue
        if a.backbone is None:
            drifted += sum(a.picture(item) != b.picture(item) for item in items)
            continue
        old, was_fine = a.vectors(items)
        new, is_fine = b.vectors(items)
        same = (old.view(np.uint32) == new.view(np.uint32)).all(axis=1) & (was_fine == is_fine)
        drifted += int((~same).sum())
        relative = max(relative, compared(old, new)[1])
    return drifted, relative
