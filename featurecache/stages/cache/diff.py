"""Diff: in which rows do two caches differ?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.spaces import Space
from featurecache.keys import setting_beside_names
from featurecache.lookup.caches import existing_cache
from featurecache.stages.cache.verify import compared


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One space of two caches, A and B. `missing` rows are only in A, `extra` rows only in B. Of
    the rows in both, `drifted` differ in their bytes or failures. `relative` is the greatest
    |b - a| over the greatest |a| of any shard (0 for pictures, which are either equal or not)."""

    space: str
    view: str
    backbone: str | None
    setting: dict[str, Any]  # as `ls` shows it
    rows_a: int
    rows_b: int
    missing: int
    extra: int
    drifted: int
    relative: float

    @property
    def same(self) -> bool:
        return not (self.missing or self.extra or self.drifted)


def diff(a: str | Path, b: str | Path, *, progress: ProgressOption = False) -> list[Difference]:
    """Compare the caches `a` and `b` space by space. The hash of each shard is checked when it is
    read.

    Shards whose records name the same bytes are not read. Raises BadInput where there is no cache,
    DamagedCache for bytes that do not match their record.
    """
    progress = resolve_progress(progress)
    caches = existing_cache(a), existing_cache(b)
    spaces_a, spaces_b = ({space.name: space for space in cache.spaces()} for cache in caches)
    names = sorted(spaces_a.keys() | spaces_b.keys())
    differences = []
    for number, name in enumerate(names, 1):
        progress(number, len(names), "diff")
        known = spaces_a.get(name) or spaces_b[name]
        space_a = spaces_a.get(name) or caches[0].space(known.key)
        space_b = spaces_b.get(name) or caches[1].space(known.key)
        drifted, relative = _drift(space_a, space_b)
        differences.append(
            Difference(
                space=name,
                view=known.view,
                backbone=known.backbone,
                setting=setting_beside_names(known.key),
                rows_a=len(space_a.rows),
                rows_b=len(space_b.rows),
                missing=len(space_a.rows.keys() - space_b.rows.keys()),
                extra=len(space_b.rows.keys() - space_a.rows.keys()),
                drifted=drifted,
                relative=relative,
            )
        )
    return sorted(differences, key=lambda d: (d.view, d.backbone or "", d.space))


def _drift(a: Space, b: Space) -> tuple[int, float]:
    """The number of rows in both that differ, and the greatest relative difference."""
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
        old, decodable_a = a.vectors(items)
        new, decodable_b = b.vectors(items)
        same = (old.view(np.uint32) == new.view(np.uint32)).all(axis=1)
        same &= decodable_a == decodable_b
        drifted += int((~same).sum())
        relative = max(relative, compared(old, new)[1])
    return drifted, relative
