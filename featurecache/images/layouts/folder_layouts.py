"""The layout of a folder, detected from the names in it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.generator_files import INDEX, check_shards
from featurecache.images.layouts.contents import Contents, first_few
from featurecache.images.layouts.csv_files import tables_in
from featurecache.images.layouts.folders import (
    are_split_classes,
    class_folders,
    class_notes,
    entries,
    flat_folder,
    split_classes,
    split_folders,
)
from featurecache.images.layouts.listing import MAX_DEPTH, Tree
from featurecache.images.layouts.metadata_files import has_metadata, metadata_contents
from featurecache.images.layouts.tar_shards import (
    archives_beside,
    is_archive,
    shard_paths,
    tar_shards,
)
from featurecache.images.layouts.tiny_imagenet import readable_names, tiny_imagenet
from featurecache.images.names import is_plain_folder, split_folders_of

LAYOUTS = (
    "ROOT/CLASS/*.jpg, ROOT/{train,val,test}/CLASS/*.jpg, the folders of Tiny ImageNet, "
    "ROOT/CLASS/{train,test}/*.jpg, "
    "a .csv file with the columns path,label[,split], an index (.parquet), tar shards, the word "
    "digits; or, without labels, a folder of images or a .txt file with a path per line"
)

FOLDER_LAYOUTS = {
    "tiny-imagenet",
    "split folders",
    "split classes",
    "class folders",
    "flat folder",
}  # others list their images


def folder_contents(path: Path) -> Contents:
    """The images of a folder. Raises BadInput, with advice, if it is not a dataset, and DamagedRun
    for a dataset of generated images that lacks a shard."""
    folder, tree = path.as_posix(), Tree()
    if tree.listing(folder).is_own:
        raise BadInput(f"{folder}: a cache or a run of featurecache, not a dataset")
    if (path / INDEX).is_file():
        check_shards(path)
    root, layout = _detect(tree, folder) or (folder, "")
    words: dict[str, str] = {}
    notes: list[str] = []
    if layout == "tiny-imagenet":
        listed = tiny_imagenet(tree, root)
        words = readable_names(Path(root, "words.txt"))
    elif layout == "split folders":
        listed = split_folders(tree, root)
    elif layout == "split classes":
        listed = split_classes(tree, root)
    elif layout == "metadata":
        listed, notes = metadata_contents(tree, root)
    elif layout == "class folders":
        listed = list(entries(root, "train", class_folders(tree, root)))
        notes = class_notes(tree, root)
    else:
        paths = shard_paths(path)
        if paths:
            shards = tar_shards(folder, paths)
            other_files = archives_beside(path)
            if other_files:
                notes.append(f"files beside the shards, not read: {first_few(other_files)}")
            return replace(shards, notes=[*shards.notes, *notes])
        listed = []
    tables = list(tables_in(Path(root)))
    if not listed and not tables:
        listed, layout = flat_folder(tree, root), "flat folder"
    if not listed:
        packed = sorted(path.name for path in Path(root).iterdir() if is_archive(path.name))
        hint = f" (unpack {packed[0]} first)" if packed else ""
        hint = f" (pass --data {tables[0]}, which lists images)" if tables else hint
        raise BadInput(f"{root}: holds no images in folders{hint}; a dataset is {LAYOUTS}")
    if tables:
        if all(is_plain_folder(entry.label or "") for entry in listed):
            raise BadInput(f"{root}: has no classes; pass --data {tables[0]}, which lists images")
        notes.append(f"not used: {tables[0]}, which lists images; pass it as --data to use it")
    notes += tree.notes(folder)
    return Contents(root=root, layout=layout, entries=listed, words=words, notes=notes)


def _detect(tree: Tree, folder: str, parents: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """(root, layout) of the dataset in `folder`; the root is the folder or its only sub-folder."""
    if Path(folder, "val", "val_annotations.txt").is_file():
        return folder, "tiny-imagenet"
    if has_metadata(tree, folder):
        return folder, "metadata"
    top = tree.top(folder)
    has_images = any(True for name in top.folders for _ in tree.pictures(f"{folder}/{name}"))
    if has_images and split_folders_of(top.folders):
        return folder, "split folders"
    real = os.path.realpath(folder)
    has_one_folder = len(top.folders) == 1 and tree.stray(folder) is None
    if has_one_folder and real not in parents and len(parents) < MAX_DEPTH:
        inner = _detect(tree, f"{folder}/{top.folders[0]}", (*parents, real))
        if inner:
            return inner
    if are_split_classes(tree, folder):
        return folder, "split classes"
    return (folder, "class folders") if has_images else None
