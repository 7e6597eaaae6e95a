"""Walking folders: the sub-folders and pictures of each, all pictures below one, and what is
skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from featurecache.errors import BadInput
from featurecache.images.layouts.contents import first_few
from featurecache.images.layouts.own_output import (
    DEFAULT_FOLDERS,
    EVENTS,
    SHEET,
    is_marker,
    is_sheet,
    study_pictures,
)
from featurecache.images.names import is_foreign, is_picture

MAX_DEPTH = 64  # nested folders: more than real datasets have, less than Python can recurse
_MAX_VISITS = 64  # of one folder: links that fork and join double the number of paths at each level
_OUTPUT = "written by featurecache"
_FOREIGN = "folders of other systems"
_TARS = "tar files among folders of images"


@dataclass(frozen=True)
class Listing:
    """The sorted names of the sub-folders and pictures of one folder."""

    folders: list[str]
    pictures: list[str]
    is_own: bool  # a cache or a run


class Tree:
    """Reads each folder of a dataset once, and records what it skips."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self.passed_over: dict[str, str] = {}  # path -> what it is

    def listing(self, folder: str) -> Listing:
        """The contents of a folder. Raises BadInput."""
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        return self._listings[folder]

    def _list(self, folder: str) -> Listing:
        folders, pictures, others = [], [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if _is_folder(entry):
                        if is_foreign(name):
                            self.passed_over[f"{folder}/{name}"] = _FOREIGN
                        else:
                            folders.append(name)
                    elif is_picture(name):  # even if it can't be read, which is reported then
                        pictures.append(name)
                    elif name.lower().endswith(".tar"):
                        self.passed_over[f"{folder}/{name}"] = _TARS
                    elif name.endswith((".json", ".svg")) or name.startswith(EVENTS):
                        others.append(name)
        except OSError as error:
            raise BadInput(f"{folder}: can't be listed ({error.strerror})") from error
        own_pictures = study_pictures(folder, pictures, others)
        if SHEET in pictures and is_sheet(f"{folder}/{SHEET}"):
            own_pictures.add(SHEET)
        if own_pictures:
            drawn = {name.removesuffix(".png") + ".svg" for name in own_pictures} & set(others)
            self.passed_over |= {f"{folder}/{name}": _OUTPUT for name in own_pictures | drawn}
            pictures = [name for name in pictures if name not in own_pictures]
        is_own = any(is_marker(folder, name) for name in others)
        return Listing(sorted(folders), sorted(pictures), is_own)

    def top(self, folder: str) -> Listing:
        """`listing` without the sub-folders that hold only output of featurecache: caches, runs,
        studies, and folders of these."""
        listing = self.listing(folder)
        folders = [name for name in listing.folders if not self.is_own(f"{folder}/{name}")]
        return Listing(folders, listing.pictures, listing.is_own)

    def is_own(self, folder: str) -> bool:
        """Whether a folder holds output of featurecache and no other pictures."""
        if not self.listing(folder).is_own:
            if next(self.pictures(folder), None) is not None:
                return False
            default = folder.rpartition("/")[2] in DEFAULT_FOLDERS
            if not default and not any(self.own_below(folder)):
                return False
        self.passed_over[folder] = _OUTPUT
        return True

    def own_below(self, folder: str) -> Iterator[str]:
        """The paths below a folder that were skipped as output of featurecache."""
        inside = f"{folder}/"
        return (
            path
            for path, what in self.passed_over.items()
            if what == _OUTPUT and path.startswith(inside)
        )

    def stray(self, folder: str) -> str | None:
        """The first picture directly in a folder that is not a contact sheet of featurecache."""
        for name in self.listing(folder).pictures:
            if not is_sheet(f"{folder}/{name}"):
                return f"{folder}/{name}"
            self.passed_over[f"{folder}/{name}"] = _OUTPUT
        return None

    def pictures(self, folder: str) -> Iterator[str]:
        """The paths of all pictures below `folder` that are not skipped."""
        return self._below(folder, (), Counter())

    def _below(self, folder: str, above: tuple[str, ...], visits: Counter[str]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            raise BadInput(f"{folder}: a link to a folder that holds it; remove the link")
        if len(above) == MAX_DEPTH:
            raise BadInput(f"{folder}: folders more than {MAX_DEPTH} deep; move them up")
        visits[real] += 1
        if visits[real] > _MAX_VISITS:
            raise BadInput(
                f"{folder}: more than {_MAX_VISITS} ways of links lead here; remove some"
            )
        listing = self.listing(folder)
        if listing.is_own:
            self.passed_over[folder] = _OUTPUT
            return
        for name in listing.pictures:
            yield f"{folder}/{name}"
        for name in listing.folders:
            empty = True
            for picture in self._below(f"{folder}/{name}", (*above, real), visits):
                empty = False
                yield picture
            if empty and is_picture(name) and f"{folder}/{name}" not in self.passed_over:
                yield f"{folder}/{name}"  # has the name of a picture, so it will be reported

    def notes(self, root: str) -> list[str]:
        """Notes on what was skipped, one per kind."""
        notes = []
        for what in (_OUTPUT, _FOREIGN, _TARS):
            paths = [path for path, kind in self.passed_over.items() if kind == what]
            outer = [p for p in sorted(paths) if not _is_inside(p, self.passed_over)]
            if outer:
                names = [path.removeprefix(f"{root}/") for path in outer]
                notes.append(f"passed over, {what}: {first_few(names)}")
        return notes


def _is_inside(path: str, folders: dict[str, str]) -> bool:
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in folders:
            return True
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a forbidden folder: reported when it is read
        return False
