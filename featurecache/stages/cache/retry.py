"""Retry: decode failed images again, for example with a newer decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import FeatureCacheError
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.space_files import SpaceSummary
from featurecache.features.space_locks import reserved
from featurecache.filling.recompute import Recomputer
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.samples import items_of, sources_of
from featurecache.lookup.caches import existing_cache
from featurecache.stages.cache.featurize import SHARD_ROWS


@dataclass(frozen=True, kw_only=True)
class Retried:
    """The result of `retry`: of the `failed` rows of images in the dataset, `mended` now have a
    vector or a picture. `left` lists `{path, reason}` of those that still fail."""

    failed: int
    mended: int
    left: list[dict[str, str]]
    spaces: list[SpaceSummary]  # those that changed


def retry(
    data: DataSource = "data",
    *,
    cache: str | Path = "data/cache",
    engine: str = "auto",
    weights: str | Path | None = None,
    progress: ProgressOption = False,
) -> Retried:
    """Decode the failed images of every space again, and add the rows of those that now succeed.

    A failed row belongs to an image's bytes, so `featurize` never tries it again, although a newer
    decoder may succeed. (A file that could not be read, or that has new bytes now, has no failed
    row; `featurize` handles it.) A repaired row takes precedence over the failed one
    (docs/format.md).
    """
    progress = resolve_progress(progress)
    opened = existing_cache(cache, data)
    dataset = open_dataset(data)
    items, _ = items_of(dataset.samples, progress)
    sources = sources_of(dataset.samples, items)
    recomputer = Recomputer(engine, weights)
    failed = mended = 0
    left: dict[str, str] = {}
    changed = []
    spaces = opened.spaces()
    for number, space in enumerate(spaces, 1):
        progress(number, len(spaces), "retry")
        with reserved([space]):
            rows = [(sources[item], item) for item in space.failures(sources)]
            failed += len(rows)
            decodable = []
            for start in range(0, len(rows), SHARD_ROWS):
                part = rows[start : start + SHARD_ROWS]
                try:
                    made = recomputer.make(space, part)
                except FeatureCacheError as error:
                    left |= {sample.id: str(error) for sample, _ in part}
                    continue
                left |= {
                    sample.id: made.failed[item] for sample, item in part if item in made.failed
                }
                decodable += [row for row in part if row[1] not in made.failed]
            if decodable:
                began = time.perf_counter()
                made = recomputer.make(space, decodable)
                took = time.perf_counter() - began
                recovered = [item for _, item in decodable]
                space.commit(recovered, made.arrays, {}, made.provenance, took)
                mended += len(decodable)
                changed.append(opened.space(space.key, space.view, space.backbone).summary())
    return Retried(
        failed=failed,
        mended=mended,
        left=[{"path": path, "reason": reason} for path, reason in sorted(left.items())],
        spaces=changed,
    )
