"""Datasets: an ordered list of samples with class names and splits, found in what a path holds.

    digits                                   scikit-learn's 1,797 pictures of 8x8, in memory
    FILE.parquet                             an index: indexes.py
    FILE.tar, NAME-{000..099}.tar, a folder of .tar     shards as webdataset has them: tars.py
    FILE.csv                                 path,label[,split], paths relative to the file's folder
    ROOT/train/WNID/images/*.JPEG, ROOT/val/val_annotations.txt, ROOT/test/images     Tiny ImageNet
    ROOT/{train,val,test}/CLASS/**           split folders; pictures right in test/ are unlabelled
    ROOT/CLASS/**                            class folders, all of them split `train`

A folder whose only sub-folder is one of these stands for it. Names that start with a dot, caches
and runs are passed over. The order of listing never matters: samples are sorted by split and id.

Whatever has a picture's name is a sample, and reading it says what is wrong with it: pipes,
sockets, devices, folders, broken links, names that are not UTF-8 and files above MAX_FILE are
refused one by one, unread. Links to files and folders are followed, wherever they lead.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache import places
from featurecache.errors import BadInput, UnknownName, nearest
from featurecache.images import tars
from featurecache.images.indexes import Indexed, read_index
from featurecache.images.samples import MAX_FILE, SPLITS, Member, Sample
from featurecache.notebook import html_table
from featurecache.records import utf8
from featurecache.regular import open_regular

LAYOUTS = (
    "ROOT/CLASS/*.jpg, ROOT/{train,val,test}/CLASS/*.jpg, Tiny ImageNet's own folders, "
    "a .csv file with the columns path,label[,split], an index (.parquet), tar shards, or the word "
    "digits"
)

_SPLIT_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
_NOT_DATA = {"CACHE.json", "run.json"}  # a folder with one of these is featurecache's own
_LIST_MOST = 5  # lines of a long list that an error message shows
_DEEPEST = 64  # folders in folders: more than anyone has, less than Python can recurse
_MOST_VISITS = 64  # of one folder: links that part and meet again double the paths at every step

_Found = tuple[str, str | None, str]  # split, class name, path


@dataclass(frozen=True)
class Dataset:
    """Samples sorted by (split in the order train, val, test; id); classes sorted by name.

    `words` maps class names to readable ones, where the dataset has such.
    """

    root: str
    layout: str
    samples: Sequence[Sample]
    classes: tuple[str, ...]
    words: Mapping[str, str]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold samples, in the order train, val, test."""
        if isinstance(self.samples, Indexed):
            return tuple(SPLITS[number] for number in np.unique(self.samples.splits))
        present = {sample.split for sample in self.samples}
        return tuple(name for name in SPLITS if name in present)

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of one split, in order. Raises UnknownName where the dataset lacks it."""
        if name not in self.splits:
            raise UnknownName("split", name, self.splits, where=self.root)
        if isinstance(self.samples, Indexed):
            return self.samples.split(name)
        return tuple(sample for sample in self.samples if sample.split == name)

    def _repr_html_(self) -> str:
        counts = Counter(sample.split for sample in self.samples)
        shown = ", ".join(self.words.get(name, name) for name in self.classes[:_LIST_MOST])
        more = len(self.classes) - _LIST_MOST
        return html_table(
            f"dataset {self.root}",
            {
                "layout": self.layout,
                **{name: counts[name] for name in self.splits},
                "classes": shown + (f" and {more:,} more" if more > 0 else ""),
            },
        )


def open_dataset(data: str | Path) -> Dataset:
    """The dataset at `data`: a folder, a .csv file, or the literal string `digits`.

    Lists files and reads no image. Raises BadInput, with what to do, for what is no dataset.
    """
    if isinstance(data, str) and data == "digits":
        return _digits()
    path = places.place(data)
    if str(data).endswith(".tar") or (places.is_remote(path) and not path.suffix):
        return _tars(str(data), tars.shards(data))
    if path.suffix.lower() == ".parquet" and (places.is_remote(path) or path.is_file()):
        samples, classes = read_index(path)
        return Dataset(str(data), "index", samples, classes, {})
    if places.is_remote(path):
        if path.suffix.lower() == ".csv":
            return _csv(path)
        raise BadInput(f"{data}: a dataset elsewhere is a .csv file, an index or tar shards")
    if not path.exists():
        raise BadInput(f"{utf8(path)}: no such file or folder; a dataset is {LAYOUTS}")
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".csv":
        return _csv(path)
    raise BadInput(f"{utf8(path)}: not a dataset; a dataset is {LAYOUTS}")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    samples = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        # 0..16 to 0..255, halves up, in whole numbers so that it is the same everywhere
        grey = bytes((int(value) * 255 * 2 + 16) // 32 for value in image)
        split = "val" if index % 5 == 4 else "train"
        samples.append(Sample(f"{index:04}", int(label), split, b"P5\n8 8\n255\n" + grey))
    return Dataset("digits", "digits", _sorted(samples), tuple("0123456789"), {})


# ---- folders ----


@dataclass(frozen=True)
class _Listing:
    """What one folder holds of interest: names of sub-folders and of pictures, sorted."""

    folders: list[str]
    pictures: list[str]
    ours: bool  # a cache or a run


def _list(folder: str) -> _Listing:
    folders, pictures, ours = [], [], False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(name)
                elif _is_picture(name):  # whatever it is: reading it says
                    pictures.append(name)
                elif name in _NOT_DATA:
                    ours = True
    except OSError as error:
        raise BadInput(f"{folder}: can't be listed ({error.strerror})") from error
    return _Listing(sorted(folders), sorted(pictures), ours)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered: reading it says
        return False


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _pictures(folder: str) -> Iterator[str]:
    """The paths of all pictures below `folder`, caches and runs passed over."""
    return _pictures_below(folder, (), Counter())


def _pictures_below(folder: str, above: tuple[str, ...], visits: Counter[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        raise BadInput(f"{folder}: a link to a folder that holds it; remove the link")
    if len(above) == _DEEPEST:
        raise BadInput(f"{folder}: folders more than {_DEEPEST} deep; move them up")
    visits[real] += 1
    if visits[real] > _MOST_VISITS:
        raise BadInput(f"{folder}: more than {_MOST_VISITS} ways of links lead here; remove some")
    listing = _list(folder)
    if listing.ours:
        return
    for name in listing.pictures:
        yield f"{folder}/{name}"
    for name in listing.folders:
        empty = True
        for picture in _pictures_below(f"{folder}/{name}", (*above, real), visits):
            empty = False
            yield picture
        if empty and _is_picture(name) and not _list(f"{folder}/{name}").ours:
            yield f"{folder}/{name}"  # is meant to be a picture, and will be reported


def _top(folder: str) -> _Listing:
    """`_list`, with the sub-folders that are caches or runs left out."""
    listing = _list(folder)
    folders = [name for name in listing.folders if not _list(f"{folder}/{name}").ours]
    return _Listing(folders, listing.pictures, listing.ours)


def _layout(folder: str, above: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """(root, layout) of the dataset in `folder`; the root is the folder, or its one sub-folder."""
    if Path(folder, "val", "val_annotations.txt").is_file():
        return folder, "tiny-imagenet"
    top = _top(folder)
    if any(name.lower() in _SPLIT_OF for name in top.folders):
        return folder, "split folders"
    real = os.path.realpath(folder)
    only = len(top.folders) == 1 and not top.pictures
    if only and real not in above and len(above) < _DEEPEST:
        inside = _layout(f"{folder}/{top.folders[0]}", (*above, real))
        if inside:
            return inside
    if any(True for name in top.folders for _ in _pictures(f"{folder}/{name}")):
        return folder, "class folders"
    return None


def _folder(path: Path) -> Dataset:
    given = path.as_posix()
    if _list(given).ours:
        raise BadInput(f"{given}: a cache or a run of featurecache, not a dataset")
    root, layout = _layout(given) or (given, "")
    words: dict[str, str] = {}
    if layout == "tiny-imagenet":
        found = _tiny_imagenet(root)
        words = _words(Path(root, "words.txt"))
    elif layout == "split folders":
        found = _split_folders(root)
    elif layout == "class folders":
        found = [("train", label, file) for label, file in _class_folders(root)]
    else:
        shards = tars.shards(path)
        if shards:
            return _tars(given, shards)
        found = []
    if not found:
        raise BadInput(f"{root}: holds no images in folders; a dataset is {LAYOUTS}")
    return _dataset(root, layout, [(*each, each[2][len(root) + 1 :]) for each in found], words)


def _class_folders(folder: str) -> Iterator[tuple[str, str]]:
    """(class, path) of all pictures in the class folders of `folder`."""
    top = _top(folder)
    if top.pictures:
        raise BadInput(
            f"{folder}/{top.pictures[0]}: an image outside the class folders "
            f"({len(top.pictures)} such); move it into the folder of its class"
        )
    if not top.folders:
        raise BadInput(f"{folder}: holds no class folders; expected {folder}/CLASS/*.jpg")
    for name in top.folders:
        if any(inner.lower() in _SPLIT_OF for inner in _top(f"{folder}/{name}").folders):
            raise BadInput(
                f"{folder}/{name} holds split folders, so it is a dataset and no class; "
                f"give --data {folder}/{name}"
            )
    for name in top.folders:
        empty = True
        for file in _pictures(f"{folder}/{name}"):
            empty = False
            yield name, file
        if empty:
            raise BadInput(
                f"{folder}/{name}: a class folder without images "
                f"({', '.join(_SUFFIXES)}); fill it or remove it"
            )


def _split_folders(root: str) -> list[_Found]:
    top = _top(root)
    folder_of: dict[str, str] = {}
    for name in top.folders:
        split = _SPLIT_OF.get(name.lower())
        if split is None:
            stray = next(_pictures(f"{root}/{name}"), None)
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
    found: list[_Found] = []
    for split, name in folder_of.items():
        inside = _top(f"{root}/{name}")
        odd = inside.pictures and all(map(_is_picture, inside.folders))  # no classes, surely
        if split == "test" and (odd or not inside.folders):
            found += [("test", None, file) for file in _pictures(f"{root}/{name}")]
        else:
            found += [(split, label, file) for label, file in _class_folders(f"{root}/{name}")]
    return found


def _tiny_imagenet(root: str) -> list[_Found]:
    found: list[_Found] = []
    found += [("train", wnid, file) for wnid, file in _class_folders(f"{root}/train")]

    annotations = Path(root, "val", "val_annotations.txt")
    wnid_of: dict[str, str] = {}
    for number, line in enumerate(_text(annotations).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise BadInput(f"{annotations} line {number}: expected file<TAB>wnid, got {line!r}")
        name, wnid = fields[0], fields[1].strip()
        if wnid_of.setdefault(name, wnid) != wnid:
            raise BadInput(f"{annotations} line {number}: {name} has two classes; keep one")

    present = set()
    for file in _pictures(f"{root}/val"):
        name = file.rsplit("/", 1)[1]
        if name not in wnid_of:
            raise BadInput(f"{file}: not in {annotations}; add its line or remove the image")
        present.add(name)
        found.append(("val", wnid_of[name], file))
    absent = [name for name in wnid_of if name not in present]
    if absent:
        raise BadInput(
            f"{annotations}: {len(absent)} images are not in {root}/val: {_some(absent)}"
        )

    if Path(root, "test").is_dir():
        found += [("test", None, file) for file in _pictures(f"{root}/test")]
    return found


def _words(path: Path) -> dict[str, str]:
    """words.txt: wnid<TAB>readable names."""
    if not path.is_file():
        return {}
    pairs = (line.partition("\t") for line in _text(path).split("\n"))
    return {wnid: names.strip() for wnid, tab, names in pairs if tab}


# ---- CSV ----


def _csv(path: Path) -> Dataset:
    remote = places.is_remote(path)
    folder = str(path.parent) if remote else os.path.normpath(path.parent.absolute())
    seen: dict[str, tuple[str | None, str, int]] = {}  # path -> class name, split, line
    found: list[tuple[str, str | None, str, str]] = []
    missing: list[str] = []
    for line, row in _rows(path):
        given, label = row["path"], row["label"] or None
        split = _SPLIT_OF.get(row.get("split", "").lower() or "train")
        if not given:
            raise BadInput(f"{path} line {line}: the path is empty")
        if split is None:
            raise UnknownName("split", row["split"], SPLITS, where=f"{path} line {line}")
        if label is None and split != "test":
            raise BadInput(f"{path} line {line}: no label; only split test may lack one")
        elsewhere = remote or "://" in given
        if elsewhere:
            file = given if "://" in given else f"{folder.rstrip('/')}/{given}"
        else:
            file = os.path.normpath(os.path.join(folder, given))  # noqa: PTH118  one spelling
        if file in seen:
            if seen[file][:2] == (label, split):
                continue
            what = "labels" if seen[file][0] != label else "splits"
            raise BadInput(
                f"{path} lines {seen[file][2]} and {line}: {given} has two {what}; keep one line"
            )
        seen[file] = (label, split, line)
        inside = not elsewhere and file.startswith(f"{folder}{os.sep}")
        name = Path(file).relative_to(folder).as_posix() if inside else given
        found.append((split, label, file, name if elsewhere else Path(name).as_posix()))
        if not elsewhere and not os.path.lexists(file):  # else reading it says so
            missing.append(f"{given} (line {line})")
    if missing:
        raise BadInput(f"{path}: {len(missing)} files are not there: {_some(missing)}")
    if not found:
        raise BadInput(f"{path}: holds no rows; expected a line of path,label[,split] per image")
    return _dataset(str(path) if remote else path.as_posix(), "csv", found, {})


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row with its values stripped) of each row of a CSV file with a header."""
    reader = csv.reader(io.StringIO(_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in ("path", "label"):
            if header.count(column) != 1:
                raise BadInput(
                    f"{path} line 1: expected one column {column!r}; {nearest(column, header)}"
                )
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise BadInput(
                    f"{path} line {reader.line_num}: {len(values)} values, "
                    f"the header has {len(header)}"
                )
            yield (
                reader.line_num,
                dict(zip(header, (value.strip() for value in values), strict=True)),
            )
    except csv.Error as error:
        raise BadInput(f"{path} line {reader.line_num}: not valid CSV ({error})") from error


# ---- tar shards ----


def _tars(data: str, found: Sequence[Path]) -> Dataset:
    if not found:
        raise BadInput(f"{data}: holds no .tar shards")
    rows = [row for shard in found for row in tars.members(shard, _SUFFIXES, _SPLIT_OF)]
    twice = [name for name, count in Counter(row[3] for row in rows).items() if count > 1]
    if twice:
        raise BadInput(f"{data}: {len(twice)} names stand twice in shards: {_some(twice)}")
    return _dataset(data, "tar shards", rows, {})


# ---- what the layouts share ----


def _dataset(
    root: str,
    layout: str,
    found: Sequence[tuple[str, str | None, str | Member, str]],
    words: Mapping[str, str],
) -> Dataset:
    """The dataset of (split, class name, path, id) rows; `words` may name other classes too."""
    train = {label for split, label, _, _ in found if split == "train" and label is not None}
    for _, label, file, _ in found:
        if train and label is not None and label not in train:
            raise BadInput(
                f"{root}: class {label!r} (of {file}) is not in split train; "
                f"{nearest(label, train)}"
            )
    classes = sorted({label for _, label, _, _ in found if label is not None})
    for label in classes:
        if utf8(label) != label:
            raise BadInput(
                f"{utf8(root)}: class {utf8(label)} has a name that is not UTF-8; rename it"
            )
    number = {label: index for index, label in enumerate(classes)}
    here = Path.cwd()  # sources are absolute, as workers may stand elsewhere
    samples = [
        Sample(
            utf8(name),
            None if label is None else number[label],
            split,
            _source(here, file),
            "" if utf8(name) == name else "its name is not UTF-8; rename it",
        )
        for split, label, file, name in found
    ]
    known = {label: words[label] for label in classes if label in words}
    return Dataset(utf8(root), layout, _sorted(samples), tuple(classes), known)


def _source(here: Path, file: str | Member) -> Path | Member:
    if isinstance(file, Member):
        return file
    return places.place(file) if "://" in file else here / file


def _sorted(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: (SPLITS.index(sample.split), sample.id)))


def _text(path: Path) -> str:
    try:
        with open_regular(path, MAX_FILE) as (file, size):
            return file.read(size).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read as a UTF-8 text file ({error})") from error


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LIST_MOST])
    return shown + (f" and {len(names) - _LIST_MOST} more" if len(names) > _LIST_MOST else "")
