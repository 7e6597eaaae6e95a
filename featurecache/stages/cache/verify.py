"""Verify: is every committed byte the one that was committed, and would it be computed again?"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import (
    BadInput,
    CannotRead,
    DamagedCache,
    FeatureCacheError,
    NotAFile,
    RemovedMeanwhile,
    why,
)
from featurecache.executors import Progress, silent
from featurecache.features import quarantine, shards
from featurecache.features.orphans import leftovers, sweep
from featurecache.features.space_files import MAX_RECORD, Record
from featurecache.features.space_locks import reserved
from featurecache.features.spaces import Space
from featurecache.features.store import Cache, read_note
from featurecache.filling.fill import other_pixels
from featurecache.filling.recompute import Recomputer
from featurecache.filling.repair import Lost, compute_lost
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.samples import items_of, sources_of
from featurecache.images.views import view_of_key
from featurecache.storage.store import names_in
from featurecache.storage.stored_file import StoredFile

_ID = re.compile("[0-9a-f]{64}").fullmatch


@dataclass(frozen=True)
class Drift:
    """Rows of one space computed again: `identical` of `rows` to the byte; `relative` is the
    greatest |new - old| over the greatest |old|. `note` says why nothing could be recomputed, or
    that the space's pixels come from machines that make others than this one."""

    space: str
    view: str
    backbone: str
    rows: int
    identical: int
    relative: float
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    `bad` is `{space, file, reason}` of what was read and is not what was committed; `unreadable`
    the same of what could not be read, and so may be sound: it is never set aside. `pending` is
    `{space, file, rows}` of the shards in quarantine whose rows are not computed again yet (`rows`
    is None where they can't be told). `stray` are files that no record names, of the killed or of a
    process at work: harmless, and never read. After a repair, `removed` are those that were
    deleted, `remade` counts the rows that were computed again, `pending` is what is left to do, and
    `left` says why, and what to do."""

    shards: int
    rows: int
    bad: list[dict[str, str]]
    stray: list[str]
    drift: list[Drift]
    removed: list[str]
    remade: int
    left: list[str]
    unreadable: list[dict[str, str]]
    pending: list[dict[str, str | int | None]]


@dataclass
class _Found:
    """What the folders of spaces hold."""

    shards: int = 0
    rows: int = 0
    bad: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)


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
    processes left. It goes on with what an earlier repair left undone. `recompute` rows of every
    space of vectors, drawn at random with `seed` from those of the images in `data`, are computed
    again and compared. `weights` are those of the spaces that were made with such an option.
    """
    opened = Cache(cache)
    if not opened.exists:
        raise BadInput(f"no cache at {cache}; `featurecache featurize` makes one")
    if recompute < 0:
        raise BadInput(f"--recompute {recompute}: must be 0 or more")
    dataset = open_dataset(data) if recompute else None
    again = Recomputer(engine, weights)
    found = _Found()
    listed = _listed(opened, found)
    total = sum(len(_records(names)) for names in listed.values())

    def show() -> None:
        progress(found.shards, total, "verify")

    filled = [Space(opened.store, name) for name in listed] if repair else []
    with reserved(filled):
        for name, names in listed.items():
            _look_through(opened, name, names, repair, found, show)
        _look_at_notes(opened, repair, found)
        stray = leftovers(opened)
        removed = [str(path) for path in sweep(opened)] if repair else []
        lost = found.lost
        remade = 0
        if repair and lost:
            done = compute_lost(lost, data, again, progress)
            lost, remade = done.lost, done.rows
            found.left += done.left
    pending = [
        {"space": space.name, "file": shard.file, "rows": shard.rows} for space, shard in lost
    ]
    drift = []
    if dataset is not None and not (found.bad or found.unreadable):
        drift = _recomputed(opened, recompute, dataset, again, seed)
    return Verification(
        found.shards, found.rows, found.bad, stray, drift, removed, remade,
        found.left if repair else [], found.unreadable, pending,
    )  # fmt: skip


def _listed(cache: Cache, found: _Found) -> dict[str, list[str]]:
    """The names in the folder of each space, by the name of the space."""
    listed = {}
    for name in filter(_ID, names_in(cache.store, "spaces")):
        folder = f"spaces/{name}"
        if cache.store.is_link(folder):  # nothing is listed, moved or deleted behind it
            found.bad.append({"space": name, "file": "", "reason": "is a link; a cache has none"})
            found.left.append(
                f"{cache.store.locate(folder)}: is a link; put the folder itself in its place"
            )
            continue
        try:
            listed[name] = names_in(cache.store, folder)
        except OSError as error:
            found.unreadable.append({"space": name, "file": "", "reason": why(error)})
    return listed


def _records(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".json") and name != "space.json"]


def _look_through(
    cache: Cache,
    space_name: str,
    names: Sequence[str],
    repair: bool,
    found: _Found,
    progress: Callable[[], None],
) -> None:
    """Look at one space's folder, which holds `names`; with `repair`, set aside what is bad."""
    plain = Space(cache.store, space_name)  # which needs no description

    def report(file: str, error: DamagedCache | CannotRead | str) -> None:
        entry = {"space": space_name, "file": file}
        if isinstance(error, CannotRead):
            found.unreadable.append({**entry, "reason": why(error.error)})
            return
        found.bad.append({**entry, "reason": error if isinstance(error, str) else error.reason})
        if repair:
            try:
                quarantine.set_aside(plain, file, names)
            except CannotRead as error:
                report(file, error)

    space: Space | None = None
    described = True
    try:
        space = cache.described_space(space_name)
        if space is None and _records(names):
            present = names_in(cache.store, plain.folder)
            if "space.json" in present or not _records(present):
                return  # gc has deleted it since it was listed
            described = False
            reason = "is not there; the featurize that made the space writes it again"
            found.bad.append({"space": space_name, "file": "space.json", "reason": reason})
    except DamagedCache as error:
        described = False
        report("space.json", error)
    except CannotRead as error:
        report("space.json", error)
    if repair and not described:
        found.left.append(
            f"{space_name}: without its space.json nothing of it can be computed again; the "
            "featurize or augment that made the space writes it"
        )
    held = []
    for name in _records(names):
        found.shards += 1
        progress()
        try:
            reason, record = _look(space or plain, name)
        except CannotRead as error:
            if isinstance(error, RemovedMeanwhile):
                found.shards -= 1
            else:
                report(name, error)
            continue
        found.rows += len(record.items) // 32 if record else 0
        if reason:
            report(name, reason)
        elif record is not None and (repair or quarantine.FOLDER in names):
            held.append(record)
    try:
        found.lost += [(space or plain, shard) for shard in quarantine.pending(plain, held)]
    except CannotRead as error:
        report(f"{quarantine.FOLDER}/{Path(str(error.path)).name}", error)


def _look_at_notes(cache: Cache, repair: bool, found: _Found) -> None:
    """Look at the notes of runs; with `repair`, set aside what is bad."""
    for name in names_in(cache.store, "runs"):
        if not name.endswith(".json"):
            continue
        entry = {"space": "", "file": f"runs/{name}"}
        try:
            read_note(StoredFile(cache.store, f"runs/{name}"))
        except CannotRead as error:
            found.unreadable.append({**entry, "reason": why(error.error)})
        except DamagedCache as error:
            found.bad.append({**entry, "reason": error.reason})
            if repair:
                quarantine.move_aside(cache.store, "runs", name, name)
                found.left.append(
                    f"runs/{name}: which run it was of can't be told, so gc may not spare its "
                    "spaces; the train-head that made the run writes it again"
                )


def _look(space: Space, name: str) -> tuple[str, Record | None]:
    """What is wrong with a shard ("" if nothing), and its record if that can be read. Raises
    CannotRead."""
    reason, record = _judge(space, name)
    if reason and space.store.read_attempts > 1:  # a reply may be cut, or differ the next time
        _check_sent(space.file(name), MAX_RECORD)
        if record is not None and record.file in names_in(space.store, space.folder):
            _check_sent(space.file(record.file), record.size)
        reason, record = _judge(space, name)
    return reason, record


def _check_sent(file: StoredFile, max_bytes: int) -> None:
    """Raise CannotRead unless the store sends the same bytes twice, and as many as it says that
    there are."""
    try:
        first, second = (file.read(max_bytes) for _ in range(2))
        if first != second or len(first) != file.size():
            raise OSError(errno.EIO, "the store sends other bytes each time, or too few")
    except NotAFile:
        return
    except OSError as error:
        raise CannotRead(file, error) from error


def _judge(space: Space, name: str) -> tuple[str, Record | None]:
    try:
        record = space.read_record(name)
    except DamagedCache as error:
        return error.reason, None
    try:
        data = space.read_bytes(record, fresh=True)
        arrays = shards.unpack(data, record.arrays)
        if arrays["items"].tobytes() != record.items:
            return "its items are not those of its record", record
        if f"{shards.sum_of_rows(arrays):064x}" != record.row_sum:
            return "its rows are not those of its record", record
        without = {arrays["items"][row].tobytes() for row in np.flatnonzero(arrays["status"])}
        listed = {bytes.fromhex(item) for item in record.failed}
        if (without or listed) and without != listed.intersection(record.item_list):
            return "failed: not the items without a row", record
    except DamagedCache as error:
        return error.reason, record
    if not shards.is_finite(arrays):
        return shards.NOT_FINITE, record
    return shards.check_hdf5(data, record.arrays) or "", record


def _recomputed(
    cache: Cache, most: int, dataset: Dataset, again: Recomputer, seed: int
) -> list[Drift]:
    sources = sources_of(dataset.samples, items_of(dataset.samples)[0])
    rng = np.random.default_rng(seed)
    found = []
    for space in cache.spaces():
        if space.backbone is None:
            continue
        about = (space.name, space.view, space.backbone)
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
        note = other_pixels(view_of_key(space.key["view"], space.view), space)
        found.append(Drift(*about, len(chosen), same, relative, note))
    return found


def compared(old: np.ndarray, new: np.ndarray) -> tuple[int, float]:
    """How many of the rows (N, D) are the same bytes, and the greatest |new - old| over the
    greatest |old|."""
    same = int((old.view(np.uint32) == new.view(np.uint32)).all(axis=1).sum())
    return same, float(np.abs(new - old).max() / max(float(np.abs(old).max()), 1e-30))
