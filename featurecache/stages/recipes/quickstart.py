"""Quickstart: the whole product on an embedded dataset, offline, in a minute or two.

It calls stages in order, as `run` does from a recipe file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.executors.progress_bars import ProgressOption
from featurecache.heads.defaults import CandidateRow
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.train_head import train_head

if TYPE_CHECKING:
    from featurecache.heads.baseline_heads import Baseline

VIEWS = ("none", "mild_1")


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """`table` has the row of the chosen head: {schedule, run, none: top-1 on val}. `candidates`,
    `chosen` and `baseline` are those of train-head."""

    computed: int
    hits: int
    seconds: float
    table: list[dict[str, str | float]]
    candidates: list[CandidateRow] = field(default_factory=list)
    chosen: int | None = None
    baseline: Baseline | None = None


def quickstart(
    *,
    cache: str | Path = "data/cache",
    runs: str | Path = "runs",
    workers: int | None = None,
    progress: ProgressOption = False,
) -> QuickstartResult:
    """Cache vectors of scikit-learn's digits by EfficientNet-Lite0 in the views none and mild_1,
    and train a head without a schedule.

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
    # The views are named, since the cache may hold more of them.
    trained = train_head(
        data="digits",
        view=VIEWS,
        backbone="efficientnet_lite0",
        cache=cache,
        runs=runs,
        progress=progress,
    )
    return QuickstartResult(
        computed=result.computed,
        hits=result.hits,
        seconds=round(time.perf_counter() - start, 1),
        table=[{"schedule": "default.yaml", "run": trained.run, "none": trained.last["top1"]}],
        candidates=trained.candidates,
        chosen=trained.chosen,
        baseline=trained.baseline,
    )
