"""Verify: is every committed byte the one that was committed, and would it be computed again?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache import records
from featurecache.errors import BadInput, DamagedCache, FeatureCacheError
from featurecache.executors import Progress, silent
from featurecache.features import shards
from featurecache.features.backbones import backbone_of_key
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.store import Cache, Record, Space
from featurecache.images.datasets import Dataset, Sample, items_of, open_dataset, sources_of
from featurecache.images.views import view_of_key
from featurecache.stages.featurize import Batch, Recipe, prepare


@dataclass(frozen=True)
class Drift:
    """Rows of one space computed again: `identical` of `rows` to the byte; `relative` is the
    greatest |new - old| over the greatest |old|. `note` says why nothing could be recomputed."""

    space: str
    view: str
    backbone: str
    rows: int
    identical: int
    relative: float
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `bad` is `{space, file, reason}`; `stray` are files that no record
    names, left by the killed: harmless, and never read."""

    shards: int
    rows: int
    bad: list[dict[str, str]]
    stray: list[str]
    drift: list[Drift]


def verify(
    cache: str | Path = "data/cache",
    *,
    recompute: int = 0,
    data: str | Path = "data",
    engine: str = "auto",
    weights: str | Path | None = None,
    repair: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Verification:
    """Hash every shard, and compare it with its record in every way.

    `recompute` rows of every space of vectors, drawn at random with `seed` from those of the
    images in `data`, are computed again and compared (`weights`: those of the spaces that were
    made with such an option). `repair` moves bad shards to a folder
    `quarantine`, so that the next `featurize` computes their rows again.
    """
    opened = Cache(cache)
    if not opened.exists:
        raise BadInput(f"no cache at {cache}; `featurecache featurize` makes one")
    if recompute < 0:
        raise BadInput(f"--recompute {recompute}: must be 0 or more")
    dataset = open_dataset(data) if recompute else None
    bad: list[dict[str, str]] = []
    stray: list[str] = []
    count = rows = 0
    folders = sorted(path for path in opened.root.glob("spaces/*") if path.is_dir())
    total = sum(len(list(folder.glob("*.json"))) for folder in folders)
    done = 0
    for folder in folders:
        try:
            space = opened.space_in(folder)
        except DamagedCache as error:
            bad.append({"space": folder.name, "file": "space.json", "reason": error.reason})
            space = Space(folder, {}, "", None)
            if repair:
                space.quarantine("space.json")  # the next featurize describes the space anew
        if space is None:
            stray += [str(path) for path in sorted(folder.iterdir())]
            continue
        named = {"space.json"}
        for path in sorted(folder.glob("*.json")):
            done += 1
            progress(done, total, "verify")
            if path.name == "space.json":
                continue
            count += 1
            reason, record = _look(space, path)
            named |= {path.name} | ({record.file} if record else set())
            rows += len(record.item_list) if record else 0
            if reason is not None:
                bad.append({"space": folder.name, "file": path.name, "reason": reason})
                if repair:
                    space.quarantine(path.name)  # first: without its record a shard is absent
                    if record is not None:
                        space.quarantine(record.file)
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        stray += [str(path) for path in files if path.name not in named]
    drift = []
    if dataset is not None and not bad:
        drift = _recomputed(opened, recompute, dataset, engine, weights, seed)
    return Verification(count, rows, bad, stray, drift)


def _look(space: Space, path: Path) -> tuple[str | None, Record | None]:
    """What is wrong with a shard (None if nothing), and its record if that can be read."""
    try:
        record = space.read_record(path)
    except DamagedCache as error:
        return error.reason, None
    try:
        data = space.read_bytes(record)
        arrays = shards.unpack(data, record.arrays)
        if arrays["items"].tobytes().hex() != record.items:
            return "its items are not those of its record", record
        if f"{shards.sum_of_rows(arrays):064x}" != record.row_sum:
            return "its rows are not those of its record", record
    except DamagedCache as error:
        return error.reason, record
    except KeyError as error:
        return f"its record names no {error}", record
    return shards.check_hdf5(data, record.arrays), record


def _recomputed(
    cache: Cache,
    most: int,
    dataset: Dataset,
    engine: str,
    weights: str | Path | None,
    seed: int,
) -> list[Drift]:
    sources = sources_of(dataset.samples, items_of(dataset.samples)[0])
    rng = np.random.default_rng(seed)
    found = []
    for space in cache.spaces():
        if space.backbone is None:
            continue
        about = (space.path.name, space.view, space.backbone)
        bad = space.failures(space.rows)
        here = [item for item in space.rows if item in sources and item not in bad]
        if not here:
            found.append(Drift(*about, 0, 0, 0.0, f"none of its images is in {dataset.root}"))
            continue
        chosen = [here[i] for i in rng.permutation(len(here))[:most]]
        try:
            new = _vectors_again(space, [(sources[item], item) for item in chosen], engine, weights)
        except FeatureCacheError as error:
            found.append(Drift(*about, 0, 0, 0.0, str(error)))
            continue
        old, _ = space.vectors(chosen)
        same = int((old.view(np.uint32) == new.view(np.uint32)).all(axis=1).sum())
        relative = float(np.abs(new - old).max() / max(float(np.abs(old).max()), 1e-30))
        found.append(Drift(*about, len(chosen), same, relative))
    return found


def _vectors_again(
    space: Space,
    rows: Sequence[tuple[Sample, bytes]],
    engine: str,
    weights: str | Path | None,
) -> np.ndarray:
    key = space.key
    view = view_of_key(key["view"], space.view)
    backbone = backbone_of_key(str(space.backbone), key["backbone"], weights)
    again = records.vector_key(view.key(), backbone.key(), key["precision"])
    if records.digest(again) != space.path.name:
        differs = "; ".join(records.differences(key, again))
        raise BadInput(f"can't be computed again here: differs in {differs}")
    running = open_engine(backbone, engine, key["precision"])
    recipe = Recipe((view,), (), (backbone.preprocess,))
    size = running.micro_batch
    out = []
    for i in range(0, len(rows), size):
        prepared = prepare(recipe, Batch(tuple(rows[i : i + size]), ((0, 0),)))
        out.append(run_rows(running, prepared.pixels[0]))
    return np.concatenate(out)
