"""The store: a cache is a folder of spaces, a space a folder of committed shards.

A shard is its record: `<shard>.json` names a data file `<shard>-<hash>.h5` by content, so two
writers with other last bits never touch each other's bytes, and whichever record is linked first
is the shard. A file that no record names does not exist for a reader (laws 3, 4; docs/format.md).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic

from featurecache import durable, locks, records
from featurecache.errors import BadInput, DamagedCache, FeatureCacheError
from featurecache.features import shards
from featurecache.regular import read_regular

MARKER = "CACHE.json"
FORMAT_NAME = "featurecache cache"
_MOST_RECORD = 256 << 20  # bytes; 64 a row, and what is said of the shard

Hex64 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


class Record(pydantic.BaseModel):
    """The commit record of a shard: it exists, therefore the shard does, with these bytes."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    format: int
    space: str
    shard: str
    file: str = pydantic.Field(pattern=r"^[0-9a-f]{64}-[0-9a-f]{16}\.h5$")
    size: pydantic.NonNegativeInt
    sha256: str
    arrays: dict[str, shards.Array]
    items: str  # 64 hex digits a row
    row_sum: Hex64
    failed: dict[Hex64, str]  # item -> why it could not be decoded
    provenance: dict[str, str]
    made: dict[str, str | float]

    @cached_property
    def item_list(self) -> list[bytes]:
        raw = bytes.fromhex(self.items)
        return [raw[i : i + 32] for i in range(0, len(raw), 32)]


class Cache:
    """A folder of spaces. Opening never writes; the folder is made by the first commit."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if self.exists:
            _check_marker(self.root / MARKER)
        elif self.root.is_dir() and not _unmarked(self.root):
            raise BadInput(
                f"{self.root} is not a featurecache cache (it has no {MARKER}) and is not empty; "
                "give another --cache"
            )
        elif self.root.exists() and not self.root.is_dir():
            raise BadInput(f"{self.root} is not a folder; give another --cache")

    @property
    def exists(self) -> bool:
        return (self.root / MARKER).is_file()

    def create(self) -> None:
        """Make the folder and its marker, if need be. Raises BadInput if it can't be written."""
        marker = {"format": FORMAT_NAME, "version": records.FORMAT_VERSION}
        try:
            data = json.dumps(marker, indent=1).encode() + b"\n"
            if not self.root.exists():
                # Appears with its marker in it: a bare folder among images would look like a class.
                self.root.parent.mkdir(parents=True, exist_ok=True)
                fresh = self.root.with_name(f".{self.root.name}.{secrets.token_hex(8)}.tmp")
                fresh.mkdir()
                durable.link_new(fresh / MARKER, data)
                with contextlib.suppress(OSError):  # another process was first
                    fresh.rename(self.root)
                shutil.rmtree(fresh, ignore_errors=True)
            durable.sync_folder(self.root.parent)
            with locks.together(self.root):
                if not self.exists:
                    durable.link_new(self.root / MARKER, data)
                (self.root / "spaces").mkdir(exist_ok=True)
                durable.sync_folder(self.root)
                probe = self.root / f".probe.{secrets.token_hex(8)}.tmp"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise BadInput(
                f"cache {self.root} can't be written ({error.strerror}); give another --cache"
            ) from error

    def note_run(self, run: Path, spaces: Iterable[str]) -> bool:
        """Remember that a run is trained on these spaces, so that `gc` spares them. False where
        this cache can't be written."""
        note = {"run": str(run.absolute()), "spaces": sorted(spaces)}
        path = self.root / "runs" / f"{records.digest(note['run'])[:16]}.json"
        data = json.dumps(note).encode() + b"\n"
        try:
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(exist_ok=True)
                durable.replace(path, data)
        except OSError:
            return False
        return True

    def runs(self) -> dict[str, list[Path]]:
        """The run folders that were trained on each space, by its name, and are still there."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.root.glob("runs/*.json")):
            try:
                note = json.loads(path.read_bytes())
                run, spaces = Path(note["run"]), list(note["spaces"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _damaged(path, f"not a note of a run ({error})") from error
            for space in spaces if run.is_dir() else []:
                found.setdefault(str(space), []).append(run)
        return found

    def space(self, key: records.Json, view: str = "", backbone: str | None = None) -> Space:
        """The space with this key, there or not. The names are for people, and for new spaces."""
        identity = records.digest(key)
        return Space(self.root / "spaces" / identity, key, view, backbone)

    def spaces(self) -> list[Space]:
        """All spaces, by view and backbone."""
        folder = self.root / "spaces"
        paths = folder.iterdir() if folder.is_dir() else ()
        found = [self.space_in(path) for path in paths if not path.name.startswith(".")]
        return sorted(
            (space for space in found if space is not None),
            key=lambda space: (space.view, space.backbone or "", space.path.name),
        )

    def space_in(self, path: Path) -> Space | None:
        """The space in a folder, or None for one in which none was finished being made."""
        description = path / "space.json"
        if not description.is_file():
            return None
        try:
            if path.is_symlink():
                raise ValueError("its folder is a link; a cache holds none")
            data = _read(description, _MOST_RECORD)
            value = json.loads(data)
            if value.pop("checksum") != records.digest(value) or not data.endswith(b"\n"):
                raise ValueError("its checksum does not hold")
            key, names = value["key"], value["names"]
            if records.digest(key) != path.name:
                raise ValueError("the key is not the folder's")
            return Space(path, key, str(names["view"]), names["backbone"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(description, f"not a space's description ({error})") from error


class Space:
    """All vectors of one (view, backbone), or all pictures of one view: item -> row."""

    def __init__(self, path: Path, key: records.Json, view: str, backbone: str | None) -> None:
        self.path = path
        self.key = key
        self.view = view
        self.backbone = backbone
        self._loaded: tuple[str, dict[str, np.ndarray]] | None = None

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The records of the shards that were committed when this was first read, by name."""
        if not self.path.is_dir():
            return ()
        names = sorted(e.name for e in os.scandir(self.path))
        return tuple(
            self.read_record(self.path / name)
            for name in names
            if name.endswith(".json") and name != "space.json"
        )

    @cached_property
    def rows(self) -> dict[bytes, tuple[int, int]]:
        """item -> (number of its record, row in it). Of an item in two shards the first row counts,
        but one whose image could be decoded before one whose could not: `retry` adds such."""
        found: dict[bytes, tuple[int, int]] = {}
        bad: set[bytes] = set()
        for number, record in enumerate(self.records):
            failed = {bytes.fromhex(item) for item in record.failed}
            for row, item in enumerate(record.item_list):
                if item not in found or (item in bad and item not in failed):
                    found[item] = (number, row)
                    (bad.add if item in failed else bad.discard)(item)
        return found

    @property
    def size(self) -> int:
        return sum(record.size for record in self.records)

    @property
    def root_hash(self) -> str:
        """A hash over items and contents, independent of shard cutting and of time.

        From the records alone, unless shards overlap (two writers at once cut them differently).
        """
        total = sum(int(record.row_sum, 16) for record in self.records)
        if sum(len(r.item_list) for r in self.records) != len(self.rows):
            chosen: dict[int, list[int]] = {}
            for number, row in self.rows.values():
                chosen.setdefault(number, []).append(row)
            total = sum(shards.sum_of_rows(self.read(n), rows) for n, rows in chosen.items())
        return shards.root_hash(len(self.rows), total % 2**256)

    def missing(self, items: Iterable[bytes]) -> list[bytes]:
        """The items that no committed shard holds, each once, in the order given (law 3)."""
        return [item for item in dict.fromkeys(items) if item not in self.rows]

    def failures(self, items: Iterable[bytes]) -> dict[bytes, str]:
        """Those of `items` whose image could not be decoded, with the reason."""
        found = {}
        for item in items:
            if item in self.rows:
                reason = self.records[self.rows[item][0]].failed.get(item.hex())
                if reason is not None:
                    found[item] = reason
        return found

    def vectors(self, items: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `items` in their order: (N, D) float32 vectors and (N,) bool, decodable or
        not (an undecodable image's row is zeros).

        Every shard's bytes are hashed before a row of them is used. Raises KeyError for an item
        that is not held (ask `missing` first), DamagedCache for bytes that are not the record's.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}
        for position, item in enumerate(items):
            number, row = self.rows[item]
            wanted.setdefault(number, []).append((position, row))
        out = np.empty((len(items), 0), np.float32)
        fine = np.empty(len(items), bool)
        for number, pairs in wanted.items():
            arrays = self.read(number)
            positions, rows = np.array(pairs).T
            features = arrays["features"]
            if out.shape[1] == 0:  # not before a shard was read: its record may say anything
                out = np.empty((len(items), features.shape[1]), np.float32)
            if features.shape[1] != out.shape[1]:
                raise _damaged(
                    self.path / self.records[number].file, "its vectors have another length"
                )
            out[positions] = features[rows]
            fine[positions] = arrays["status"][rows] == shards.OK
        return out, fine

    @property
    def dim(self) -> int:
        """The length of the vectors; 0 for a space without rows."""
        return self.records[0].arrays["features"].shape[1] if self.records else 0

    def picture(self, item: bytes) -> bytes | None:
        """The encoded picture of one item in a space of pictures; None if it is not held.

        Empty bytes for an image that could not be decoded.
        """
        if item not in self.rows:
            return None
        number, row = self.rows[item]
        record = self.records[number]
        if self._loaded is None or self._loaded[0] != record.shard:
            self._loaded = (record.shard, self.read(number))  # neighbours come from one shard
        return shards.row_bytes(self._loaded[1], row)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of one committed shard, its bytes hashed first. Raises DamagedCache."""
        return shards.unpack(self.read_bytes(self.records[number]), self.records[number].arrays)

    def read_bytes(self, record: Record) -> bytes:
        """The bytes of a shard, if they are the ones that were committed."""
        path = self.path / record.file
        try:
            data = _read(path, record.size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise _damaged(path, f"can't be read ({error.strerror})") from error
            data = b""  # it has grown
        if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
            raise _damaged(path, "its bytes are not the ones that were committed")
        return data

    def read_record(self, path: Path) -> Record:
        """A commit record, if its checksum and its names hold. Raises DamagedCache, BadInput."""
        try:
            data = _read(path, _MOST_RECORD)
            value = json.loads(data)
            whole = value.pop("checksum") == records.digest(value) and data.endswith(b"\n")
            # Asked before the fields are looked at: a newer format may have others.
            if whole and value["format"] > records.FORMAT_VERSION:
                raise BadInput(f"{path}: written by a newer featurecache; upgrade to read it")
            record = Record.model_validate(value)
            raw = bytes.fromhex(record.items)
            shards.check_layout(record.arrays, len(record.item_list))
            if len(raw) % 32:
                raise ValueError("half an item")
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise _damaged(path, "not a commit record") from error
        if (
            not whole
            or record.shard != hashlib.sha256(raw).hexdigest()
            or path.name != f"{record.shard}.json"
            or record.space != self.path.name
        ):
            raise _damaged(path, "a commit record that does not match its checksum")
        return record

    def claim(self, shard: str) -> locks.Claim | None:
        """The right to make this shard, or None while another process has it."""
        return locks.claim(self._locks / f"{self.path.name[:16]}-{shard[:16]}")

    @property
    def in_use(self) -> bool:
        """Is a process making a shard of this space now?"""
        for path in self._locks.glob(f"{self.path.name[:16]}-*"):
            claim = locks.claim(path)
            if claim is None:
                return True
            claim.release()  # of a process that was killed
        return False

    @property
    def _locks(self) -> Path:
        return self.path.parent.parent / "locks"

    def has(self, shard: str) -> bool:
        """Is this shard committed now? Looks at the disk, unlike `records`."""
        return (self.path / f"{shard}.json").is_file()

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
        `offsets` (N + 1, uint64). Rows of `failed` items are zeros. Raises FeatureCacheError when
        the disk refuses; then nothing of this shard is visible to any reader.
        """
        name = shards.shard_name(items)
        status = [shards.UNDECODABLE if item in failed else shards.OK for item in items]
        whole = {
            **arrays,
            "items": np.frombuffer(b"".join(items), np.uint8).reshape(len(items), 32),
            "status": np.array(status, np.uint8),
        }
        attributes = {
            "format": str(records.FORMAT_VERSION),
            "key": records.canonical(self.key).decode(),
            "provenance": records.canonical(dict(provenance)).decode(),
        }
        data, layout = shards.pack(whole, attributes)
        sha256 = hashlib.sha256(data).hexdigest()
        record = Record(
            format=records.FORMAT_VERSION,
            space=self.path.name,
            shard=name,
            file=f"{name}-{sha256[:16]}.h5",
            size=len(data),
            sha256=sha256,
            arrays=layout,
            items=b"".join(items).hex(),
            row_sum=f"{shards.sum_of_rows(whole):064x}",
            failed={item.hex(): reason for item, reason in failed.items()},
            provenance=dict(provenance),
            made={
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "seconds": round(seconds, 3),
            },
        ).model_dump(mode="json")
        record["checksum"] = records.digest(record)
        try:
            self.describe()
            with locks.together(self.path):  # until the record is there, the data is nobody's
                path = self.path / str(record["file"])
                if not durable.link_new(path, data) and _hash_of(path) != sha256:
                    # The remains of a crash or a bad disk under our exact name.
                    durable.replace(path, data)
                first = durable.link_new(
                    self.path / f"{name}.json", json.dumps(record).encode() + b"\n"
                )
                if not first:
                    winner = self.read_record(self.path / f"{name}.json")
                    if winner.file != record["file"]:
                        path.unlink(missing_ok=True)
        except OSError as error:
            raise FeatureCacheError(
                f"{self.path}: a shard could not be written ({error.strerror}). What was "
                "committed before stays; make room or repair the disk, then run again"
            ) from error
        return first

    def describe(self) -> None:
        """Make the folder with the description of this space, where there is none."""
        if not (self.path / "space.json").is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            durable.sync_folder(self.path.parent)
            names = {"view": self.view, "backbone": self.backbone}
            space: records.Json = {"key": self.key, "names": names}
            space["checksum"] = records.digest(space)
            with locks.together(self.path):
                durable.link_new(
                    self.path / "space.json", json.dumps(space, indent=1).encode() + b"\n"
                )

    def quarantine(self, name: str) -> None:
        """Move one file of this space out of every reader's sight, keeping it to be looked at."""
        aside = self.path / "quarantine"
        aside.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another repair was first
            (self.path / name).replace(aside / name)


def _unmarked(root: Path) -> bool:
    """Is this folder empty, or a cache whose making was cut short before its marker was there?"""
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    return names <= {"spaces"} or (root / MARKER).is_file()  # another process may be making it


def _check_marker(marker: Path) -> None:
    try:
        data = _read(marker, _MOST_RECORD)
        value = json.loads(data)
        name, version = value["format"], value["version"]
        if not data.endswith(b"\n"):
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{marker} can't be understood; is this a featurecache cache?") from error
    if name != FORMAT_NAME or not isinstance(version, int) or version < 1:
        raise BadInput(f"{marker} is not of a featurecache cache; give another --cache")
    if version > records.FORMAT_VERSION:
        raise BadInput(
            f"cache {marker.parent} has format {version}; this featurecache reads up to "
            f"{records.FORMAT_VERSION}: upgrade it, or give another --cache"
        )


def _read(path: Path, most: int) -> bytes:
    return read_regular(path, most, follow=False)  # a cache holds no links


def _damaged(path: Path, what: str) -> DamagedCache:
    return DamagedCache(f"{path}: {what}; `featurecache verify --repair` sets it aside", what)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
