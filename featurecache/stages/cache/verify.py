"""Verify: does every file of a cache still hold the committed bytes, and can they be recomputed?"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurecache import keys
from featurecache.errors import (
    BadInput,
    CannotRead,
    DamagedCache,
    FeatureCacheError,
    NotAFile,
    RemovedMeanwhile,
    why,
)
from featurecache.executors import Progress
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features import quarantine, shards
from featurecache.features.orphans import leftovers, sweep
from featurecache.features.row_digests import digest_rows
from featurecache.features.space_files import MAX_NOTE, MAX_RECORD, Record
from featurecache.features.space_locks import reserved
from featurecache.features.spaces import Space
from featurecache.features.store import Cache, read_note
from featurecache.filling.fill import other_pixels
from featurecache.filling.recompute import Recomputer
from featurecache.filling.repair import LostShard, recompute_lost
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.samples import items_of, sources_of
from featurecache.images.views import view_of_key
from featurecache.lookup.caches import existing_cache
from featurecache.storage.store import names_in
from featurecache.storage.stored_file import StoredFile

_is_space_name = re.compile("[0-9a-f]{64}").fullmatch


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Rows of one space that were recomputed: `identical` of `rows` have the same bytes; `relative`
    is the greatest |new - old| over the greatest |old|. `note` says why nothing could be
    recomputed, or that the pixels of the space differ from those that this machine makes."""

    space: str
    view: str
    backbone: str
    setting: dict[str, Any]  # as `ls` shows it
    rows: int
    identical: int
    relative: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of `verify`.

    `bad` is `{space, file, reason}` for each file that was read and does not hold the committed
    bytes; `unreadable` is the same for files that could not be read, and so may be sound: they are
    never quarantined. `pending` is `{space, file, rows}` for each shard in quarantine whose rows
    are not recomputed yet (`rows` is None if they are unknown). `stray` are files that no record
    names: a killed process left them, or a live one is writing them. They are harmless and never
    read. After a repair, `removed` are the stray files that were deleted, `remade` is the number of
    recomputed rows, and `left` says why the `pending` shards were not repaired, and what to do."""

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


def verify(
    cache: str | Path = "data/cache",
    *,
    recompute: int = 0,
    data: DataSource = "data",
    engine: str = "auto",
    weights: str | Path | None = None,
    repair: bool = False,
    seed: int = 0,
    progress: ProgressOption = False,
) -> Verification:
    """Hash every shard and compare it with its record.

    `repair` moves bad shards to a folder `quarantine`, recomputes those of their rows whose images
    are in `data`, with the engine that made them if this machine has it, and deletes the files that
    killed processes left. It also completes earlier repairs. `recompute` is the number of rows per
    space of vectors that are recomputed and compared; they are drawn with `seed` from the images in
    `data`. `weights` is the file of the spaces that were made with this option.
    """
    progress = resolve_progress(progress)
    opened = existing_cache(cache, data)
    if recompute < 0:
        raise BadInput(f"--recompute {recompute}: must be 0 or more")
    dataset = open_dataset(data) if recompute else None
    recomputer = Recomputer(engine, weights)
    inspection = _Inspection(opened, repair, progress)
    folders = inspection.space_folders()
    with reserved([Space(opened.store, name) for name in folders] if repair else []):
        for name, file_names in folders.items():
            inspection.check_space(name, file_names)
        inspection.check_notes()
        stray = leftovers(opened)
        removed = [str(path) for path in sweep(opened)] if repair else []
        lost = inspection.lost
        remade = 0
        if repair and lost:
            repaired = recompute_lost(lost, data, recomputer, progress)
            lost, remade = repaired.lost, repaired.rows
            inspection.left += repaired.left
    drift = []
    if dataset is not None and not (inspection.bad or inspection.unreadable):
        drift = _recompute(opened, recompute, dataset, recomputer, seed)
    return Verification(
        shards=inspection.shards,
        rows=inspection.rows,
        bad=inspection.bad,
        stray=stray,
        drift=drift,
        removed=removed,
        remade=remade,
        left=inspection.left if repair else [],
        unreadable=inspection.unreadable,
        pending=[
            {"space": space.name, "file": shard.file, "rows": shard.rows} for space, shard in lost
        ],
    )


@dataclass
class _Inspection:
    """One pass over the files of a cache, which moves bad files to quarantine if `repair` is set,
    and what it found. The fields are those of Verification; `lost` are the shards in quarantine."""

    cache: Cache
    repair: bool
    progress: Progress
    shards: int = 0
    total: int = 0
    rows: int = 0
    bad: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    lost: list[LostShard] = field(default_factory=list)

    def space_folders(self) -> dict[str, list[str]]:
        """The names of the files in each space's folder, by the name of the space."""
        store = self.cache.store
        folders = {}
        for name in filter(_is_space_name, names_in(store, "spaces")):
            folder = f"spaces/{name}"
            if store.is_link(folder):  # nothing is listed, moved or deleted behind it
                self._add_bad(name, "", "is a link; a cache has none")
                self.left.append(
                    f"{store.locate(folder)}: is a link; replace it with the folder itself"
                )
                continue
            try:
                folders[name] = names_in(store, folder)
            except OSError as error:
                self._add_unreadable(name, "", error)
        self.total = sum(len(_record_names(names)) for names in folders.values())
        return folders

    def check_space(self, name: str, file_names: Sequence[str]) -> None:
        """Check the files of one space's folder, which holds `file_names`."""
        plain_space = Space(self.cache.store, name)  # needs no description
        try:
            space = self._described(plain_space, file_names)
        except RemovedMeanwhile:
            return
        records = self._check_shards(space, file_names)
        try:
            pending = quarantine.pending(plain_space, records)
            self.lost += [(space, shard) for shard in pending]
        except CannotRead as error:
            self._report(
                plain_space, f"{quarantine.FOLDER}/{Path(str(error.path)).name}", error, file_names
            )

    def _described(self, plain_space: Space, file_names: Sequence[str]) -> Space:
        """The space with its key and names if its description is sound, else `plain_space`. Raises
        RemovedMeanwhile where gc has deleted it."""
        is_damaged = False
        try:
            space = self.cache.described_space(plain_space.name)
            if space is not None:
                return space
            if _record_names(file_names):
                present = names_in(plain_space.store, plain_space.folder)
                if "space.json" in present or not _record_names(present):
                    file = plain_space.file("space.json")
                    raise RemovedMeanwhile(file, FileNotFoundError(errno.ENOENT, "was removed"))
                is_damaged = True
                reason = "is missing; the featurize that made the space writes it again"
                self._add_bad(plain_space.name, "space.json", reason)
        except DamagedCache as error:
            is_damaged = True
            self._report(plain_space, "space.json", error, file_names)
        except RemovedMeanwhile:
            raise
        except CannotRead as error:
            self._report(plain_space, "space.json", error, file_names)
        if self.repair and is_damaged:
            self.left.append(
                f"{plain_space.name}: without its space.json none of its rows can be recomputed; "
                "the featurize or augment that made the space writes it again"
            )
        return plain_space

    def _check_shards(self, space: Space, file_names: Sequence[str]) -> list[Record]:
        """Check every shard of a space. Returns the records of the sound ones if any may be needed
        to find rows that are pending in quarantine."""
        may_be_pending = self.repair or quarantine.FOLDER in file_names
        records = []
        for name in _record_names(file_names):
            self.shards += 1
            self.progress(self.shards, self.total, "verify")
            try:
                reason, record = _check_shard(space, name)
            except RemovedMeanwhile:
                self.shards -= 1
                continue
            except CannotRead as error:
                self._report(space, name, error, file_names)
                continue
            self.rows += len(record.items) // 32 if record else 0
            if reason:
                self._report(space, name, DamagedCache(reason), file_names)
            elif record is not None and may_be_pending:
                records.append(record)
        return records

    def check_notes(self) -> None:
        """Check the notes of runs."""
        store = self.cache.store
        for name in names_in(store, "runs"):
            if not name.endswith(".json"):
                continue
            file = StoredFile(store, f"runs/{name}")
            try:
                _check_note(file)
            except CannotRead as error:
                self._add_unreadable("", file.key, error.error)
            except DamagedCache as error:
                self._add_bad("", file.key, error.reason)
                if self.repair:
                    quarantine.move_file(store, "runs", name, name)
                    self.left.append(
                        f"{file.key}: its run is unknown, so gc may not spare the run's spaces; "
                        "the train-head that made the run writes it again"
                    )

    def _report(
        self, space: Space, name: str, error: DamagedCache | CannotRead, file_names: Sequence[str]
    ) -> None:
        """Note that a file of a space is bad or can't be read; quarantine a bad one."""
        if isinstance(error, CannotRead):
            self._add_unreadable(space.name, name, error.error)
            return
        self._add_bad(space.name, name, error.reason)
        if self.repair:
            try:
                quarantine.quarantine_file(Space(space.store, space.name), name, file_names)
            except CannotRead as unreadable:
                self._add_unreadable(space.name, name, unreadable.error)

    def _add_bad(self, space: str, file: str, reason: str) -> None:
        self.bad.append({"space": space, "file": file, "reason": reason})

    def _add_unreadable(self, space: str, file: str, error: OSError) -> None:
        self.unreadable.append({"space": space, "file": file, "reason": why(error)})


def _record_names(file_names: Iterable[str]) -> list[str]:
    return [name for name in file_names if name.endswith(".json") and name != "space.json"]


def _check_shard(space: Space, name: str) -> tuple[str, Record | None]:
    """What is wrong with the shard of this record ("" if nothing), and the record if it can be
    read. Raises CannotRead."""
    reason, record = _compare(space, name)
    if reason and space.store.read_attempts > 1:  # a reply may be cut, or differ the next time
        _check_replies(space.file(name), MAX_RECORD)
        if record is not None and record.file in names_in(space.store, space.folder):
            _check_replies(space.file(record.file), record.size)
        reason, record = _compare(space, name)
    return reason, record


def _check_note(file: StoredFile) -> None:
    """Raises CannotRead, DamagedCache."""
    try:
        read_note(file)
    except DamagedCache:
        if file.store.read_attempts > 1:
            _check_replies(file, MAX_NOTE)
        read_note(file)


def _check_replies(file: StoredFile, max_bytes: int) -> None:
    """Raise CannotRead unless the store sends the same bytes twice, and as many as it reports as
    the size."""
    try:
        first, second = (file.read(max_bytes) for _ in range(2))
        if first != second or len(first) != file.size():
            raise OSError(errno.EIO, "the store sends other bytes each time, or too few")
    except NotAFile:
        return
    except OSError as error:
        raise CannotRead(file, error) from error


def _compare(space: Space, name: str) -> tuple[str, Record | None]:
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
        if record.row_digests and record.row_digests != digest_rows(arrays["features"])[1]:
            return "its row digests are not those of its rows", record
        undecodable = {arrays["items"][row].tobytes() for row in np.flatnonzero(arrays["status"])}
        failed = {bytes.fromhex(item) for item in record.failed}
        if (undecodable or failed) and undecodable != failed.intersection(record.item_list):
            return "failed: not the items without a row", record
    except DamagedCache as error:
        return error.reason, record
    if not shards.is_finite(arrays):
        return shards.NOT_FINITE, record
    return shards.check_hdf5(data, record.arrays) or "", record


def _recompute(
    cache: Cache, max_rows: int, dataset: Dataset, recomputer: Recomputer, seed: int
) -> list[Drift]:
    """The drift of up to `max_rows` recomputed rows of each space of vectors."""
    sources = sources_of(dataset.samples, items_of(dataset.samples)[0])
    rng = np.random.default_rng(seed)
    drifts = []
    for space in cache.spaces():
        if space.backbone is None:
            continue
        failed = space.failures(space.rows)
        available = [item for item in space.rows if item in sources and item not in failed]
        drift = Drift(
            space=space.name, view=space.view, backbone=space.backbone,
            setting=keys.setting_beside_names(space.key), rows=0, identical=0, relative=0.0,
            note=f"none of its images is in {dataset.root}",
        )  # fmt: skip
        if not available:
            drifts.append(drift)
            continue
        chosen = [available[i] for i in rng.permutation(len(available))[:max_rows]]
        try:
            recomputed = recomputer.make(space, [(sources[item], item) for item in chosen])
        except FeatureCacheError as error:
            drifts.append(replace(drift, note=str(error)))
            continue
        old, _ = space.vectors(chosen)
        new = recomputed.arrays["features"].reshape(len(old), -1).astype(np.float32)
        identical, relative = compared(old, new)
        note = other_pixels(view_of_key(space.key, space.view), space)
        drifts.append(
            replace(drift, rows=len(chosen), identical=identical, relative=relative, note=note)
        )
    return drifts


def compared(old: np.ndarray, new: np.ndarray) -> tuple[int, float]:
    """How many of the rows (N, D) are the same bytes, and the greatest |new - old| over the
    greatest |old|."""
    same = int((old.view(np.uint32) == new.view(np.uint32)).all(axis=1).sum())
    return same, float(np.abs(new - old).max() / max(float(np.abs(old).max()), 1e-30))
