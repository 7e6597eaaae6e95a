"""Verify: is every committed byte the one that was committed, and would it be computed again?"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import BadInput, DamagedCache, FeatureCacheError
from featurecache.executors import Progress, silent
from featurecache.features import shards
from featurecache.features.engines import engines_here
from featurecache.features.leftovers import leftovers, sweep
from featurecache.features.space_files import Record
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.samples import items_of, sources_of
from featurecache.regular import read_regular
from featurecache.stages.again import Again


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
    names, of the killed or of a process at work: harmless, and never read. After a repair,
    `removed` are those that were deleted, `remade` counts the rows that were computed again, and
    `left` says what could not be, and what to do."""

    shards: int
    rows: int
    bad: list[dict[str, str]]
    stray: list[str]
    drift: list[Drift]
    removed: list[str]
    remade: int
    left: list[str]


@dataclass(frozen=True)
class _Lost:
    """A shard that was set aside, and what it held (None if that can't be told)."""

    folder: Path
    items: list[bytes] | None
    engine: str = ""  # that made it, where its record could be read


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

    `repair` moves bad shards to a folder `quarantine`, computes again those of their rows whose
    images are in `data`, with the engine that made them where it is here, and deletes what killed
    processes left. `recompute` rows of every space of vectors, drawn at random with `seed` from
    those of the images in `data`, are computed again and compared. `weights` are those of the
    spaces that were made with such an option.
    """
    opened = Cache(cache)
    if not opened.exists:
        raise BadInput(f"no cache at {cache}; `featurecache featurize` makes one")
    if recompute < 0:
        raise BadInput(f"--recompute {recompute}: must be 0 or more")
    dataset = open_dataset(data) if recompute else None
    again = Again(engine, weights)
    bad: list[dict[str, str]] = []
    lost: list[_Lost] = []
    left: list[str] = []
    count = rows = done = 0
    folders = sorted(opened.root.glob(f"spaces/{64 * '[0-9a-f]'}"))
    real = [folder for folder in folders if not folder.is_symlink()]
    total = sum(path.name != "space.json" for folder in real for path in folder.glob("*.json"))
    for folder in folders:
        if folder.is_symlink():  # nothing is listed, moved or deleted behind it
            bad.append({"space": folder.name, "file": "", "reason": "is a link; a cache has none"})
            left.append(f"{folder}: is a link; put the folder itself in its place")
            continue
        try:
            space, reason = opened.space_in(folder), ""
        except DamagedCache as error:
            space, reason = None, error.reason
        named = sorted(path for path in folder.glob("*.json") if path.name != "space.json")
        if space is None:
            space = Space(folder, {}, "", None)
            if named or reason:
                reason = reason or "is not there; the featurize that made the space writes it again"
                bad.append({"space": folder.name, "file": "space.json", "reason": reason})
                if repair:
                    space.quarantine("space.json")
                    lost.append(_Lost(folder, None))
        for path in named:
            done += 1
            progress(done, total, "verify")
            count += 1
            reason, record = _look(space, path)
            rows += len(record.item_list) if record else 0
            if reason:
                bad.append({"space": folder.name, "file": path.name, "reason": reason})
                if repair:
                    lost.append(_set_aside(space, path, record))
    stray = [str(path) for path in leftovers(opened)]
    removed = [str(path) for path in sweep(opened)] if repair else []
    remade = _remade(opened, lost, data, again, left, progress) if lost else 0
    drift = []
    if dataset is not None and not bad:
        drift = _recomputed(opened, recompute, dataset, again, seed)
    return Verification(count, rows, bad, stray, drift, removed, remade, left if repair else [])


def _set_aside(space: Space, path: Path, record: Record | None) -> _Lost:
    items = record.item_list if record else _claimed_items(path)
    space.quarantine(path.name)  # first: without its record a shard is absent
    for file in space.path.glob(f"{path.stem}-*.h5"):
        space.quarantine(file.name)
    return _Lost(space.path, items, record.provenance.get("engine", "") if record else "")


def _claimed_items(path: Path) -> list[bytes] | None:
    """The items that a damaged record still lists, if they are the ones its name is the hash of."""
    try:
        data = read_regular(path, 256 << 20, follow=False)
    except OSError:  # a pipe, a device, a link: it lists nothing
        return None
    found = re.search(rb'"items": "((?:[0-9a-f]{64})+)"', data)
    raw = bytes.fromhex(found[1].decode()) if found else b""
    items = [raw[i : i + 32] for i in range(0, len(raw), 32)]
    return items if items and shards.shard_name(items) == path.stem else None


def _remade(
    cache: Cache,
    lost: Sequence[_Lost],
    data: str | Path,
    again: Again,
    left: list[str],
    progress: Progress,
) -> int:
    """Compute lost rows again: how many. Adds to `left` what could not be, and what to do."""
    try:
        dataset = open_dataset(data)
    except BadInput as error:
        left.append(f"nothing was computed again ({error}); give --data, or run featurize")
        return 0
    sources = sources_of(dataset.samples, items_of(dataset.samples, progress)[0])
    spaces = {shard.folder: cache.space_in(shard.folder) for shard in lost}
    count = 0
    for number, shard in enumerate(lost, 1):
        progress(number, len(lost), "repair")
        space = spaces[shard.folder]
        about = f"{space.view} / {space.backbone or 'pictures'}" if space else shard.folder.name
        if space is None or shard.items is None:
            left.append(
                f"{about}: what a damaged file held can't be told; the featurize or augment that "
                "made it computes what is missing"
            )
            continue
        missing = space.missing(shard.items)
        here = [item for item in missing if item in sources]
        if len(here) < len(missing):
            lacking = len(missing) - len(here)
            left.append(f"{about}: {lacking} images of a bad shard are not in {dataset.root}")
        if here:
            began = time.perf_counter()
            others = (record.provenance.get("engine", "") for record in space.records)
            maker = shard.engine or next(others, "")  # the same bytes, if it can be (law 5)
            maker = maker if maker in engines_here() else ""
            try:
                made = again.make(space, [(sources[item], item) for item in here], maker)
            except FeatureCacheError as error:
                left.append(f"{about}: {error}")
                continue
            took = time.perf_counter() - began
            space.commit(here, made.arrays, made.failed, made.provenance, took)
            count += len(here)
    return count


def _look(space: Space, path: Path) -> tuple[str, Record | None]:
    """What is wrong with a shard ("" if nothing), and its record if that can be read."""
    try:
        record = space.read_record(path)
    except DamagedCache as error:
        return error.reason, None
    try:
        data = space.read_bytes(record, fresh=True)
        arrays = shards.unpack(data, record.arrays)
        if arrays["items"].tobytes() != record.items:
            return "its items are not those of its record", record
        if f"{shards.sum_of_rows(arrays):064x}" != record.row_sum:
            return "its rows are not those of its record", record
    except DamagedCache as error:
        return error.reason, record
    return shards.check_hdf5(data, record.arrays) or "", record


def _recomputed(cache: Cache, most: int, dataset: Dataset, again: Again, seed: int) -> list[Drift]:
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
            made = again.make(space, [(sources[item], item) for item in chosen])
        except FeatureCacheError as error:
            found.append(Drift(*about, 0, 0, 0.0, str(error)))
            continue
        old, _ = space.vectors(chosen)
        same, relative = compared(old, made.arrays["features"])
        found.append(Drift(*about, len(chosen), same, relative))
    return found


def compared(old: np.ndarray, new: np.ndarray) -> tuple[int, float]:
    """How many of the rows (N, D) are the same bytes, and the greatest |new - old| over the
    greatest |old|."""
    same = int((old.view(np.uint32) == new.view(np.uint32)).all(axis=1).sum())
    return same, float(np.abs(new - old).max() / max(float(np.abs(old).max()), 1e-30))
