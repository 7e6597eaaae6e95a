"""Featurize: every missing row of every asked-for space, computed once and committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from featurecache import records
from featurecache.errors import BadInput, SourceChanged
from featurecache.executors import Progress, silent
from featurecache.executors.pool import checked_workers
from featurecache.features.backbones import Backbone
from featurecache.features.engines import (
    Engine,
    choose_engine,
    devices,
    least_cosine,
    open_engine,
    run_rows,
    start_rows,
)
from featurecache.features.preprocess import Preprocess
from featurecache.features.soundness import VectorCheck
from featurecache.features.spaces import Space, reserved
from featurecache.images.canary import pixel_canary, pixel_provenance
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import Sample
from featurecache.images.views import View, original
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

SPENT = ("pictures", "decode", "augment", "network", "disk")
Made = TypeVar("Made")
Started = TypeVar("Started")
Waiting = Callable[[], np.ndarray]

SHARD_ROWS = 512  # the most work a kill can lose: 2 s of Lite0, 26 s of B3 on two cores


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


@dataclass(frozen=True)
class Recipe:
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


def featurize(
    data: str | Path = "data",
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    cache: str | Path = "data/cache",
    weights: str | Path | None = None,
    input_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    layer: str | None = None,
    pooling: str | None = None,
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
) -> Featurized:
    """Fill the cache with the vectors of these views under these backbones.

    Computes the images that no committed shard holds, and nothing else (law 3): stopped at any
    moment and started again it goes on where it was, and ends with the same bytes. Without
    `policy`: `none` and every view that `augment` has kept; with it, views are augmented on the
    fly, to the same vectors. `part` (`i/n`) is one job's share of the missing shards, of n that
    fill one cache together. `executor` is where the work is done: `local`, `processes` of this
    machine or a `ray` cluster (docs/cluster.md), with the three settings that follow it. Raises
    BadInput before any work, FeatureCacheError
    for shards that no worker could make.
    """
    start = time.perf_counter()
    if not backbone:
        raise BadInput("featurize needs --backbone NAME; `featurecache backbones` lists them")
    if workers is not None or executor == "local":  # else every worker knows its own cores
        workers = checked_workers(workers)
    mine = None if part is None else checked_part(part)
    checked_shard_rows(shard_rows)
    where = checked_where(executor, address, gpus_per_worker, max_workers)
    if executor != "ray":  # whose machines are others
        choose_engine(engine, precision)
    request = resolve(
        data, cache, policy, backbone, weights=weights, input_size=input_size, crop=crop,
        interpolation=interpolation, layer=layer, pooling=pooling, precision=precision, seed=seed,
        progress=progress,
    )  # fmt: skip
    targets = [(v, b) for v in range(len(request.views)) for b in range(len(request.backbones))]
    spaces = [request.vector_space(request.views[v], request.backbones[b]) for v, b in targets]
    pictures = [request.picture_space(view) for view in request.views]
    if request.images and not request.cache.exists:
        request.cache.create()
    with reserved([*spaces, *pictures]):  # before it is read which rows they hold
        missing = shards_of(request.dataset.samples, request.items, spaces, shard_rows)
        todo = missing if mine is None else missing.of_part(mine, shard_rows)
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
                Recipe(
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
            share(Featurizer, job, todo, where, request.cache.root, gpus, tally)
        # The answer describes what is on the disk now, not what was meant to be there.
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


@dataclass(frozen=True)
class Job:
    """What every worker of a crew knows: what it makes, how, and where it goes."""

    spaces: tuple[Space, ...]
    recipe: Recipe
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
    ) -> Generator[Done, None, None]:
        job, targets = self._job, self._job.recipe.spaces
        size = next(iter(self._engines.values())).batch_rows  # one kind of engine, one size
        made = make(shards, job.spaces, size, prepare, job.recipe, self._workers)
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
                yield Done(computed, found, left, spent, self._cosines, reasons)

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


@contextlib.contextmanager
def timed(spent: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - start


def timed_each(made: Iterable[Made], spent: dict[str, float], part: str) -> Iterator[Made]:
    """`made`, with the time that is waited for each added to `part`."""
    each = iter(made)
    while True:
        with timed(spent, part):
            one = next(each, None)
        if one is None:
            return
        yield one


def vector_check(space: Space) -> VectorCheck:
    return VectorCheck(f"view {space.view}, backbone {space.backbone}")


def vectors_of(
    items: Sequence[bytes], rows: Sequence[np.ndarray], failed: Collection[bytes]
) -> np.ndarray:
    """The vectors of a shard's batches end to end, (N, D), with zeros where an image failed."""
    features: np.ndarray = np.concatenate(rows)
    features[[i for i, item in enumerate(items) if item in failed]] = 0
    return features


def provenance(engine: Engine, recipe: Recipe, view: int, items: Sequence[bytes]) -> dict[str, str]:
    """What may shift these vectors' last bits and is not in their key. Where `augment` has kept the
    pictures of the view, the canaries are those of the machines that made them."""
    made = engine.provenance() | pixel_provenance(recipe.views[view])
    kept = recipe.kept[view] if recipe.kept else None
    rows = [kept.rows.get(item) for item in items] if kept and kept.records else []
    if kept and any(rows):
        numbers = {row[0] for row in rows if row is not None}
        canaries = set().union(*(kept.records[number].pixel_canaries for number in numbers))
        if None in rows:  # made here
            canaries.add(made[records.PIXEL_CANARY])
        made[records.PIXEL_CANARY] = " ".join(sorted(canaries))
    return made


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


def prepare(recipe: Recipe, batch: Batch) -> Prepared:
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
    recipe: Recipe, views: Sequence[int], sample: Sample, item: bytes, spent: dict[str, float]
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
