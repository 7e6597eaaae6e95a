"""Caches: a folder of spaces (spaces.py) with a marker, and with notes of the runs that use them
(docs/format.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path

from featurecache import keys
from featurecache.errors import BadInput, CannotRead, DamagedCache
from featurecache.features.cache_files import check_cache, damaged, retry_if_damaged
from featurecache.features.space_files import (
    MARKER,
    MAX_NOTE,
    MAX_RECORD,
    Description,
    Marker,
    RunNote,
    check_checksum,
)
from featurecache.features.spaces import Space
from featurecache.json_files import parse_object, read_model
from featurecache.storage.locations import open_store
from featurecache.storage.store import Store, names_in
from featurecache.storage.stored_file import StoredFile
from featurecache.text import reason_of

FORMAT_NAME = "featurecache cache"


class Cache:
    """Spaces in a folder or at a URL. Opening a cache never writes; the first commit makes it."""

    def __init__(self, root: str | Path) -> None:
        self.store = open_store(root)
        self.store.check_access()
        if self.exists:
            retry_if_damaged(self.store, lambda: _check_marker(self._marker))
        elif not _is_unmarked(self.store):
            raise BadInput(
                f"{self.root} is not a featurecache cache (it has no {MARKER}) and is not empty; "
                "give another --cache"
            )

    @property
    def root(self) -> str:
        """The path or URL of the cache."""
        return self.store.root

    @property
    def _marker(self) -> StoredFile:
        return StoredFile(self.store, MARKER)

    @property
    def exists(self) -> bool:
        return self._marker.exists(listed=True)

    def check(self) -> None:
        """Raise FeatureCacheError if the cache was removed meanwhile."""
        check_cache(self.store)

    def create(self) -> None:
        """Make the folder and its marker unless they exist. Raises BadInput if they can't be
        written."""
        marker = {"format": FORMAT_NAME, "version": keys.FORMAT_VERSION}
        try:
            self.store.initialize(MARKER, json.dumps(marker, indent=1).encode() + b"\n")
        except OSError as error:
            raise BadInput(
                f"cache {self.root} can't be written ({reason_of(error)}); give another --cache"
            ) from error

    def note_run(self, run: Path, spaces: Iterable[str]) -> bool:
        """Note that a run is trained on these spaces, so that `gc` keeps them. False if this cache
        can't be written."""
        note = {"run": str(run.absolute()), "spaces": sorted(spaces)}
        name = f"runs/{keys.digest(note['run'])[:16]}.json"
        data = json.dumps(note).encode() + b"\n"
        try:
            if not self.store.exists(name) or self.store.read(name, MAX_NOTE) != data:
                self.store.make_folder("runs")
                with self.store.lock_shared("runs"):
                    self.store.replace(name, data)
        except OSError:
            return False
        return True

    def runs(self) -> dict[str, list[Path]]:
        """The existing run folders that were trained on each space, by the name of the space."""
        folders: dict[str, list[Path]] = {}
        for name in names_in(self.store, "runs"):
            if not name.endswith(".json"):
                continue
            note = read_note(StoredFile(self.store, f"runs/{name}"))
            run = Path(note.run)
            for space in note.spaces if run.is_dir() else []:
                folders.setdefault(space, []).append(run)
        return folders

    def space(self, key: keys.Json, view: str = "", backbone: str | None = None) -> Space:
        """The space with this key, whether it exists or not. `view` and `backbone` are names for
        people; a new space stores them."""
        return Space(self.store, keys.digest(key), key, view, backbone)

    def spaces(self) -> list[Space]:
        """All spaces, by view and backbone."""
        names = (name for name in names_in(self.store, "spaces") if not name.startswith("."))
        spaces = [self.described_space(name) for name in names]
        return sorted(
            (space for space in spaces if space is not None),
            key=lambda space: (space.view, space.backbone or "", space.name),
        )

    def views(self) -> list[tuple[str, keys.Json]]:
        """The name and the key of the view of each space, except of `none`."""
        named = ((space.view, space.key["view"]) for space in self.spaces())
        return [(name, key) for name, key in named if key is not None]

    def described_space(self, name: str) -> Space | None:
        """The space of this name with its key and names. None if it has no description, because
        its first commit is not complete."""
        description = StoredFile(self.store, f"spaces/{name}/space.json")
        try:
            if not description.exists(listed=True):
                return None
        except OSError as error:
            raise CannotRead(description, error) from error
        try:
            return retry_if_damaged(self.store, lambda: self._described(name, description))
        except CannotRead as error:
            is_absent = isinstance(error.error, FileNotFoundError)
            if is_absent and not names_in(self.store, f"spaces/{name}"):
                return None  # another process has deleted it
            raise

    def _described(self, name: str, description: StoredFile) -> Space:
        if self.store.is_link(f"spaces/{name}"):
            raise damaged(description, "its folder is a link; a cache holds none")
        content: keys.Json = {}

        def check(value: keys.Json, data: bytes) -> None:
            check_checksum(value, data)
            if keys.digest(value.get("key")) != name:
                raise ValueError("the key is not the folder's")
            content.update(value)

        def damage(file: StoredFile, what: str) -> DamagedCache:
            return damaged(file, f"not a space's description: {what}")

        names = read_model(description, Description, MAX_RECORD, damage, check).names
        return Space(self.store, name, content["key"], names.view, names.backbone)


def read_note(file: StoredFile) -> RunNote:
    """A note of a run in a cache. Raises CannotRead, DamagedCache."""

    def damage(file: StoredFile, what: str) -> DamagedCache:
        return damaged(file, f"not a note of a run: {what}")

    parse = functools.partial(parse_object, file_names=True)
    return read_model(file, RunNote, MAX_NOTE, damage, parse=parse)


def _is_unmarked(store: Store) -> bool:
    """Whether the root is absent, empty, or a cache whose making was cut short before its marker
    was written."""
    names = {name for name in names_in(store, "") if not name.startswith(".")}
    return names <= {"spaces"} or store.exists(MARKER)  # another process may be making it


def _check_marker(marker: StoredFile) -> None:
    def damage(marker: StoredFile, what: str) -> BadInput:
        return BadInput(f"{marker} can't be understood: {what}; is this a featurecache cache?")

    def check(value: keys.Json, data: bytes) -> None:
        if not data.endswith(b"\n"):
            raise ValueError("it is cut short")

    content = read_model(marker, Marker, MAX_NOTE, damage, check)
    if content.format != FORMAT_NAME:
        raise BadInput(f"{marker} is not of a featurecache cache; give another --cache")
    if content.version > keys.FORMAT_VERSION:
        raise BadInput(
            f"cache {marker.store.root} has format {content.version}; this featurecache reads up "
            f"to {keys.FORMAT_VERSION}: upgrade it, or give another --cache"
        )
