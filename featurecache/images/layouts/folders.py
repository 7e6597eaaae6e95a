"""Class folders and split folders.

ROOT/{train,val,test}/CLASS/**           split folders; pictures right in test/ are unlabelled
ROOT/CLASS/**                            class folders, all of them split `train`
ROOT/CLASS/{train,val,test}/*            class folders that hold nothing but split folders
ROOT/*                                   a flat folder: unlabelled, all of them split `test`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featurecache.errors import BadInput
from featurecache.images.layouts.contents import Entry, first_few
from featurecache.images.layouts.listing import Tree
from featurecache.images.layouts.own_output import is_sheet
from featurecache.images.names import (
    PICTURE_SUFFIXES,
    is_picture,
    is_plain_folder,
    is_undecided,
    split_folders_of,
    split_of,
    splits_in,
)


def class_folders(tree: Tree, folder: str) -> Iterator[tuple[str, str]]:
    """(class, path) of all pictures in the class folders of `folder`."""
    top = tree.top(folder)
    stray = tree.stray(folder)
    if stray:
        raise BadInput(
            f"{stray}: an image outside the class folders (1 of {len(top.pictures)}); "
            f"move it into the folder of its class{_way_out(folder)}"
        )
    if not top.folders:
        raise BadInput(
            f"{folder}: holds no class folders; expected {folder}/CLASS/*.jpg{_way_out(folder)}"
        )
    for name in top.folders:
        if split_folders_of(tree.top(f"{folder}/{name}").folders):
            raise BadInput(
                f"{folder}/{name} holds split folders, so it is a dataset, not a class; "
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


def _way_out(folder: str) -> str:
    """A hint for a folder that is named like a split but was meant as a class."""
    name = folder.rpartition("/")[2]
    if split_of(name) is None:
        return ""
    return (
        f". (If {name!r} is a class, put all class folders into one folder `train`, as in "
        f"train/{name}/, or list the images in a .csv file)"
    )


def class_notes(tree: Tree, root: str) -> list[str]:
    """Notes on class folders that may not be classes: those with the word for a split in their
    names, and those that hold the same folders, such as `fold1/cat` and `fold2/cat`."""
    notes = []
    classes = tree.top(root).folders
    named = [name for name in classes if splits_in(name) or is_undecided(name)]
    if named:
        names = first_few(named)
        notes.append(f"used as classes, although their names contain a split's name: {names}")
    inner = {tuple(tree.listing(f"{root}/{name}").folders) for name in classes}
    if len(classes) > 1 and len(inner) == 1 and len(*inner) > 1:
        alike = first_few([name for names in inner for name in names])
        notes.append(f"not used: each class folder holds the same folders ({alike})")
    return notes


def unlabelled(tree: Tree, folder: str) -> Iterator[tuple[None, str]]:
    """(None, path) of all pictures below `folder`."""
    return ((None, file) for file in tree.pictures(folder))


def flat_folder(tree: Tree, folder: str) -> list[Entry]:
    """The pictures directly in a folder that has no others; they have no labels."""
    names = tree.top(folder).pictures
    files = [f"{folder}/{name}" for name in names if not is_sheet(f"{folder}/{name}")]
    return list(entries(folder, "test", ((None, file) for file in files)))


def entries(root: str, split: str, files: Iterable[tuple[str | None, str]]) -> Iterator[Entry]:
    """(class, path) of pictures below `root` as entries of a split."""
    return (Entry(split, label, file, file[len(root) + 1 :]) for label, file in files)


def split_folders(tree: Tree, root: str) -> list[Entry]:
    """The images of the split folders of `root`."""
    top = tree.top(root)
    named = split_folders_of(top.folders)
    folder_of: dict[str, str] = {}
    for name, split in named.items():
        if split in folder_of:
            raise BadInput(
                f"{root}: {folder_of[split]}/ and {name}/ are both split {split}; put their "
                "images into one of them"
            )
        folder_of[split] = name
    for name in top.folders:
        stray = None if name in named else next(tree.pictures(f"{root}/{name}"), None)
        if stray:
            first = next(iter(named))
            raise BadInput(
                f"{root}: holds both split folders and {name}/ with images ({stray}); a dataset "
                f"has either split folders or class folders at its top: move {name}/ away"
                f"{_way_out(first)}"
            )
    stray = tree.stray(root)
    if stray:
        raise BadInput(
            f"{stray}: an image outside the split folders ({', '.join(named)}); move it into one"
        )
    listed: list[Entry] = []
    train = folder_of.get("train")
    classes = tree.top(_classes_in(tree, f"{root}/{train}")).folders if train else []
    for split, name in folder_of.items():
        folder = _classes_in(tree, f"{root}/{name}")
        inside = tree.top(folder)
        has_no_classes = inside.pictures and all(map(is_picture, inside.folders))
        plain = [is_plain_folder(inner) and inner not in classes for inner in inside.folders]
        if split == "test" and (has_no_classes or all(plain)):
            listed += entries(root, "test", unlabelled(tree, folder))
        else:
            listed += entries(root, split, class_folders(tree, folder))
    return listed


def are_split_classes(tree: Tree, root: str) -> bool:
    """Whether a folder holds several class folders, each of which holds nothing but split folders
    with pictures directly in them."""
    folders = [f"{root}/{name}" for name in tree.top(root).folders]
    return len(folders) > 1 and all(_holds_splits(tree, folder) for folder in folders)


def _holds_splits(tree: Tree, folder: str) -> bool:
    names = tree.top(folder).folders
    if not names or len(split_folders_of(names)) < len(names) or tree.stray(folder):
        return False
    return not any(tree.top(f"{folder}/{name}").folders for name in names)


def split_classes(tree: Tree, root: str) -> list[Entry]:
    """The images of class folders that hold split folders."""
    if stray := tree.stray(root):
        raise BadInput(
            f"{stray}: an image outside the class folders; move it into the folder of its class"
        )
    listed: list[Entry] = []
    for label in tree.top(root).folders:
        folder_of: dict[str, str] = {}
        for name, split in split_folders_of(tree.top(f"{root}/{label}").folders).items():
            folder = f"{root}/{label}/{name}"
            if split in folder_of:
                raise BadInput(
                    f"{folder_of[split]} and {folder} are both split {split}; put their images "
                    "into one of them"
                )
            folder_of[split] = folder
            listed += entries(root, split, ((label, file) for file in tree.pictures(folder)))
    return listed


def _classes_in(tree: Tree, folder: str) -> str:
    """The folder that holds the class folders of a split: the split's folder, or its only
    sub-folder if that is called `images` or the like and holds only folders."""
    top = tree.top(folder)
    if len(top.folders) == 1 and not top.pictures and is_plain_folder(top.folders[0]):
        inner = f"{folder}/{top.folders[0]}"
        if tree.top(inner).folders and not tree.listing(inner).pictures:
            return inner
    return folder
