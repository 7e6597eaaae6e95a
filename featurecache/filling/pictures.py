"""Rendering and encoding the pictures of views, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.errors import SourceChanged
from featurecache.executors.pool import checked_workers
from featurecache.features.spaces import Space
from featurecache.filling.claims import ShardWork, claimed_shards, shard_results
from featurecache.filling.shard_plan import Batch, Shard
from featurecache.filling.tally import ShardResult
from featurecache.filling.timing import timed, timed_each
from featurecache.images import pngs
from featurecache.images.canary import pixel_provenance
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, original

BATCH_ROWS = 16

SPENT = ("pictures", "decode", "augment", "disk")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs to know: what to render, and where to commit it."""

    spaces: tuple[Space, ...]
    views: tuple[View, ...]  # of each space
    workers: int | None


class Augmenter:
    """The Maker of pictures."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._workers = checked_workers(job.workers)

    def work(
        self, shards: Iterable[Shard | None], report_rows: Callable[[int], None]
    ) -> Generator[ShardResult, None, None]:
        job = self._job
        claimed = claimed_shards(shards, job.spaces, BATCH_ROWS, render, job.views, self._workers)
        return shard_results(claimed, lambda work: self._make(work, report_rows))

    def _make(self, work: ShardWork[Rendered], report_rows: Callable[[int], None]) -> ShardResult:
        job, shard = self._job, work.shard
        start = time.perf_counter()
        spent = dict.fromkeys(SPENT, 0.0)
        pictures: list[list[bytes]] = [[] for _ in shard.spaces]
        failed: list[dict[bytes, str]] = [{} for _ in shard.spaces]
        changed: dict[bytes, SourceChanged] = {}
        for batch in timed_each(work.batches, spent, "pictures"):
            changed |= batch.changed
            spent["decode"] += batch.decode
            spent["augment"] += batch.augment
            for i, (encoded, bad) in enumerate(zip(batch.pictures, batch.failed, strict=True)):
                pictures[i] += encoded
                failed[i] |= bad
            report_rows(sum(map(len, batch.pictures)))
        seconds = time.perf_counter() - start
        items = [item for item in shard.items if item not in changed]
        with timed(spent, "disk"):
            for s, encoded, bad in (
                zip(shard.spaces, pictures, failed, strict=True) if items else ()
            ):
                arrays = arrays_of(encoded)
                made_by = provenance(job.views[s])
                job.spaces[s].commit(items, arrays, bad, made_by, seconds)
        reasons = {error.name: error.reason for error in changed.values()}
        return ShardResult(
            rows=len(items) * len(shard.spaces),
            hits=work.committed,
            busy=work.busy,
            spent=spent,
            changed=reasons,
        )


def arrays_of(pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a shard of encoded pictures. The picture of a bad image is empty."""
    return {
        "pictures": np.frombuffer(b"".join(pictures), np.uint8),
        "offsets": np.cumsum([0, *map(len, pictures)], dtype=np.uint64),
    }


def provenance(view: View) -> dict[str, str]:
    """What can change the last bits of a picture but is not in its key (law 2, "The key says
    everything")."""
    return {"pictures": "png"} | pixel_provenance(view)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The PNG bytes per view and row of a batch. They are empty for an image that failed in that
    view. An image that changed after it was listed has no row."""

    pictures: list[list[bytes]]
    failed: list[dict[bytes, str]]  # per view
    changed: dict[bytes, SourceChanged]
    decode: float  # seconds, including reading
    augment: float  # seconds, including encoding


def render(views: tuple[View, ...], batch: Batch) -> Rendered:
    """Decode each image of a batch once, then render and encode its views."""
    spent = {"decode": 0.0, "augment": 0.0}
    made: list[list[bytes]] = [[] for _ in batch.spaces]
    failed: list[dict[bytes, str]] = [{} for _ in batch.spaces]
    changed = {}
    for sample, item in batch.rows:
        pixels: np.ndarray | Undecodable
        try:
            with timed(spent, "decode"):
                pixels = original(sample, item, views[0].jpeg_side)  # all have the same
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
                    made[i].append(pngs.encode(views[v].picture(pixels, item)))
                except Undecodable as error:
                    failed[i][item] = str(error)
                    made[i].append(b"")
    return Rendered(
        pictures=made,
        failed=failed,
        changed=changed,
        decode=spent["decode"],
        augment=spent["augment"],
    )
