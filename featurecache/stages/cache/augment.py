"""Augment: store the pictures of a view, lossless, so that many networks can use them later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.executors.pool import checked_workers
from featurecache.features.space_locks import reserved
from featurecache.filling.dispatch import check_where, dispatch
from featurecache.filling.pictures import SPENT, Augmenter, Job
from featurecache.filling.request import resolve_request
from featurecache.filling.shard_plan import check_shard_rows, parse_part, plan_shards
from featurecache.filling.tally import Tally
from featurecache.stages.cache.featurize import pixel_notes

SHARD_ROWS = 256  # 10-40 MB of pictures


@dataclass(frozen=True)
class Augmented:
    """What `augment` did; counted in pictures."""

    computed: int
    hits: int
    failed: list[dict[str, str]]  # {path, reason}
    seconds: float
    images_per_second: float
    bound: str  # what decided the pace: decode, augment or disk; "" where nothing was done
    spent: dict[str, float]  # seconds: waited for pictures and disk; workers' own on the pictures,
    # by decode (with reading) and augment (with encoding)
    spaces: list[dict[str, object]]
    notes: list[str]


def augment(
    data: str | Path = "data",
    *,
    policy: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    workers: int | None = None,
    seed: int = 0,
    shard_rows: int = SHARD_ROWS,
    part: str | None = None,
    executor: str = "local",
    address: str | None = None,
    gpus_per_worker: float | None = None,
    max_workers: int | None = None,
    progress: Progress = silent,
) -> Augmented:
    """Store the pictures of these views in the cache, as PNG in shards under the same laws as
    vectors. `featurize` then includes them by default. `part`, `executor` and its settings, and
    the errors, are those of `featurize`.
    """
    start = time.perf_counter()
    if not policy:
        raise BadInput("augment needs --view NAME_N; `featurecache policies` lists them")
    if workers is not None or executor == "local":  # else each worker counts its own cores
        workers = checked_workers(workers)
    own_part = None if part is None else parse_part(part)
    check_shard_rows(shard_rows)
    where = check_where(executor, address, gpus_per_worker, max_workers)
    request = resolve_request(data, cache, policy, seed=seed, progress=progress)
    spaces = [request.picture_space(view) for view in request.views]
    if request.images and not request.cache.exists:
        request.cache.create()
    with reserved(spaces):  # before their rows are read
        missing = plan_shards(request.dataset.samples, request.items, spaces, shard_rows)
        todo = missing if own_part is None else missing.of_part(own_part, shard_rows)
        hits = request.images * len(spaces) - missing.rows
        tally = Tally("augment", todo.rows, hits, progress)
        for space in spaces:
            if space.records:
                space.describe()  # a no-op, unless a damaged description was set aside
        if todo:
            request.cache.check()
            request.cache.create()
            job = Job(tuple(spaces), request.views, workers)
            dispatch(Augmenter, job, todo, where, request.cache.store, 0, tally)
        spaces = [request.picture_space(view) for view in request.views]
        summaries = [space.summary() for space in spaces]
        if request.images:
            request.cache.check()
    seconds = time.perf_counter() - start
    return Augmented(
        tally.computed,
        tally.hits,
        [*request.failures(spaces), *tally.failures()],
        round(seconds, 3),
        round(tally.computed / seconds, 1),
        tally.bound if tally.computed else "",
        {part: round(tally.spent[part], 3) for part in SPENT},
        summaries,
        [*(pixel_notes(spaces) if tally.computed else []), *tally.notes(request.dataset)],
    )
