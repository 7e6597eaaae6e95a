"""Spaces: the vectors of one view under one backbone, in a folder of committed shards.

A shard is its record: `<shard>.json` names a data file `<shard>-<hash>.h5` by content. So two
writers whose vectors differ in the last bits never touch each other's bytes, and the record that is
linked first is the shard. Readers ignore files that no record names (law 3, "Rows are addressed by
item"; law 4, "Committed or absent"; docs/format.md).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from featurecache import keys
from featurecache.errors import CannotRead, FeatureCacheError, NotAFile
from featurecache.features import shards
from featurecache.features.cache_files import (
    OTHER_BYTES,
    absent_shard,
    check_cache_folder,
    damaged,
    retry_if_damaged,
)
from featurecache.features.commit_records import new_shard, read_record
from featurecache.features.row_reader import as_slice, read_rows
from featurecache.features.space_files import Record, SpaceSummary
from featurecache.items import ItemArray, Items, Lookup, packed
from featurecache.machine import cores
from featurecache.notebook import html_table
from featurecache.storage.store import Store, names_in
from featurecache.storage.stored_file import StoredFile

_RECORD = re.compile(r"(?!space\.).*\.json")
# Bytes per shard, on average, below which one thread reads all rows: each system call and each hash
# releases the interpreter lock, and if they are short, several threads mostly wait for it.
_FEW_BYTES = 1 << 17


class Space:
    """All vectors of one (view, backbone), or all pictures of one view: item -> row."""

    def __init__(
        self,
        store: Store,
        name: str,
        key: keys.Json | None = None,
        view: str = "",
        backbone: str | None = None,
    ) -> None:
        """`name` is the digest of the key, 64 hex digits. A space without a key has no description,
        or its caller needs none."""
        self.store = store
        self.name = name
        self.key = key or {}
        self.view = view
        self.backbone = backbone
        self._loaded: tuple[str, dict[str, np.ndarray]] | None = None

    def __getstate__(self) -> dict[str, object]:
        """The state that a worker process gets; it reads the rows itself."""
        names = ("store", "name", "key", "view", "backbone")
        return {name: getattr(self, name) for name in names} | {"_loaded": None}

    @property
    def folder(self) -> str:
        """The name of the space's folder in the store."""
        return f"spaces/{self.name}"

    def file(self, name: str) -> StoredFile:
        """The file of this name in the space's folder."""
        return StoredFile(self.store, f"{self.folder}/{name}")

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The records of the shards that were committed at the first access, sorted by name."""
        names = [name for name in names_in(self.store, self.folder) if _RECORD.fullmatch(name)]
        if self.store.parallel_requests > 1:
            with ThreadPoolExecutor(self.store.parallel_requests) as pool:
                return tuple(pool.map(self.read_record, names))
        return tuple(map(self.read_record, names))

    @cached_property
    def rows(self) -> dict[bytes, tuple[int, int]]:
        """item -> (record index, row in its shard). If several shards hold an item, its first row
        counts; a row of a decodable image goes before one of an undecodable one (`retry` adds
        these)."""
        rows: dict[bytes, tuple[int, int]] = {}
        undecodable: set[bytes] = set()
        for record_index, record in enumerate(self.records):
            items = record.item_list
            is_new = len(set(items)) == len(items) and rows.keys().isdisjoint(items)
            if is_new and not (record.failed or undecodable):  # as below, with no loop over rows
                positions = [(record_index, row) for row in range(len(items))]
                rows.update(zip(items, positions, strict=True))
                continue
            failed = {bytes.fromhex(item) for item in record.failed}
            for row, item in enumerate(items):
                if item not in rows or (item in undecodable and item not in failed):
                    rows[item] = (record_index, row)
                    (undecodable.add if item in failed else undecodable.discard)(item)
        return rows

    @cached_property
    def lookup(self) -> Lookup:
        """Positions of the items in all records end to end. For plans over millions of rows, for
        which `rows` takes too much memory."""
        return Lookup(packed(record.items for record in self.records))

    def positions(self, items: ItemArray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) record index, and (n,) row in its shard, of each item, as in `rows`. No object is
        made per row of the space. Raises KeyError for an item that the space lacks."""
        wanted = packed(items)
        entries = self.lookup.positions(wanted)
        if len(entries) and entries.min() < 0:
            raise KeyError(wanted[int(entries.argmin())].tobytes())
        if self.lookup.has_twins and self._decodable is not None:
            decodable = self.lookup.positions(wanted, self._decodable)
            entries = np.where(decodable < 0, entries, decodable)
        ends = np.cumsum([len(record.items) // 32 for record in self.records], dtype=np.int64)
        record_indices = np.searchsorted(ends, entries, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return record_indices, entries - starts[record_indices] if len(entries) else entries

    @cached_property
    def _decodable(self) -> np.ndarray | None:
        """(N,) bool, for all records end to end: whether the image of the row is decodable; None if
        all are."""
        if not any(record.failed for record in self.records):
            return None
        rows: np.ndarray = np.concatenate([record.decodable for record in self.records])
        return rows

    @cached_property
    def count(self) -> int:
        """The number of items in the space."""
        array = self.lookup.array
        return len(Items(array).distinct) if self.lookup.has_twins else len(array)

    @property
    def size(self) -> int:
        """Bytes of all data files."""
        return sum(record.size for record in self.records)

    @property
    def root_hash(self) -> str:
        """A hash over items and contents, independent of how rows are cut into shards and of time.

        Computed from the records alone, unless shards overlap (two writers at the same time cut
        their rows differently).
        """
        total = sum(int(record.row_sum, 16) for record in self.records)
        if len(self.lookup.array) != self.count:
            record_indices, rows = self.positions(Items(self.lookup.array).distinct_array)
            total = sum(
                shards.sum_of_rows(self.read(n), rows[record_indices == n].tolist())
                for n in np.unique(record_indices).tolist()
            )
        return shards.root_hash(self.count, total % 2**256)

    @property
    def pixel_canaries(self) -> list[str]:
        """The canaries that the shards record: several if the pixels come from several kinds of
        machines. Shards of older versions record none."""
        return sorted(set().union(*(record.pixel_canaries for record in self.records)))

    def summary(self) -> SpaceSummary:
        """The fields that `ls` and `--json` show."""
        return {
            "space": self.name,
            "view": self.view,
            "backbone": self.backbone,
            "setting": keys.setting_beside_names(self.key),
            "rows": self.count,
            "bytes": self.size,
            "root_hash": self.root_hash,
            "pixel_canaries": self.pixel_canaries,
        }

    def _repr_html_(self) -> str:
        return html_table("space", self.summary())

    def holds(self, items: np.ndarray) -> np.ndarray:
        """(N,) bool: which of `items` (N, 32) uint8 the space holds."""
        return self.lookup.holds(items)

    def missing(self, items: Iterable[bytes] | np.ndarray) -> list[bytes]:
        """The items that no committed shard holds, in order and without repeats (law 3, "Rows are
        addressed by item")."""
        wanted = packed(items)
        return list(dict.fromkeys(row.tobytes() for row in wanted[~self.holds(wanted)]))

    @cached_property
    def failed(self) -> dict[bytes, str]:
        """The items whose image could not be decoded, with the reason."""
        listed = list({bytes.fromhex(item): None for r in self.records for item in r.failed})
        if not listed:
            return {}
        are_held = self.holds(packed(listed)).tolist()
        items = [item for item, is_held in zip(listed, are_held, strict=True) if is_held]
        record_indices, _ = self.positions(items)  # of the row that counts
        return {
            item: self.records[index].failed[item.hex()]
            for item, index in zip(items, record_indices.tolist(), strict=True)
            if item.hex() in self.records[index].failed
        }

    def failures(self, items: Iterable[bytes]) -> dict[bytes, str]:
        """Those of `items` whose image could not be decoded, with the reason."""
        return {item: self.failed[item] for item in items if item in self.failed}

    def vectors(self, items: ItemArray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `items`, in their order: (N, D) float32 vectors, and (N,) bool, whether the
        image is decodable (the row of an undecodable one is zeros). Maps are flattened.

        The bytes of each row are checked before it is used: with the digests of rows, or with the
        hash of its whole shard where there are none, or in an object store. Raises KeyError for an
        item that the space lacks (call `missing` first), DamagedCache for bytes that do not match
        the record.
        """
        record_indices, rows = self.positions(items)
        decodable = np.empty(len(items), bool)
        if not len(items):
            return np.empty((0, self.dim), np.float32), decodable
        # Memory is allocated only for a length that a file has: a record may state any.
        first = int(record_indices[0])
        width = math.prod(self.records[first].arrays["features"].shape[1:])
        self._read_rows(first, np.empty(0, np.int64), np.empty((0, width), np.float32))
        vectors = np.empty((len(items), width), np.float32)

        def fill(positions: np.ndarray) -> None:
            record_index = int(record_indices[positions[0]])
            record = self.records[record_index]
            if math.prod(record.arrays["features"].shape[1:]) != width:
                raise damaged(self.file(record.file), "its vectors have another length")
            target = as_slice(positions)
            if isinstance(target, slice):
                decodable[target] = self._read_rows(record_index, rows[target], vectors[target])
            else:
                out = np.empty((len(target), width), np.float32)
                decodable[target] = self._read_rows(record_index, rows[target], out)
                vectors[target] = out

        by_record = np.argsort(record_indices, kind="stable")
        ends = np.flatnonzero(np.diff(record_indices[by_record])) + 1
        parts = np.split(by_record, ends)
        few = self._has_row_digests and vectors.nbytes < _FEW_BYTES * len(parts)
        with ThreadPoolExecutor(min(cores(), 8)) as pool:
            for _ in (map if few else pool.map)(fill, parts):
                pass
        return vectors, decodable

    @property
    def _has_row_digests(self) -> bool:
        """Whether rows can be read without the rest of their shards."""
        return self.store.local_folder is not None and all(r.row_digests for r in self.records)

    @property
    def dim(self) -> int:
        """The length of the vectors, or of flattened maps; 0 for a space without rows."""
        return math.prod(self.records[0].arrays["features"].shape[1:]) if self.records else 0

    def picture(self, item: bytes) -> bytes | None:
        """The encoded picture of an item in a space of pictures; None if the space lacks it, empty
        bytes for an image that could not be decoded."""
        if item not in self.rows:
            return None
        record_index, row = self.rows[item]
        record = self.records[record_index]
        if self._loaded is None or self._loaded[0] != record.shard:
            # Callers usually ask for the pictures of one shard in sequence.
            self._loaded = (record.shard, self.read(record_index))
        return shards.row_bytes(self._loaded[1], row)

    def read(self, record_index: int) -> dict[str, np.ndarray]:
        """The arrays of a committed shard, whose bytes are hashed first. Raises DamagedCache,
        CannotRead."""
        record = self.records[record_index]
        arrays = shards.unpack(self.read_bytes(record), record.arrays)
        if not shards.is_finite(arrays):  # `commit` refuses these; another writer may not
            raise damaged(self.file(record.file), shards.NOT_FINITE)
        return arrays

    def read_bytes(self, record: Record, fresh: bool = False) -> bytes:
        """The committed bytes of a shard. Those of an object may come from a local copy, unless
        `fresh`. Raises DamagedCache, CannotRead."""
        file = self.file(record.file)
        try:
            data = self.store.read_content(file.key, record.size, record.sha256, fresh=fresh)
        except (NotAFile, FileNotFoundError) as error:
            raise absent_shard(file, record.shard, error) from error
        except OSError as error:
            raise CannotRead(file, error) from error
        if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
            raise damaged(file, OTHER_BYTES)
        return data

    def _read_rows(self, record_index: int, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the rows (n,) of a shard to `out` (n, width) float32, C-contiguous, and return (n,)
        bool: whether each image is decodable. Only these rows are read and checked where the shard
        is a local file with digests of its rows. Raises DamagedCache, CannotRead."""
        record = self.records[record_index]
        summary = record.row_digests
        if summary is None or self.store.local_folder is None:
            arrays = self.read(record_index)
            out[:] = arrays["features"].reshape(-1, out.shape[1])[as_slice(rows)]
            return np.asarray(arrays["status"][rows] == shards.OK)
        file = self.file(record.file)
        in_place = record.arrays["features"].dtype == "<f4"
        stored = out if in_place else np.empty(out.shape, record.arrays["features"].dtype)
        read_rows(file, record, summary, rows, stored)
        if not in_place:
            out[:] = stored
        return np.asarray(record.decodable[rows])

    def read_record(self, name: str) -> Record:
        """The commit record of this name in the space's folder, if its checksum holds and its names
        match. Raises DamagedCache, CannotRead, BadInput."""
        file = self.file(name)
        return retry_if_damaged(self.store, lambda: read_record(file, self.name, self.key))

    def has(self, shard: str) -> bool:
        """Whether this shard is committed now. Looks at the disk, unlike `records`."""
        return self.file(f"{shard}.json").exists()

    def commit(
        self,
        items: Sequence[bytes],
        arrays: Mapping[str, np.ndarray],
        failed: Mapping[bytes, str],
        provenance: Mapping[str, str],
        seconds: float,
    ) -> bool:
        """Commit the rows of `items` as one shard. False if another writer was first.

        `arrays` is `features` (N, D) float32, or `pictures` (bytes end to end, uint8) with
        `offsets` (N + 1, uint64). Rows of `failed` items are zeros. Raises FeatureCacheError where
        the disk refuses or the cache is gone; readers then see nothing of this shard.
        """
        check_cache_folder(self.store)
        if not shards.is_finite(arrays):
            raise FeatureCacheError(
                f"{self.store.locate(self.folder)}: not stored: {shards.NOT_FINITE}"
            )
        data, record = new_shard(self.name, self.key, items, arrays, failed, provenance, seconds)
        file, record_name = self.file(record["file"]).key, f"{record['shard']}.json"
        is_first = False
        try:
            self.describe()
            # Until the record exists, no record names the data: the lock keeps `sweep` off it.
            with self.store.lock_shared(self.folder):
                if not self.store.put_if_absent(file, data) and (
                    _hash_of(self.store, file, len(data)) != record["sha256"]
                ):
                    # A crash or a bad disk left other bytes under this name.
                    self.store.replace(file, data)
                is_first = self.store.put_if_absent(
                    self.file(record_name).key, json.dumps(record).encode() + b"\n"
                )
                if not is_first and self.read_record(record_name).file != record["file"]:
                    self.store.delete(file)
        except OSError as error:
            check_cache_folder(self.store)
            raise FeatureCacheError(
                f"{self.store.locate(self.folder)}: a shard could not be written "
                f"({error.strerror}). The shards committed before stay; make room or repair the "
                "disk, then run again"
            ) from error
        return is_first

    def describe(self) -> None:
        """Make the folder and the description of this space, unless it has one."""
        description = self.file("space.json")
        if not description.exists():
            self.store.make_folder(self.folder)
            names = {"view": self.view, "backbone": self.backbone}
            space: keys.Json = {"key": self.key, "names": names}
            space["checksum"] = keys.digest(space)
            with self.store.lock_shared(self.folder):
                self.store.put_if_absent(
                    description.key, json.dumps(space, indent=1).encode() + b"\n"
                )


def _hash_of(store: Store, name: str, size: int) -> str:
    """The SHA-256 of a file of at most `size` bytes; "" for one that is larger."""
    try:
        return hashlib.sha256(store.read(name, size)).hexdigest()
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return ""
