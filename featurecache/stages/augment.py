"""Augment: keep the pictures of a view, lossless, so that many networks can look at them later."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featurecache import records
from featurecache.errors import BadInput
from featurecache.executors import Progress, checked_workers, silent
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, original
from featurecache.stages.featurize import PIXELS, bound_of, timed, timed_each
from featurecache.stages.make import Batch, checked_part, make, of_part, rows_of, shards_of
from featurecache.stages.resolve import resolve

SHARD_ROWS = 256  # 10-40 MB of pictures
BATCH_ROWS = 16


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


def augment(
    data: str | Path = "data",
    *,
    policy: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    workers: int | None = None,
    seed: int = 0,
    shard_rows: int = SHARD_ROWS,
    part: str | None = None,
    progress: Progress = silent,
) -> Augmented:
    """Keep the pictures of these views in the cache, as PNG in shards under the same laws as
    vectors. `featurize` then covers them without being told. `part` (`i/n`) is one job's
    share of the missing shards, of n at one cache. Raises BadInput before any work.
    """
    start = time.perf_counter()
    if not policy:
        raise BadInput("augment needs --policy NAME_N; `featurecache policies` lists them")
    workers = checked_workers(workers)
    mine = None if part is None else checked_part(part)
    request = resolve(data, cache, policy, seed=seed, progress=progress)
    sources = request.sources
    spaces = [request.picture_space(view) for view in request.views]
    missing = shards_of(sources, spaces, shard_rows)
    todo = missing if mine is None else of_part(missing, sources, shard_rows, mine)
    total, hits = rows_of(todo), len(sources) * len(spaces) - rows_of(missing)
    computed = 0
    spent = dict.fromkeys(("pictures", "decode", "augment", "disk"), 0.0)

    def show(waiting: int = 0) -> None:
        bound = f"; bound by {bound_of(spent)}" if computed else ""
        others = f"; waiting for {waiting} shards of other processes" if waiting else ""
        progress(computed, total, f"augment ({hits:,} hits{bound}{others})")

    def found(rows: int, waiting: int) -> None:
        nonlocal hits, total
        hits, total = hits + rows, total - rows
        show(waiting)

    for space in spaces:
        if space.rows:
            space.describe()  # a no-op, unless a damaged description was set aside
    if todo:
        request.cache.create()
        shards = make(todo, spaces, sources, BATCH_ROWS, render, request.views, workers, found)
        for shard, batches in shards:
            began = time.perf_counter()
            pictures: list[list[bytes]] = [[] for _ in shard.spaces]
            failed: dict[bytes, str] = {}
            for made in timed_each(batches, spent, "pictures"):
                failed |= made.failed
                spent["decode"] += made.decode
                spent["augment"] += made.augment
                for kept, new in zip(pictures, made.pictures, strict=True):
                    kept += new
                    computed += len(new)
                show()
            took = time.perf_counter() - began
            with timed(spent, "disk"):
                for s, kept in zip(shard.spaces, pictures, strict=True):
                    spaces[s].commit(shard.items, arrays_of(kept), failed, provenance(), took)
    spaces = [request.picture_space(view) for view in request.views]
    seconds = time.perf_counter() - start
    return Augmented(
        computed,
        hits,
        request.failures(spaces),
        round(seconds, 3),
        round(computed / seconds, 1),
        bound_of(spent) if computed else "",
        {part: round(value, 3) for part, value in spent.items()},
        [space.summary() for space in spaces],
    )


def arrays_of(pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a shard of encoded pictures, none of them for a bad image."""
    return {
        "pictures": np.frombuffer(b"".join(pictures), np.uint8),
        "offsets": np.cumsum([0, *map(len, pictures)], dtype=np.uint64),
    }


def provenance() -> dict[str, str]:
    """What may shift a picture's last bits and is not in its key."""
    return {"pictures": "png"} | records.versions(*PIXELS)


@dataclass(frozen=True)
class Rendered:
    """The PNG bytes of each view of each row of a batch; none for an image that failed."""

    pictures: list[list[bytes]]
    failed: dict[bytes, str]
    decode: float  # seconds, with reading
    augment: float  # with encoding


def render(views: tuple[View, ...], batch: Batch) -> Rendered:
    """Decode each image of a batch once, make and encode each view of it."""
    spent = {"decode": 0.0, "augment": 0.0}
    made: list[list[bytes]] = [[] for _ in batch.spaces]
    failed = {}
    for sample, item in batch.rows:
        try:
            with timed(spent, "decode"):
                pixels = original(sample, item)
        except Undecodable as error:
            failed[item] = str(error)
            for pictures in made:
                pictures.append(b"")
            continue
        with timed(spent, "augment"):
            for pictures, v in zip(made, batch.spaces, strict=True):
                pictures.append(_png(views[v].picture(pixels, item)))
    return Rendered(made, failed, spent["decode"], spent["augment"])


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    # Level 1: noise hardly packs, so higher levels cost time and save little.
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
