"""Pictures of views, rendered and encoded, shard by shard."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featurecache.errors import SourceChanged
from featurecache.executors.pool import checked_workers
from featurecache.features.spaces import Space
from featurecache.filling.claims import claimed_shards
from featurecache.filling.shard_plan import Batch, Shard
from featurecache.filling.tally import ShardResult
from featurecache.filling.timing import timed, timed_each
from featurecache.images.canary import pixel_provenance
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, original

BATCH_ROWS = 16

SPENT = ("pictures", "decode", "augment", "disk")


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
    ) -> Generator[ShardResult, None, None]:
        job = self._job
        made = claimed_shards(shards, job.spaces, BATCH_ROWS, render, job.views, self._workers)
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
                yield ShardResult(computed, found, left, spent, changed=reasons)


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
