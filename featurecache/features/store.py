"""The store: a cache is a folder of spaces (spaces.py), with a marker, and with notes of who makes
what now and which runs stand on it (docs/format.md)."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from featurecache import durable, locks, places, records
from featurecache.errors import BadInput
from featurecache.features.spaces import MOST_RECORD, Space, damaged, insisted, read_own

MARKER = "CACHE.json"
FORMAT_NAME = "featurecache cache"


class Cache:
    """A folder of spaces. Opening never writes; the folder is made by the first commit."""

    def __init__(self, root: str | Path) -> None:
        self.root = places.place(root)
        if places.is_remote(self.root):
            places.reachable(self.root)
        if self.exists:
            insisted(self.root, lambda: _check_marker(self.root / MARKER))
        elif (places.is_remote(self.root) or self.root.is_dir()) and not _unmarked(self.root):
            raise BadInput(
                f"{self.root} is not a featurecache cache (it has no {MARKER}) and is not empty; "
                "give another --cache"
            )
        elif not places.is_remote(self.root) and self.root.is_file():
            raise BadInput(f"{self.root} is not a folder; give another --cache")

    @property
    def exists(self) -> bool:
        return places.has(self.root / MARKER)

    def create(self) -> None:
        """Make the folder and its marker, if need be. Raises BadInput if it can't be written."""
        marker = {"format": FORMAT_NAME, "version": records.FORMAT_VERSION}
        data = json.dumps(marker, indent=1).encode() + b"\n"
        if places.is_remote(self.root):
            with places.told(f"cache {self.root} can't be written"):
                durable.link_new(self.root / MARKER, data)
            return
        try:
            root = self.root.resolve()  # it may be a link to where nothing is yet
            if not root.exists():
                # Appears with its marker in it: a bare folder among images would look like a class.
                root.parent.mkdir(parents=True, exist_ok=True)
                fresh = root.with_name(f".{root.name}.{secrets.token_hex(8)}.tmp")
                fresh.mkdir()
                durable.link_new(fresh / MARKER, data)
                with contextlib.suppress(OSError):  # another process was first
                    fresh.rename(root)
                shutil.rmtree(fresh, ignore_errors=True)
            durable.sync_folder(root.parent)
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
            if not places.has(path) or path.read_bytes() != data:
                if not places.is_remote(path):
                    path.parent.mkdir(exist_ok=True)
                with locks.together(path.parent):
                    durable.replace(path, data)
        except OSError:
            return False
        return True

    def runs(self) -> dict[str, list[Path]]:
        """The run folders that were trained on each space, by its name, and are still there."""
        found: dict[str, list[Path]] = {}
        folder = self.root / "runs"
        for path in [folder / name for name in places.names(folder) if name.endswith(".json")]:
            try:
                note = json.loads(path.read_bytes())
                run, spaces = Path(note["run"]), list(note["spaces"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise damaged(path, f"not a note of a run ({error})") from error
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
        names = (name for name in places.names(folder) if not name.startswith("."))
        found = [self.space_in(folder / name) for name in names]
        return sorted(
            (space for space in found if space is not None),
            key=lambda space: (space.view, space.backbone or "", space.path.name),
        )

    def space_in(self, path: Path) -> Space | None:
        """The space in a folder, or None for one in which none was finished being made."""
        description = path / "space.json"
        if not places.has(description):
            return None
        return insisted(description, lambda: self._described(path, description))

    def _described(self, path: Path, description: Path) -> Space:
        try:
            if path.is_symlink():
                raise ValueError("its folder is a link; a cache holds none")
            data = read_own(description, MOST_RECORD)
            value = json.loads(data)
            if value.pop("checksum") != records.digest(value) or not data.endswith(b"\n"):
                raise ValueError("its checksum does not hold")
            key, names = value["key"], value["names"]
            if records.digest(key) != path.name:
                raise ValueError("the key is not the folder's")
            return Space(path, key, str(names["view"]), names["backbone"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(description, f"not a space's description ({error})") from error


def _unmarked(root: Path) -> bool:
    """Is this folder empty, or a cache whose making was cut short before its marker was there?"""
    names = {name for name in places.names(root) if not name.startswith(".")}
    return names <= {"spaces"} or places.has(root / MARKER)  # another process may be making it


def _check_marker(marker: Path) -> None:
    try:
        data = read_own(marker, MOST_RECORD)
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
