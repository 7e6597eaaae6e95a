"""Augment: keep the pictures of a view, lossless, so that many networks can look at them later."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featurecache.errors import BadInput, SourceChanged
from featurecache.executors import Progress, silent
from featurecache.executors.pool import checked_workers
from featurecache.features.spaces import Space, reserved
from featurecache.images.canary import pixel_provenance
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, original
from featurecache.stages.featurize import pixel_notes, timed, timed_each
from featurecache.stages.make import (
    Batch,
    Done,
    Shard,
    Tally,
    checked_part,
    checked_shard_rows,
    checked_where,
    make,
    shards_of,
    share,
)
from featurecache.stages.resolve import resolve

SHARD_ROWS = 256  # 10-40 MB of pictures
BATCH_ROWS = 16
SPENT = ("pictures", "decode", "augment", "disk")


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
    """Keep the pictures of these views in the cache, as PNG in shards under the same laws as
    vectors. `featurize` then covers them without being told. `part`, `executor` and its settings
    are as in `featurize`; errors too.
    """
    start = time.perf_counter()
    if not policy:
        raise BadInput("augment needs --policy NAME_N; `featurecache policies` lists them")
    if workers is not None or executor == "local":  # else every worker knows its own cores
        workers = checked_workers(workers)
    mine = None if part is None else checked_part(part)
    checked_shard_rows(shard_rows)
    where = checked_where(executor, address, gpus_per_worker, max_workers)
    request = resolve(data, cache, policy, seed=seed, progress=progress)
    spaces = [request.picture_space(view) for view in request.views]
    if request.images and not request.cache.exists:
        request.cache.create()
    with reserved(spaces):  # before it is read which rows they hold
        missing = shards_of(request.dataset.samples, request.items, spaces, shard_rows)
        todo = missing if mine is None else missing.of_part(mine, shard_rows)
        hits = request.images * len(spaces) - missing.rows
        tally = Tally("augment", todo.rows, hits, progress)
        for space in spaces:
            if space.records:
                space.describe()  # a no-op, unless a damaged description was set aside
        if todo:
            request.cache.check()
            request.cache.create()
            job = Job(tuple(spaces), request.views, workers)
            share(Augmenter, job, todo, where, request.cache.root, 0, tally)
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


@dataclass(frozen=True)
class Job:
    """What every worker of a crew knows: what it makes, and where it goes."""

    spaces: tuple[Space, ...]
    views: tuple[View, ...]  # of each space
    workers: int | None


class Augmenter:
    """The Maker of pictures."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._workers = checked_workers(job.workers)

    def work(
        self, shards: Iterable[Shard | None], told: Callable[[int], None]
    ) -> Generator[Done, None, None]:
        job = self._job
        made = make(shards, job.spaces, BATCH_ROWS, render, job.views, self._workers)
        with contextlib.closing(made):
            for shard, batches, found, left in made:
                began = time.perf_counter()
                spent = dict.fromkeys(SPENT, 0.0)
                pictures: list[list[bytes]] = [[] for _ in shard.spaces]
                failed: list[dict[bytes, str]] = [{} for _ in shard.spaces]
                changed: dict[bytes, SourceChanged] = {}
                for batch in timed_each(batches, spent, "pictures"):
                    changed |= batch.changed
                    spent["decode"] += batch.decode
                    spent["augment"] += batch.augment
                    for i, (new, bad) in enumerate(zip(batch.pictures, batch.failed, strict=True)):
                        pictures[i] += new
                        failed[i] |= bad
                    told(sum(map(len, batch.pictures)))
                took = time.perf_counter() - began
                items = [item for item in shard.items if item not in changed]
                with timed(spent, "disk"):
                    for s, kept, bad in (
                        zip(shard.spaces, pictures, failed, strict=True) if items else ()
                    ):
                        arrays = arrays_of(kept)
                        made_by = provenance(job.views[s])
                        job.spaces[s].commit(items, arrays, bad, made_by, took)
                reasons = {error.name: error.reason for error in changed.values()}
                computed = len(items) * len(shard.spaces)
                yield Done(computed, found, left, spent, changed=reasons)


def arrays_of(pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a shard of encoded pictures, none of them for a bad image."""
    return {
        "pictures": np.frombuffer(b"".join(pictures), np.uint8),
        "offsets": np.cumsum([0, *map(len, pictures)], dtype=np.uint64),
    }


def provenance(view: View) -> dict[str, str]:
    """What may shift a picture's last bits and is not in its key."""
    return {"pictures": "png"} | pixel_provenance(view)


@dataclass(frozen=True)
class Rendered:
    """The PNG bytes of each view of each row of a batch; none for an image that failed there. One
    that changed since it was listed has no row."""

    pictures: list[list[bytes]]
    failed: list[dict[bytes, str]]  # of each view
    changed: dict[bytes, SourceChanged]
    decode: float  # seconds, with reading
    augment: float  # with encoding


def render(views: tuple[View, ...], batch: Batch) -> Rendered:
    """Decode each image of a batch once, make and encode each view of it."""
    spent = {"decode": 0.0, "augment": 0.0}
    made: list[list[bytes]] = [[] for _ in batch.spaces]
    failed: list[dict[bytes, str]] = [{} for _ in batch.spaces]
    changed = {}
    for sample, item in batch.rows:
        pixels: np.ndarray | Undecodable
        try:
            with timed(spent, "decode"):
                pixels = original(sample, item)
        except Undecodable as error:
            pixels = error
        except SourceChanged as error:
            changed[item] = error
            continue
        with timed(spent, "augment"):
            for i, v in enumerate(batch.spaces):
                try:
                    if isinstance(pixels, Undecodable):
                        raise pixels
                    made[i].append(_png(views[v].picture(pixels, item)))
                except Undecodable as error:
                    failed[i][item] = str(error)
                    made[i].append(b"")
    return Rendered(made, failed, changed, spent["decode"], spent["augment"])


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    # Level 1: noise hardly packs, so higher levels cost time and save little.
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
