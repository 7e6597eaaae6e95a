"""Quickstart: the whole product on an embedded dataset, offline, in a minute or two.

It calls stages in order, as `run` does from a recipe file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from featurecache.executors.progress_bars import ProgressOption
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head

VIEWS = ("none", "spatial_1", "color_1")


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """`table` has one row per schedule: {schedule, run, <view>: top-1 on val through it}."""

    computed: int
    hits: int
    seconds: float
    table: list[dict[str, str | float]]


def quickstart(
    *,
    cache: str | Path = "data/cache",
    runs: str | Path = "runs",
    workers: int | None = None,
    progress: ProgressOption = False,
) -> QuickstartResult:
    """Cache vectors of scikit-learn's digits by EfficientNet-Lite0 in the views none, spatial_1 and
    color_1, and train two heads: one on clean images only, one under a curriculum. Both are tested
    on all three views.

    A second call finds everything in the cache and takes a few seconds.
    """
    start = time.perf_counter()
    result = featurize(
        "digits",
        policy=VIEWS,
        backbone="efficientnet_lite0",
        cache=cache,
        workers=workers,
        progress=progress,
    )
    table: list[dict[str, str | float]] = []
    for schedule in ("quickstart_clean", "quickstart"):
        run = train_head(
            f"{schedule}.yaml",
            data="digits",
            cache=cache,
            runs=runs,
            progress=progress,
        ).run
        accuracies = {
            view: evaluate(run, view=view, data="digits", cache=cache).top1 for view in VIEWS
        }
        table.append({"schedule": f"{schedule}.yaml", "run": run, **accuracies})
    seconds = round(time.perf_counter() - start, 1)
    return QuickstartResult(
        computed=result.computed, hits=result.hits, seconds=seconds, table=table
    )
