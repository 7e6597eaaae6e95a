"""Featurize: every missing row of every asked-for space, computed once and committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from featurecache import records
from featurecache.errors import BadInput
from featurecache.executors import Progress, checked_workers, silent
from featurecache.features.engines import (
    Engine,
    choose_engine,
    least_cosine,
    open_engine,
    run_rows,
    start_rows,
)
from featurecache.features.preprocess import Preprocess
from featurecache.features.spaces import Space
from featurecache.images.decode import Undecodable, decode
from featurecache.images.views import View, original
from featurecache.stages.make import Batch, checked_part, make, of_part, rows_of, shards_of
from featurecache.stages.resolve import resolve

# The libraries that decide a picture's last bits; not in the key, but kept in every shard.
PIXELS = (
    "featurecache",
    "imaug",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scipy",
    "simplejpeg",
)
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


@dataclass(frozen=True)
class Recipe:
    """What every worker of a run knows: how a picture of each view is had and made ready."""

    views: tuple[View, ...]
    kept: tuple[Space, ...]  # beside `views`: where `augment` may have kept their pictures; or ()
    preprocesses: tuple[Preprocess, ...]
    spaces: tuple[tuple[int, int], ...]  # of each numbered space its (view, preprocess) numbers


@dataclass(frozen=True)
class Prepared:
    """(n, S, S, 3) uint8 for each space of a batch; zeros for an image that failed."""

    pixels: list[np.ndarray]
    failed: dict[bytes, str]
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
    progress: Progress = silent,
) -> Featurized:
    """Fill the cache with the vectors of these views under these backbones.

    Computes the images that no committed shard holds, and nothing else (law 3): stopped at any
    moment and started again it goes on where it was, and ends with the same bytes. Without
    `policy`: `none` and every view that `augment` has kept; with it, views are augmented on the
    fly, to the same vectors. `part` (`i/n`) is one job's share of the missing shards, of n that
    fill one cache together. Raises BadInput before any work, SourceChanged if an image file is
    edited meanwhile.
    """
    start = time.perf_counter()
    if not backbone:
        raise BadInput("featurize needs --backbone NAME; `featurecache backbones` lists them")
    workers = checked_workers(workers)
    mine = None if part is None else checked_part(part)
    choose_engine(engine, precision)
    request = resolve(
        data, cache, policy, backbone, weights=weights, input_size=input_size, crop=crop,
        interpolation=interpolation, layer=layer, pooling=pooling, precision=precision, seed=seed,
        progress=progress,
    )  # fmt: skip
    sources = request.sources
    targets = [(v, b) for v in range(len(request.views)) for b in range(len(request.backbones))]
    spaces = [request.vector_space(request.views[v], request.backbones[b]) for v, b in targets]
    missing = shards_of(sources, spaces, shard_rows)
    todo = missing if mine is None else of_part(missing, sources, shard_rows, mine)
    total, hits = rows_of(todo), len(sources) * len(spaces) - rows_of(missing)
    computed = 0
    cosines: dict[str, float] = {}
    spent = dict.fromkeys(("pictures", "decode", "augment", "network", "disk"), 0.0)

    def show(waiting: int = 0) -> None:
        bound = f"; bound by {bound_of(spent)}" if computed else ""
        others = f"; waiting for {waiting} shards of other processes" if waiting else ""
        progress(computed, total, f"featurize ({hits:,} hits{bound}{others})")

    def found(rows: int, waiting: int) -> None:
        nonlocal hits, total
        hits, total = hits + rows, total - rows
        show(waiting)

    for space in spaces:
        if space.rows:
            space.describe()  # a no-op, unless a damaged description was set aside
    if todo:
        request.cache.create()
        progress(0, total, "loading the network")
        eager = engine.removesuffix("-compiled")  # for one batch; nobody compiles for that
        needed = sorted({targets[s][1] for shard in todo for s in shard.spaces})
        engines = {b: open_engine(request.backbones[b], engine, precision) for b in needed}
        size = engines[needed[0]].batch_rows  # one kind of engine, one size
        recipe = Recipe(
            request.views,
            tuple(request.picture_space(view) for view in request.views),
            tuple(backbone.preprocess for backbone in request.backbones),
            tuple(targets),
        )
        for shard, batches in make(todo, spaces, sources, size, prepare, recipe, workers, found):
            began = time.perf_counter()
            rows: dict[int, list[np.ndarray]] = {s: [] for s in shard.spaces}
            failed: dict[bytes, str] = {}
            running = [engines[targets[s][1]] for s in shard.spaces]

            def begin(batch: Prepared, running: list[Engine] = running) -> list[Waiting]:
                with timed(spent, "network"):
                    return [start_rows(e, p) for e, p in zip(running, batch.pixels, strict=True)]

            for batch, started in one_ahead(timed_each(batches, spent, "pictures"), begin):
                failed |= batch.failed
                spent["decode"] += batch.decode
                spent["augment"] += batch.augment
                with timed(spent, "network"):
                    for s, wait in zip(shard.spaces, started, strict=True):
                        rows[s].append(wait())
                        computed += len(rows[s][-1])
                if precision != "f32":
                    for s, pixels in zip(shard.spaces, batch.pixels, strict=True):
                        b = targets[s][1]
                        name = request.backbones[b].name
                        if name not in cosines:
                            exact = open_engine(request.backbones[b], eager, "f32")
                            cosines[name] = least_cosine(rows[s][0], run_rows(exact, pixels))
                show()
            with timed(spent, "disk"):
                for s, used in zip(shard.spaces, running, strict=True):
                    arrays = {"features": vectors_of(shard.items, rows[s], failed)}
                    took = time.perf_counter() - began
                    spaces[s].commit(shard.items, arrays, failed, provenance(used), took)
    # The answer describes what is on the disk now, not what was meant to be there.
    spaces = [request.vector_space(request.views[v], request.backbones[b]) for v, b in targets]
    seconds = time.perf_counter() - start
    return Featurized(
        computed,
        hits,
        request.failures(spaces),
        round(seconds, 3),
        round(computed / seconds, 1),
        bound_of(spent) if computed else "",
        {part: round(value, 3) for part, value in spent.items()},
        [space.summary() for space in spaces],
        cosines,
    )


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


def bound_of(spent: Mapping[str, float]) -> str:
    """What was waited for most; of pictures, what takes the most of making them."""
    part = max(("network", "disk", "pictures"), key=lambda part: spent.get(part, 0.0))
    if part == "pictures":
        return max(("decode", "augment"), key=lambda part: spent[part])
    return part


def vectors_of(
    items: Sequence[bytes], rows: Sequence[np.ndarray], failed: Collection[bytes]
) -> np.ndarray:
    """The vectors of a shard's batches end to end, (N, D), with zeros where an image failed."""
    features: np.ndarray = np.concatenate(rows)
    features[[i for i, item in enumerate(items) if item in failed]] = 0
    return features


def provenance(engine: Engine) -> dict[str, str]:
    """What may shift a vector's last bits and is not in its key."""
    return engine.provenance() | records.versions(*PIXELS)


def prepare(recipe: Recipe, batch: Batch) -> Prepared:
    """Decode each image of a batch once, make each view of it once, fit it to each network."""
    start = time.perf_counter()
    spent = {"augment": 0.0}
    targets = [recipe.spaces[s] for s in batch.spaces]
    made = []
    for _, p in targets:
        size = recipe.preprocesses[p].input_size
        made.append(np.zeros((len(batch.rows), size, size, 3), np.uint8))
    failed = {}
    for row, (sample, item) in enumerate(batch.rows):
        pixels: np.ndarray | None = None
        pictures: dict[int, np.ndarray] = {}
        try:
            for v in dict.fromkeys(v for v, _ in targets):
                kept = recipe.kept[v].picture(item) if recipe.kept else None
                if kept:  # empty where the image failed: the original says why
                    pictures[v] = decode(kept)
                    continue
                if pixels is None:
                    pixels = original(sample, item)
                with timed(spent, "augment"):
                    pictures[v] = recipe.views[v].picture(pixels, item)
        except Undecodable as error:
            failed[item] = str(error)
            continue
        for out, (v, p) in zip(made, targets, strict=True):
            out[row] = recipe.preprocesses[p](pictures[v])
    whole = time.perf_counter() - start
    return Prepared(made, failed, whole - spent["augment"], spent["augment"])
