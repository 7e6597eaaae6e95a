"""Walking folders: what each holds of interest, all pictures below one, what is passed over."""

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

MAX_DEPTH = 64  # folders in folders: more than anyone has, less than Python can recurse
_MAX_VISITS = 64  # of one folder: links that part and meet again double the paths at every step
_OWN = "written by featurecache"
_FOREIGN = "folders of other systems"
_TARS = "tar files among folders of images"


@dataclass(frozen=True)
class Listing:
    """What one folder holds of interest: names of sub-folders and of pictures, sorted."""

    folders: list[str]
    pictures: list[str]
    is_own: bool  # a cache or a run


class Tree:
    """Reads the folders of a dataset, each once, and keeps account of what it passes over."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self.passed_over: dict[str, str] = {}  # path -> what it is

    def listing(self, folder: str) -> Listing:
        """What is in a folder. Raises BadInput."""
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
                    elif is_picture(name):  # whatever it is: reading it says
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
            self.passed_over |= {f"{folder}/{name}": _OWN for name in own_pictures | drawn}
            pictures = [name for name in pictures if name not in own_pictures]
        is_own = any(is_marker(folder, name) for name in others)
        return Listing(sorted(folders), sorted(pictures), is_own)

    def top(self, folder: str) -> Listing:
        """`listing`, with the sub-folders left out that hold nothing but what featurecache writes:
        caches, runs, studies, and folders of them."""
        listing = self.listing(folder)
        folders = [name for name in listing.folders if not self.is_own(f"{folder}/{name}")]
        return Listing(folders, listing.pictures, listing.is_own)

    def is_own(self, folder: str) -> bool:
        """Does a folder hold what featurecache has written, and no picture besides?"""
        if not self.listing(folder).is_own:
            if next(self.pictures(folder), None) is not None:
                return False
            default = folder.rpartition("/")[2] in DEFAULT_FOLDERS
            if not default and not any(self.own_below(folder)):
                return False
        self.passed_over[folder] = _OWN
        return True

    def own_below(self, folder: str) -> Iterator[str]:
        """The paths below a folder that were passed over as featurecache's own."""
        inside = f"{folder}/"
        return (
            path
            for path, what in self.passed_over.items()
            if what == _OWN and path.startswith(inside)
        )

    def stray(self, folder: str) -> str | None:
        """The first of the pictures right in a folder that is not a contact sheet of ours."""
        for name in self.listing(folder).pictures:
            if not is_sheet(f"{folder}/{name}"):
                return f"{folder}/{name}"
            self.passed_over[f"{folder}/{name}"] = _OWN
        return None

    def pictures(self, folder: str) -> Iterator[str]:
        """The paths of all pictures below `folder`, but for what is passed over."""
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
            self.passed_over[folder] = _OWN
            return
        for name in listing.pictures:
            yield f"{folder}/{name}"
        for name in listing.folders:
            empty = True
            for picture in self._below(f"{folder}/{name}", (*above, real), visits):
                empty = False
                yield picture
            if empty and is_picture(name) and f"{folder}/{name}" not in self.passed_over:
                yield f"{folder}/{name}"  # is meant to be a picture, and will be reported

    def notes(self, root: str) -> list[str]:
        """What was passed over, a sentence for each kind."""
        notes = []
        for what in (_OWN, _FOREIGN, _TARS):
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
    except OSError:  # a link to itself, or into a folder that may not be entered: reading it says
        return False
