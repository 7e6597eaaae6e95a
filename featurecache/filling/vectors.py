"""Vectors of views, computed by one or more networks, shard by shard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from featurecache import keys
from featurecache.errors import SourceChanged
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
from featurecache.filling.claims import claimed_shards
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


@dataclass(frozen=True)
class Preparation:
    """What every worker of a run knows: how a picture of each view is had and made ready."""

    views: tuple[View, ...]
    kept: tuple[Space, ...]  # beside `views`: where `augment` may have kept their pictures; or ()
    preprocesses: tuple[Preprocess, ...]
    spaces: tuple[tuple[int, int], ...]  # of each numbered space its (view, preprocess) numbers


@dataclass(frozen=True)
class Prepared:
    """(n, S, S, 3) uint8 for each space of a batch; zeros for an image that failed there, or that
    changed since it was listed."""

    pixels: list[np.ndarray]
    decoded: list[np.ndarray]  # (n,) bool for each space
    failed: list[dict[bytes, str]]  # of each space: an image may fail in one view alone
    changed: dict[bytes, SourceChanged]
    decode: float  # seconds, with reading and resizing
    augment: float


@dataclass(frozen=True)
class Job:
    """What every worker of a crew knows: what it makes, how, and where it goes."""

    spaces: tuple[Space, ...]
    recipe: Preparation
    backbones: dict[int, Backbone]  # those that are needed, by their number
    engine: str
    precision: str
    workers: int | None


class Featurizer:
    """The Maker of vectors: its networks are opened once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._workers = checked_workers(job.workers)
        self._engines = {
            b: open_engine(backbone, job.engine, job.precision)
            for b, backbone in job.backbones.items()
        }
        self._cosines: dict[str, float] = {}

    def work(
        self, shards: Iterable[Shard | None], told: Callable[[int], None]
    ) -> Generator[ShardResult, None, None]:
        job, targets = self._job, self._job.recipe.spaces
        size = next(iter(self._engines.values())).batch_rows  # one kind of engine, one size
        made = claimed_shards(shards, job.spaces, size, prepare, job.recipe, self._workers)
        with contextlib.closing(made):
            for shard, batches, found, left in made:
                began = time.perf_counter()
                spent = dict.fromkeys(SPENT, 0.0)
                rows: dict[int, list[np.ndarray]] = {s: [] for s in shard.spaces}
                failed: dict[int, dict[bytes, str]] = {s: {} for s in shard.spaces}
                changed: dict[bytes, SourceChanged] = {}
                checks = {s: vector_check(job.spaces[s]) for s in shard.spaces}
                running = [self._engines[targets[s][1]] for s in shard.spaces]

                def begin(
                    batch: Prepared,
                    running: list[Engine] = running,
                    spent: dict[str, float] = spent,
                ) -> list[Waiting]:
                    with timed(spent, "network"):
                        both = zip(running, batch.pixels, strict=True)
                        return [start_rows(engine, pixels) for engine, pixels in both]

                for batch, started in one_ahead(timed_each(batches, spent, "pictures"), begin):
                    changed |= batch.changed
                    spent["decode"] += batch.decode
                    spent["augment"] += batch.augment
                    with timed(spent, "network"):
                        for i, (s, wait) in enumerate(zip(shard.spaces, started, strict=True)):
                            rows[s].append(wait())
                            checks[s].add(batch.pixels[i], rows[s][-1], batch.decoded[i])
                            failed[s] |= batch.failed[i]
                    self._compare(shard.spaces, rows, batch)
                    told(sum(len(rows[s][-1]) - len(batch.changed) for s in shard.spaces))
                for check in checks.values():
                    check.finish()
                with timed(spent, "disk"):
                    items = [item for item in shard.items if item not in changed]
                    for s, used in zip(shard.spaces, running, strict=True) if items else ():
                        features = vectors_of(shard.items, rows[s], failed[s])
                        if changed:
                            features = features[[item not in changed for item in shard.items]]
                        took = time.perf_counter() - began
                        made_by = provenance(used, job.recipe, targets[s][0], items)
                        arrays = {"features": features}
                        job.spaces[s].commit(items, arrays, failed[s], made_by, took)
                computed = len(items) * len(shard.spaces)
                reasons = {error.name: error.reason for error in changed.values()}
                yield ShardResult(computed, found, left, spent, self._cosines, reasons)

    def _compare(
        self, spaces: Sequence[int], rows: Mapping[int, list[np.ndarray]], batch: Prepared
    ) -> None:
        """What the precision costs, on the first batch of each network (law 9)."""
        if self._job.precision == "f32":
            return
        eager = self._job.engine.removesuffix("-compiled")  # nobody compiles for one batch
        for s, pixels in zip(spaces, batch.pixels, strict=True):
            backbone = self._job.backbones[self._job.recipe.spaces[s][1]]
            if backbone.name not in self._cosines:
                exact = run_rows(open_engine(backbone, eager, "f32"), pixels)
                self._cosines[backbone.name] = least_cosine(rows[s][0], exact)


def one_ahead(
    made: Iterable[Made], begin: Callable[[Made], Started]
) -> Iterator[tuple[Made, Started]]:
    """Each of `made` with what `begin` gave for it, once the next has been begun too: a device
    that computes one batch has another waiting."""
    before: list[tuple[Made, Started]] = []
    for one in made:
        before.append((one, begin(one)))
        if len(before) == 2:
            yield before.pop(0)
    yield from before


def vector_check(space: Space) -> VectorCheck:
    return VectorCheck(f"view {space.view}, backbone {space.backbone}")


def vectors_of(
    items: Sequence[bytes], rows: Sequence[np.ndarray], failed: Collection[bytes]
) -> np.ndarray:
    """The vectors of a shard's batches end to end, (N, D), with zeros where an image failed."""
    features: np.ndarray = np.concatenate(rows)
    features[[i for i, item in enumerate(items) if item in failed]] = 0
    return features


def provenance(
    engine: Engine, recipe: Preparation, view: int, items: Sequence[bytes]
) -> dict[str, str]:
    """What may shift these vectors' last bits and is not in their key. Where `augment` has kept the
    pictures of the view, the canaries are those of the machines that made them."""
    made = engine.provenance() | pixel_provenance(recipe.views[view])
    kept = recipe.kept[view] if recipe.kept else None
    rows = [kept.rows.get(item) for item in items] if kept and kept.records else []
    if kept and any(rows):
        numbers = {row[0] for row in rows if row is not None}
        canaries = set().union(*(kept.records[number].pixel_canaries for number in numbers))
        if None in rows:  # made here
            canaries.add(made[keys.PIXEL_CANARY])
        made[keys.PIXEL_CANARY] = " ".join(sorted(canaries))
    return made


def prepare(recipe: Preparation, batch: Batch) -> Prepared:
    """Decode each image of a batch once, make each view of it once, fit it to each network."""
    start = time.perf_counter()
    spent = {"augment": 0.0}
    targets = [recipe.spaces[s] for s in batch.spaces]
    made = []
    for _, p in targets:
        size = recipe.preprocesses[p].input_size
        made.append(np.zeros((len(batch.rows), size, size, 3), np.uint8))
    decoded = [np.ones(len(batch.rows), bool) for _ in targets]
    failed: list[dict[bytes, str]] = [{} for _ in targets]
    changed = {}
    for row, (sample, item) in enumerate(batch.rows):
        try:
            pictures = _pictures(recipe, [v for v, _ in targets], sample, item, spent)
        except SourceChanged as error:
            changed[item] = error
            for of_space in decoded:
                of_space[row] = False
            continue
        for i, (v, p) in enumerate(targets):
            picture = pictures[v]
            if isinstance(picture, Undecodable):
                failed[i][item] = str(picture)
                decoded[i][row] = False
            else:
                made[i][row] = recipe.preprocesses[p](picture)
    whole = time.perf_counter() - start
    return Prepared(made, decoded, failed, changed, whole - spent["augment"], spent["augment"])


def _pictures(
    recipe: Preparation, views: Sequence[int], sample: Sample, item: bytes, spent: dict[str, float]
) -> dict[int, np.ndarray | Undecodable]:
    """An image in each of these views, or why there is none of it. Raises SourceChanged."""
    source: np.ndarray | Undecodable | None = None
    found: dict[int, np.ndarray | Undecodable] = {}
    for v in dict.fromkeys(views):
        try:
            kept = recipe.kept[v].picture(item) if recipe.kept else None
            if kept:  # empty where the image failed: the original says why
                found[v] = decode(kept)
                continue
            if isinstance(source, Undecodable):
                found[v] = source
                continue
            if source is None:
                source = original(sample, item)
            with timed(spent, "augment"):
                found[v] = recipe.views[v].picture(source, item)
        except Undecodable as error:
            found[v] = error
            source = error if source is None and not kept else source
    return found
