"""Tiny ImageNet in its original layout.

ROOT/train/WNID/images/*.JPEG, ROOT/val/val_annotations.txt, ROOT/test/images, ROOT/words.txt
"""

from __future__ import annotations

from pathlib import Path

from featurecache.errors import BadInput
from featurecache.images.layouts.contents import Entry, first_few, read_text
from featurecache.images.layouts.folders import class_folders, entries, unlabelled
from featurecache.images.layouts.listing import Tree


def tiny_imagenet(tree: Tree, root: str) -> list[Entry]:
    """The images of `root`, those of val with the labels of its annotations."""
    listed = [*entries(root, "train", class_folders(tree, f"{root}/train"))]
    annotations = Path(root, "val", "val_annotations.txt")
    wnid_of: dict[str, str] = {}
    for number, line in enumerate(read_text(annotations).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise BadInput(f"{annotations} line {number}: expected file<TAB>wnid, got {line!r}")
        name, wnid = fields[0], fields[1].strip()
        if wnid_of.setdefault(name, wnid) != wnid:
            raise BadInput(f"{annotations} line {number}: {name} has two classes; keep one")

    labelled = {}
    for file in tree.pictures(f"{root}/val"):
        name = file.rsplit("/", 1)[1]
        if name not in wnid_of:
            raise BadInput(f"{file}: not in {annotations}; add its line or remove the image")
        labelled[file] = name
    present = set(labelled.values())
    absent = [name for name in wnid_of if name not in present]
    if absent:
        raise BadInput(
            f"{annotations}: {len(absent)} images are not in {root}/val: {first_few(absent)}"
        )
    listed += entries(root, "val", ((wnid_of[name], file) for file, name in labelled.items()))
    if Path(root, "test").is_dir():
        listed += entries(root, "test", unlabelled(tree, f"{root}/test"))
    return listed


def readable_names(path: Path) -> dict[str, str]:
    """words.txt, wnid<TAB>readable names, as a dict; empty if the file does not exist."""
    if not path.is_file():
        return {}
    pairs = (line.partition("\t") for line in read_text(path).split("\n"))
    return {wnid: names.strip() for wnid, tab, names in pairs if tab}
