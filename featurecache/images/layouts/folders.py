"""Class folders and split folders.

ROOT/{train,val,test}/CLASS/**           split folders; pictures right in test/ are unlabelled
ROOT/CLASS/**                            class folders, all of them split `train`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featurecache.errors import BadInput
from featurecache.images.layouts.contents import Entry
from featurecache.images.layouts.listing import Tree
from featurecache.images.names import PICTURE_SUFFIXES, is_picture, split_of


def class_folders(tree: Tree, folder: str) -> Iterator[tuple[str, str]]:
    """(class, path) of all pictures in the class folders of `folder`."""
    top = tree.top(folder)
    if top.pictures:
        raise BadInput(
            f"{folder}/{top.pictures[0]}: an image outside the class folders "
            f"({len(top.pictures)} such); move it into the folder of its class"
        )
    if not top.folders:
        raise BadInput(f"{folder}: holds no class folders; expected {folder}/CLASS/*.jpg")
    for name in top.folders:
        if any(split_of(inner) for inner in tree.top(f"{folder}/{name}").folders):
            raise BadInput(
                f"{folder}/{name} holds split folders, so it is a dataset and no class; "
                f"give --data {folder}/{name}"
            )
    for name in top.folders:
        empty = True
        for file in tree.pictures(f"{folder}/{name}"):
            empty = False
            yield name, file
        if empty:
            raise BadInput(
                f"{folder}/{name}: a class folder without images "
                f"({', '.join(PICTURE_SUFFIXES)}); fill it or remove it"
            )


def unlabelled(tree: Tree, folder: str) -> Iterator[tuple[None, str]]:
    """(None, path) of all pictures below `folder`."""
    return ((None, file) for file in tree.pictures(folder))


def entries(root: str, split: str, files: Iterable[tuple[str | None, str]]) -> Iterator[Entry]:
    """(class, path) of pictures below `root` as entries of a split."""
    return (Entry(split, label, file, file[len(root) + 1 :]) for label, file in files)


def split_folders(tree: Tree, root: str) -> list[Entry]:
    """The images of the split folders of `root`."""
    top = tree.top(root)
    folder_of: dict[str, str] = {}
    for name in top.folders:
        split = split_of(name)
        if split is None:
            stray = next(tree.pictures(f"{root}/{name}"), None)
            if stray:
                raise BadInput(
                    f"{root}: holds both split folders and {name}/ with images ({stray}); "
                    "a dataset has either split folders or class folders at its top"
                )
        elif split in folder_of:
            raise BadInput(f"{root}: {folder_of[split]}/ and {name}/ are both split {split}")
        else:
            folder_of[split] = name
    if top.pictures:
        raise BadInput(f"{root}/{top.pictures[0]}: an image outside the split folders")
    found: list[Entry] = []
    for split, name in folder_of.items():
        inside = tree.top(f"{root}/{name}")
        odd = inside.pictures and all(map(is_picture, inside.folders))  # no classes, surely
        if split == "test" and (odd or not inside.folders):
            found += entries(root, "test", unlabelled(tree, f"{root}/{name}"))
        else:
            found += entries(root, split, class_folders(tree, f"{root}/{name}"))
    return found
