"""Filling spaces: computing and committing their missing rows, for `augment` and `featurize`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from featurecache.executors import Progress
from featurecache.executors.pool import checked_workers
from featurecache.features.settings import keywords_of
from featurecache.features.space_files import SpaceSummary
from featurecache.features.space_locks import reserved
from featurecache.features.spaces import Space
from featurecache.filling.dispatch import ExecutorSetting, Maker, Where, dispatch
from featurecache.filling.request import Request
from featurecache.filling.shard_plan import ShardPlan, check_shard_rows, parse_part, plan_shards
from featurecache.filling.tally import Tally
from featurecache.images.canary_memos import known_pixel_canary
from featurecache.images.datasets import names_of
from featurecache.images.views import View
from featurecache.seen_items import note_networks, note_sources
from featurecache.settings import command_line


class FillSetting(ExecutorSetting, total=False):
    """How missing rows are divided, and where they are computed: keywords of `augment` and
    `featurize`."""

    workers: int | None  # processes that make pictures; None: depends on each machine's cores
    shard_rows: int | None  # None: the default of the stage
    part: str | None  # `i/n`: the share of job i of n jobs that fill a cache together


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """The checked values of a FillSetting."""

    workers: int | None  # None: each worker of the executor counts its own cores
    shard_rows: int
    part: tuple[int, int] | None
    where: Where


def fill_options(setting: FillSetting, shard_rows: int) -> FillOptions:
    """The options from a setting; `shard_rows` is the default. Raises BadInput."""
    where = Where(**keywords_of(ExecutorSetting, setting))
    workers, part, rows = setting.get("workers"), setting.get("part"), setting.get("shard_rows")
    if workers is not None or where.executor == "local":
        workers = checked_workers(workers)
    options = FillOptions(
        workers=workers,
        shard_rows=check_shard_rows(shard_rows if rows is None else rows),
        part=None if part is None else parse_part(part),
        where=where,
    )
    where.check()
    return options


@dataclass(frozen=True, kw_only=True)
class FillTask:
    """What a command computes, and how."""

    command: str
    open_spaces: Callable[[], list[Space]]  # opens the spaces to fill, as they are on disk
    sources: Sequence[Space] = ()  # spaces that are read
    maker: Callable[[Any], Maker]
    make_job: Callable[[Sequence[Space], ShardPlan], Any]  # the maker's argument for these shards
    spent: Sequence[str]  # the parts of the work that are timed
    gpus: int = 0  # GPUs of this machine that the maker would use


@dataclass(frozen=True, kw_only=True)
class Filled:
    """The result of filling a cache, counted in rows: one per image and space."""

    computed: int
    hits: int
    failed: list[dict[str, str]]  # {path, reason}; their rows are zeros or empty pictures
    seconds: float
    images_per_second: float  # rows computed per second of the total time
    bound: str  # what limited the speed: decode, augment, network or disk; "" if nothing was done
    # Seconds that the run waited for pictures, the network and the disk, and seconds that the
    # workers spent on pictures: decode (with reading and resizing) and augment (with encoding).
    spent: dict[str, float]
    spaces: list[SpaceSummary]
    notes: list[str]


def fill(
    task: FillTask, request: Request, options: FillOptions, began: float, progress: Progress
) -> tuple[Filled, dict[str, float]]:
    """Compute the rows that the spaces of a task lack. `began` is the `time.perf_counter` of the
    start of the command.

    Returns the result, and Tally.least_cosine. Raises FeatureCacheError for shards that no worker
    could compute.
    """
    cache, rows = request.cache, options.shard_rows
    if request.images and not cache.exists:
        cache.create()
    note_sources(cache, request.views)
    note_networks(cache, request.runs)
    spaces = task.open_spaces()
    with reserved([*spaces, *task.sources]):  # before their rows are read
        missing = plan_shards(request.dataset.samples, request.items, spaces, rows)
        todo = missing if options.part is None else missing.of_part(options.part, rows)
        hits = request.images * len(spaces) - missing.rows
        tally = Tally(task.command, todo.rows, hits, progress)
        for space in spaces:
            if space.records:
                space.describe()  # a no-op, unless a damaged description was quarantined
        if todo:
            cache.check()
            cache.create()
            job = task.make_job(spaces, todo)
            dispatch(task.maker, job, todo, options.where, cache.store, task.gpus, tally)
        # The result describes what is on disk now, not what should be there.
        spaces = task.open_spaces()
        summaries = [space.summary() for space in spaces]
        if request.images:
            cache.check()
    seconds = time.perf_counter() - began
    filled = Filled(
        computed=tally.computed,
        hits=tally.hits,
        failed=[*request.failures(spaces), *tally.failures()],
        seconds=round(seconds, 3),
        images_per_second=round(tally.computed / seconds, 1),
        bound=tally.bound if tally.computed else "",
        spent={part: round(tally.spent[part], 3) for part in task.spent},
        spaces=summaries,
        notes=[
            *(_pixel_notes(request, spaces) if tally.computed else []),
            *tally.notes(request.dataset),
        ],
    )
    return filled, tally.least_cosine


def _pixel_notes(request: Request, spaces: Iterable[Space]) -> list[str]:
    """A note on each space whose rows come from machines that compute different pixels."""
    dataset = request.dataset
    options = {"data": names_of(dataset), "cache": request.cache.root, **dataset.columns}
    command = command_line("verify --recompute 100", **options)
    return [
        f"view {space.view}, backbone {space.backbone or '(pictures)'}: its rows come from "
        f"machines that compute different pixels (canaries {', '.join(space.pixel_canaries)}); "
        f"`{command}` measures how much the vectors differ"
        for space in spaces
        if len(space.pixel_canaries) > 1
    ]


def other_pixels(view: View, space: Space) -> str:
    """A note on a space, unless this machine would compute all its pixels; then empty."""
    recorded = space.pixel_canaries
    if not recorded or recorded == [known_pixel_canary(view)]:
        return ""
    return f"pixel canaries {', '.join(recorded)}; this machine's is {known_pixel_canary(view)}"
