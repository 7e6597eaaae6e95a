"""The store: a cache is a folder of spaces (spaces.py), with a marker, and with notes of who makes
what now and which runs stand on it (docs/format.md)."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from featurecache import keys
from featurecache.errors import BadInput, CannotRead, DamagedCache
from featurecache.features.space_files import (
    MARKER,
    MAX_NOTE,
    MAX_RECORD,
    Description,
    Marker,
    RunNote,
    check_checksum,
)
from featurecache.features.spaces import Space, check_cache, damaged, insisted, read_own
from featurecache.json_files import read_model
from featurecache.storage import durable, locks, object_store

FORMAT_NAME = "featurecache cache"


class Cache:
    """A folder of spaces. Opening never writes; the folder is made by the first commit."""

    def __init__(self, root: str | Path) -> None:
        self.root = object_store.as_path(root)
        if object_store.is_remote(self.root):
            object_store.reachable(self.root)
        if self.exists:
            insisted(self.root, lambda: _check_marker(self.root / MARKER))
        elif (object_store.is_remote(self.root) or self.root.is_dir()) and not _unmarked(self.root):
            raise BadInput(
                f"{self.root} is not a featurecache cache (it has no {MARKER}) and is not empty; "
                "give another --cache"
            )
        elif not object_store.is_remote(self.root) and self.root.is_file():
            raise BadInput(f"{self.root} is not a folder; give another --cache")

    @property
    def exists(self) -> bool:
        return object_store.has(self.root / MARKER, listed=True)

    def check(self) -> None:
        """Raise FeatureCacheError where a cache that was there is there no longer."""
        check_cache(self.root)

    def create(self) -> None:
        """Make the folder and its marker, if need be. Raises BadInput if it can't be written."""
        marker = {"format": FORMAT_NAME, "version": keys.FORMAT_VERSION}
        data = json.dumps(marker, indent=1).encode() + b"\n"
        if object_store.is_remote(self.root):
            with object_store.os_errors_as_bad_input(f"cache {self.root} can't be written"):
                durable.link_new(self.root / MARKER, data)
            return
        try:
            root = self.root.resolve()  # it may be a link to where nothing is yet
            if not root.exists():
                # Appears with its marker in it: a bare folder among images would look like a class.
                root.parent.mkdir(parents=True, exist_ok=True)
                sweep_unfinished(root)
                fresh = durable.temporary_name(root)
                with locks.hold_shared(root.parent):  # so that nobody sweeps it
                    fresh.mkdir()
                    durable.link_new(fresh / MARKER, data)
                    with contextlib.suppress(OSError):  # another process was first
                        fresh.rename(root)
                    shutil.rmtree(fresh, ignore_errors=True)
            durable.sync_folder(root.parent)
            with locks.hold_shared(self.root):
                if not self.exists:
                    durable.link_new(self.root / MARKER, data)
                (self.root / "spaces").mkdir(exist_ok=True)
                durable.sync_folder(self.root)
                with durable.temporary_file(self.root / "probe"):
                    pass
        except OSError as error:
            raise BadInput(
                f"cache {self.root} can't be written ({error.strerror}); give another --cache"
            ) from error

    def note_run(self, run: Path, spaces: Iterable[str]) -> bool:
        """Remember that a run is trained on these spaces, so that `gc` spares them. False where
        this cache can't be written."""
        note = {"run": str(run.absolute()), "spaces": sorted(spaces)}
        path = self.root / "runs" / f"{keys.digest(note['run'])[:16]}.json"
        data = json.dumps(note).encode() + b"\n"
        try:
            if not object_store.has(path) or read_own(path, MAX_NOTE) != data:
                if not object_store.is_remote(path):
                    path.parent.mkdir(exist_ok=True)
                with locks.hold_shared(path.parent):
                    durable.replace(path, data)
        except OSError:
            return False
        return True

    def runs(self) -> dict[str, list[Path]]:
        """The run folders that were trained on each space, by its name, and are still there."""
        found: dict[str, list[Path]] = {}
        folder = self.root / "runs"
        for path in [
            folder / name for name in object_store.names(folder) if name.endswith(".json")
        ]:
            note = read_note(path)
            run = Path(note.run)
            for space in note.spaces if run.is_dir() else []:
                found.setdefault(space, []).append(run)
        return found

    def space(self, key: keys.Json, view: str = "", backbone: str | None = None) -> Space:
        """The space with this key, there or not. The names are for people, and for new spaces."""
        identity = keys.digest(key)
        return Space(self.root / "spaces" / identity, key, view, backbone)

    def spaces(self) -> list[Space]:
        """All spaces, by view and backbone."""
        folder = self.root / "spaces"
        names = (name for name in object_store.names(folder) if not name.startswith("."))
        found = [self.space_in(folder / name) for name in names]
        return sorted(
            (space for space in found if space is not None),
            key=lambda space: (space.view, space.backbone or "", space.path.name),
        )

    def space_in(self, path: Path) -> Space | None:
        """The space in a folder, or None for one in which none was finished being made."""
        description = path / "space.json"
        try:
            if not object_store.has(description, listed=True):
                return None
        except OSError as error:
            raise CannotRead(description, error) from error
        try:
            return insisted(description, lambda: self._described(path, description))
        except CannotRead as error:
            if isinstance(error.error, FileNotFoundError) and not object_store.names(path):
                return None  # another process has deleted it
            raise

    def _described(self, path: Path, description: Path) -> Space:
        if object_store.is_link(path):
            raise damaged(description, "its folder is a link; a cache holds none")
        kept: keys.Json = {}

        def check(value: keys.Json, data: bytes) -> None:
            check_checksum(value, data)
            if keys.digest(value.get("key")) != path.name:
                raise ValueError("the key is not the folder's")
            kept.update(value)

        def damage(path: Path, what: str) -> DamagedCache:
            return damaged(path, f"not a space's description: {what}")

        found = read_model(description, Description, MAX_RECORD, damage, check, follow=False)
        return Space(path, kept["key"], found.names.view, found.names.backbone)


def read_note(path: Path) -> RunNote:
    """A note of a run in a cache. Raises CannotRead, DamagedCache."""

    def damage(path: Path, what: str) -> DamagedCache:
        return damaged(path, f"not a note of a run: {what}")

    return read_model(path, RunNote, MAX_NOTE, damage, follow=False, file_names=True)


def unfinished(root: Path) -> list[Path]:
    """Folders beside a cache in which a process makes it, or was killed as it did."""
    names = object_store.names(root.parent) if not object_store.is_remote(root) else []
    beside = (root.parent / name for name in names if name.startswith(f".{root.name[:16]}."))
    return [path for path in beside if durable.is_temporary(path.name) and path.is_dir()]


def sweep_unfinished(root: Path) -> list[Path]:
    """Remove those whose process is gone. Gives what is removed."""
    gone = []
    with locks.hold_exclusive(root.parent) as undisturbed:
        for path in unfinished(root) if undisturbed else []:
            if all(
                name == MARKER or durable.is_temporary(name) for name in object_store.names(path)
            ):
                shutil.rmtree(path)
                gone.append(path)
    return gone


def _unmarked(root: Path) -> bool:
    """Is this folder empty, or a cache whose making was cut short before its marker was there?"""
    names = {name for name in object_store.names(root) if not name.startswith(".")}
    return names <= {"spaces"} or object_store.has(
        root / MARKER
    )  # another process may be making it


def _check_marker(marker: Path) -> None:
    def damage(marker: Path, what: str) -> BadInput:
        return BadInput(f"{marker} can't be understood: {what}; is this a featurecache cache?")

    def check(value: keys.Json, data: bytes) -> None:
        if not data.endswith(b"\n"):
            raise ValueError("it is cut short")

    found = read_model(marker, Marker, MAX_NOTE, damage, check, follow=False)
    if found.format != FORMAT_NAME:
        raise BadInput(f"{marker} is not of a featurecache cache; give another --cache")
    if found.version > keys.FORMAT_VERSION:
        raise BadInput(
            f"cache {marker.parent} has format {found.version}; this featurecache reads up to "
            f"{keys.FORMAT_VERSION}: upgrade it, or give another --cache"
        )
