"""Walking folders: what each holds of interest, all pictures below one, what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from featurecache.errors import BadInput
from featurecache.images.names import OWN_MARKERS, is_picture

MAX_DEPTH = 64  # folders in folders: more than anyone has, less than Python can recurse
_MAX_VISITS = 64  # of one folder: links that part and meet again double the paths at every step


@dataclass(frozen=True)
class Listing:
    """What one folder holds of interest: names of sub-folders and of pictures, sorted."""

    folders: list[str]
    pictures: list[str]
    is_own: bool  # a cache or a run


class Tree:
    """Reads the folders of a dataset, and keeps account of what it passes over."""

    def __init__(self) -> None:
        self.passed_over: dict[str, str] = {}  # path -> what it is

    def listing(self, folder: str) -> Listing:
        """What is in a folder. Raises BadInput."""
        folders, pictures, is_own = [], [], False
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append(name)
                    elif is_picture(name):  # whatever it is: reading it says
                        pictures.append(name)
                    elif name in OWN_MARKERS:
                        is_own = True
        except OSError as error:
            raise BadInput(f"{folder}: can't be listed ({error.strerror})") from error
        return Listing(sorted(folders), sorted(pictures), is_own)

    def top(self, folder: str) -> Listing:
        """`listing`, with the sub-folders that are caches or runs left out."""
        found = self.listing(folder)
        folders = [name for name in found.folders if not self.is_own(f"{folder}/{name}")]
        return Listing(folders, found.pictures, found.is_own)

    def is_own(self, folder: str) -> bool:
        """Is a folder a cache or a run?"""
        if not self.listing(folder).is_own:
            return False
        self.passed_over[folder] = "written by featurecache"
        return True

    def pictures(self, folder: str) -> Iterator[str]:
        """The paths of all pictures below `folder`, caches and runs passed over."""
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
            self.passed_over[folder] = "written by featurecache"
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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered: reading it says
        return False
