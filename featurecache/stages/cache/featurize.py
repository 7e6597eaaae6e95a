"""Featurize: compute every missing row of every requested space once, and commit it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.executors.pool import checked_workers
from featurecache.features.engines import (
    choose_engine,
    devices,
)
from featurecache.features.settings import BackboneSetting, check_keywords
from featurecache.features.space_locks import reserved
from featurecache.features.spaces import Space
from featurecache.filling.dispatch import check_where, dispatch
from featurecache.filling.request import resolve_request
from featurecache.filling.shard_plan import check_shard_rows, parse_part, plan_shards
from featurecache.filling.tally import Tally
from featurecache.filling.vectors import SPENT, Featurizer, Job, Preparation
from featurecache.images.canary import pixel_canary
from featurecache.images.views import View

SHARD_ROWS = 512  # a killed run loses at most one shard: 2 s of Lite0, 26 s of B3 on two cores


@dataclass(frozen=True)
class Featurized:
    """What `featurize` did. Rows are counted, one for each image, view and backbone."""

    computed: int
    hits: int
    failed: list[dict[str, str]]  # {path, reason}; their slots are kept, in zeros
    seconds: float
    images_per_second: float  # rows computed, over the whole time
    bound: str  # what decided the pace: decode, augment, network or disk; "" where nothing was done
    spent: dict[str, float]  # seconds: waited for network, disk and pictures; workers' own on the
    # pictures, by decode (with reading and resizing) and augment
    spaces: list[dict[str, object]]
    # Another precision than f32 has a cost, which is measured (law 9): for each backbone, the least
    # cosine between its vectors and those in f32, on the first batch.
    least_cosine: dict[str, float]
    notes: list[str]


def featurize(
    data: str | Path = "data",
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    weights: str | Path | None = None,
    engine: str = "auto",
    precision: str = "f32",
    workers: int | None = None,
    seed: int = 0,
    shard_rows: int = SHARD_ROWS,
    part: str | None = None,
    executor: str = "local",
    address: str | None = None,
    gpus_per_worker: float | None = None,
    max_workers: int | None = None,
    progress: Progress = silent,
    **setting: Unpack[BackboneSetting],
) -> Featurized:
    """Fill the cache with the vectors of these views under these backbones.

    Computes the images that no committed shard holds, and nothing else (law 3): stopped at any
    moment and started again, it resumes, and ends with the same bytes. Without `policy`: `none`
    and every view that `augment` has stored; with it, views are augmented on the fly, to the same
    vectors. `part` (`i/n`) is job i's share of the missing shards, where n jobs fill one cache
    together. `executor` is where the work runs: `local`, `processes` of this machine or a `ray`
    cluster (docs/cluster.md), with the three settings that follow it. `setting` is the
    backbone's. Raises BadInput before any work, FeatureCacheError for shards that no worker could
    make.
    """
    check_keywords(setting, BackboneSetting, "featurize")
    start = time.perf_counter()
    if not backbone:
        raise BadInput("featurize needs --backbone NAME; `featurecache backbones` lists them")
    if workers is not None or executor == "local":  # else each worker counts its own cores
        workers = checked_workers(workers)
    own_part = None if part is None else parse_part(part)
    check_shard_rows(shard_rows)
    where = check_where(executor, address, gpus_per_worker, max_workers)
    if executor != "ray":  # which runs on other machines
        choose_engine(engine, precision)
    request = resolve_request(
        data, cache, policy, backbone, weights=weights, precision=precision, seed=seed,
        progress=progress, **setting,
    )  # fmt: skip
    targets = [(v, b) for v in range(len(request.views)) for b in range(len(request.backbones))]
    spaces = [request.vector_space(request.views[v], request.backbones[b]) for v, b in targets]
    pictures = [request.picture_space(view) for view in request.views]
    if request.images and not request.cache.exists:
        request.cache.create()
    with reserved([*spaces, *pictures]):  # before their rows are read
        missing = plan_shards(request.dataset.samples, request.items, spaces, shard_rows)
        todo = missing if own_part is None else missing.of_part(own_part, shard_rows)
        hits = request.images * len(spaces) - missing.rows
        tally = Tally("featurize", todo.rows, hits, progress)
        for space in spaces:
            if space.records:
                space.describe()  # a no-op, unless a damaged description was set aside
        if todo:
            request.cache.check()
            request.cache.create()
            progress(0, todo.rows, "loading the network")
            needed = {targets[s][1] for s in todo.spaces}
            job = Job(
                tuple(spaces),
                Preparation(
                    request.views,
                    tuple(pictures),
                    tuple(backbone.preprocess for backbone in request.backbones),
                    tuple(targets),
                ),
                {b: request.backbones[b] for b in sorted(needed)},
                engine,
                precision,
                workers,
            )
            gpus = devices(engine, precision) if executor == "processes" else 0
            dispatch(Featurizer, job, todo, where, request.cache.store, gpus, tally)
        # The result describes what is on the disk now, not what was meant to be there.
        spaces = [request.vector_space(request.views[v], request.backbones[b]) for v, b in targets]
        summaries = [space.summary() for space in spaces]
        if request.images:
            request.cache.check()
    seconds = time.perf_counter() - start
    return Featurized(
        tally.computed,
        tally.hits,
        [*request.failures(spaces), *tally.failures()],
        round(seconds, 3),
        round(tally.computed / seconds, 1),
        tally.bound if tally.computed else "",
        {part: round(tally.spent[part], 3) for part in SPENT},
        summaries,
        tally.least_cosine,
        [
            *(note for backbone in request.backbones for note in backbone.notes),
            *(pixel_notes(spaces) if tally.computed else []),
            *tally.notes(request.dataset),
        ],
    )


def pixel_notes(spaces: Iterable[Space]) -> list[str]:
    """What there is to say of spaces whose rows come from machines that make other pixels."""
    return [
        f"view {space.view}, backbone {space.backbone or '(pictures)'}: its rows come from "
        f"machines that make other pixels (canaries {', '.join(space.pixel_canaries)}); "
        "`featurecache verify --recompute 100` measures by how much vectors differ"
        for space in spaces
        if len(space.pixel_canaries) > 1
    ]


def other_pixels(view: View, space: Space) -> str:
    """What there is to say where a space's pixels are not all those that this machine makes."""
    recorded = space.pixel_canaries
    if not recorded or recorded == [pixel_canary(view)]:
        return ""
    return f"pixel canaries {', '.join(recorded)}; this machine's is {pixel_canary(view)}"
