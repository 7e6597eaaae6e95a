"""Computing the vectors of views with one or more networks, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from featurecache import keys
from featurecache.errors import FeatureCacheError, SourceChanged
from featurecache.executors.pool import checked_workers
from featurecache.features.backbones import Backbone
from featurecache.features.engines import (
    Engine,
    least_cosine,
    open_engine,
    run_rows,
    start_rows,
)
from featurecache.features.preprocess import Preprocess
from featurecache.features.soundness import VectorCheck
from featurecache.features.spaces import Space
from featurecache.filling.claims import ShardWork, claimed_shards, shard_results
from featurecache.filling.shard_plan import Batch, Shard
from featurecache.filling.tally import ShardResult
from featurecache.filling.timing import Made, timed, timed_each
from featurecache.images.canary import pixel_provenance
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import Sample
from featurecache.images.views import View, original

SPENT = ("pictures", "decode", "augment", "network", "disk")

Started = TypeVar("Started")

Waiting = Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How each view's pictures are preprocessed, and made or read, if `augment` has stored them."""

    views: tuple[View, ...]
    picture_spaces: tuple[Space, ...] = ()  # per view, as stored by `augment`; () ignores these
    preprocesses: tuple[Preprocess, ...]
    spaces: tuple[tuple[int, int], ...]  # (view, preprocess) numbers per space


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The pictures of a batch for each space, (n, S, S, 3) uint8. They are zeros for an image that
    failed in that space or changed after it was listed."""

    pixels: list[np.ndarray]
    decoded: list[np.ndarray]  # (n,) bool per space
    failed: list[dict[bytes, str]]  # per space: an image may fail in one view only
    changed: dict[bytes, SourceChanged]
    decode: float  # seconds, including reading and resizing
    augment: float  # seconds


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs to know: what to compute, how, and where to commit it."""

    spaces: tuple[Space, ...]
    preparation: Preparation
    backbones: dict[int, Backbone]  # number -> backbone, for the spaces that lack rows
    engine: str
    precision: str
    workers: int | None


class Featurizer:
    """The Maker of vectors. Each network is opened once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._workers = checked_workers(job.workers)
        self._engines = {
            b: open_engine(backbone, job.engine, job.precision)
            for b, backbone in job.backbones.items()
        }
        self._cosines: dict[str, float] = {}

    def work(
        self, shards: Iterable[Shard | None], report_rows: Callable[[int], None]
    ) -> Generator[ShardResult, None, None]:
        job = self._job
        size = next(iter(self._engines.values())).batch_rows  # all engines are of one kind
        claimed = claimed_shards(shards, job.spaces, size, prepare, job.preparation, self._workers)
        return shard_results(claimed, lambda work: self._make(work, report_rows))

    def _make(self, work: ShardWork[Prepared], report_rows: Callable[[int], None]) -> ShardResult:
        job, targets, shard = self._job, self._job.preparation.spaces, work.shard
        start = time.perf_counter()
        spent = dict.fromkeys(SPENT, 0.0)
        rows: dict[int, list[np.ndarray]] = {s: [] for s in shard.spaces}
        failed: dict[int, dict[bytes, str]] = {s: {} for s in shard.spaces}
        changed: dict[bytes, SourceChanged] = {}
        checks = {s: vector_check(job.spaces[s]) for s in shard.spaces}
        running = [self._engines[targets[s][1]] for s in shard.spaces]

        def begin(batch: Prepared) -> list[Waiting]:
            with timed(spent, "network"):
                pairs = zip(running, batch.pixels, strict=True)
                return [start_rows(engine, pixels) for engine, pixels in pairs]

        for batch, started in one_ahead(timed_each(work.batches, spent, "pictures"), begin):
            changed |= batch.changed
            spent["decode"] += batch.decode
            spent["augment"] += batch.augment
            with timed(spent, "network"):
                for i, (s, wait) in enumerate(zip(shard.spaces, started, strict=True)):
                    rows[s].append(wait())
                    checks[s].add(batch.pixels[i], rows[s][-1], batch.decoded[i])
                    failed[s] |= batch.failed[i]
            self._compare(shard.spaces, rows, batch)
            report_rows(sum(len(rows[s][-1]) - len(batch.changed) for s in shard.spaces))
        for check in checks.values():
            check.finish()
        with timed(spent, "disk"):
            items = [item for item in shard.items if item not in changed]
            for s, used in zip(shard.spaces, running, strict=True) if items else ():
                backbone = job.backbones[targets[s][1]]
                features = vectors_of(shard.items, rows[s], failed[s], backbone)
                if changed:
                    features = features[[item not in changed for item in shard.items]]
                seconds = time.perf_counter() - start
                made_by = provenance(used, job.preparation, targets[s][0], items)
                arrays = {"features": features}
                job.spaces[s].commit(items, arrays, failed[s], made_by, seconds)
        return ShardResult(
            rows=len(items) * len(shard.spaces),
            hits=work.committed,
            busy=work.busy,
            spent=spent,
            least_cosine=self._cosines,
            changed={error.name: error.reason for error in changed.values()},
        )

    def _compare(
        self, spaces: Sequence[int], rows: Mapping[int, list[np.ndarray]], batch: Prepared
    ) -> None:
        """Measure the cost of the precision on each network's first batch (law 9, "f32 unless
        asked")."""
        if self._job.precision == "f32":
            return
        eager = self._job.engine.removesuffix("-compiled")  # one batch is not worth compiling
        for s, pixels in zip(spaces, batch.pixels, strict=True):
            backbone = self._job.backbones[self._job.preparation.spaces[s][1]]
            if backbone.name not in self._cosines:
                exact = run_rows(open_engine(backbone, eager, "f32"), pixels)
                self._cosines[backbone.name] = least_cosine(rows[s][0], exact)


def one_ahead(
    made: Iterable[Made], begin: Callable[[Made], Started]
) -> Iterator[tuple[Made, Started]]:
    """Yield each batch of `made` with the result of `begin(batch)`, but only after the next batch
    has begun, so that the device always has a batch waiting."""
    pending: list[tuple[Made, Started]] = []
    for batch in made:
        pending.append((batch, begin(batch)))
        if len(pending) == 2:
            yield pending.pop(0)
    yield from pending


def vector_check(space: Space) -> VectorCheck:
    return VectorCheck(f"view {space.view}, backbone {space.backbone}")


def vectors_of(
    items: Sequence[bytes],
    rows: Sequence[np.ndarray],
    failed: Collection[bytes],
    backbone: Backbone,
) -> np.ndarray:
    """The vectors (N, D) of a shard, or its maps (N, C, H, W), as they are stored, from the rows of
    its batches; zeros for images that failed. Raises FeatureCacheError for numbers that f16 lacks.
    """
    features: np.ndarray = np.concatenate(rows)
    features[[i for i, item in enumerate(items) if item in failed]] = 0
    if not backbone.shape:
        return features
    maps = features.reshape(len(features), *backbone.shape)
    if backbone.store == "f32":
        return maps
    with np.errstate(over="ignore"):
        short = maps.astype(np.float16)
    if not np.isfinite(short).all():
        raise FeatureCacheError(
            f"backbone {backbone.name}: maps of layer {backbone.layer} exceed the range of f16; "
            "use --store f32"
        )
    return short


def provenance(
    engine: Engine, preparation: Preparation, view: int, items: Sequence[bytes]
) -> dict[str, str]:
    """What can change the last bits of these vectors but is not in their key (law 2, "The key says
    everything").

    If `augment` has stored the view's pictures, the canaries are those of the machines that made
    them.
    """
    made = engine.provenance() | pixel_provenance(preparation.views[view])
    pictures = preparation.picture_spaces[view] if preparation.picture_spaces else None
    rows = [pictures.rows.get(item) for item in items] if pictures and pictures.records else []
    if pictures and any(rows):
        numbers = {row[0] for row in rows if row is not None}
        canaries = set().union(*(pictures.records[number].pixel_canaries for number in numbers))
        if None in rows:  # made on this machine
            canaries.add(made[keys.PIXEL_CANARY])
        made[keys.PIXEL_CANARY] = " ".join(sorted(canaries))
    return made


def prepare(preparation: Preparation, batch: Batch) -> Prepared:
    """Decode each image of a batch once, make each view once, and preprocess it per network."""
    start = time.perf_counter()
    spent = {"augment": 0.0}
    targets = [preparation.spaces[s] for s in batch.spaces]
    made = []
    for _, p in targets:
        size = preparation.preprocesses[p].input_size
        made.append(np.zeros((len(batch.rows), size, size, 3), np.uint8))
    decoded = [np.ones(len(batch.rows), bool) for _ in targets]
    failed: list[dict[bytes, str]] = [{} for _ in targets]
    changed = {}
    for row, (sample, item) in enumerate(batch.rows):
        try:
            pictures = _pictures(preparation, [v for v, _ in targets], sample, item, spent)
        except SourceChanged as error:
            changed[item] = error
            for mask in decoded:
                mask[row] = False
            continue
        for i, (v, p) in enumerate(targets):
            picture = pictures[v]
            if isinstance(picture, Undecodable):
                failed[i][item] = str(picture)
                decoded[i][row] = False
            else:
                made[i][row] = preparation.preprocesses[p](picture)
    seconds = time.perf_counter() - start
    return Prepared(
        pixels=made,
        decoded=decoded,
        failed=failed,
        changed=changed,
        decode=seconds - spent["augment"],
        augment=spent["augment"],
    )


def _pictures(
    preparation: Preparation,
    views: Sequence[int],
    sample: Sample,
    item: bytes,
    spent: dict[str, float],
) -> dict[int, np.ndarray | Undecodable]:
    """The image in each view, by the index of the view, or why it failed. Raises SourceChanged."""
    source: np.ndarray | Undecodable | None = None
    pictures: dict[int, np.ndarray | Undecodable] = {}
    for v in dict.fromkeys(views):
        try:
            stored = None
            if preparation.picture_spaces:
                stored = preparation.picture_spaces[v].picture(item)
            if stored:  # empty if the image failed: decoding the original gives the reason
                pictures[v] = decode(stored)
                continue
            if isinstance(source, Undecodable):
                pictures[v] = source
                continue
            if source is None:
                source = original(sample, item, preparation.views[v].jpeg_side)  # all have one
            with timed(spent, "augment"):
                pictures[v] = preparation.views[v].picture(source, item)
        except Undecodable as error:
            pictures[v] = error
            source = error if source is None and not stored else source
    return pictures
