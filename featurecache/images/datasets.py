"""Datasets: an ordered list of samples with class names and splits, read from a path.

    digits                                   scikit-learn's 1,797 pictures of 8x8, in memory
    FILE.parquet                             an index: layouts/indexes.py
    FILE.tar, NAME-{000..099}.tar, a folder of .tar     shards as in webdataset
    hf://OWNER/NAME                          a dataset of Hugging Face
    FILE.csv, FILE.jsonl                     path[,label][,split], relative to the file's folder
    FILE.txt                                 a path per line, relative to the file's folder
    ROOT/train/WNID/images/*.JPEG, ROOT/val/val_annotations.txt, ROOT/test/images     Tiny ImageNet
    ROOT/{train,val,test}/CLASS/**           split folders; images directly in test/ are unlabelled
    ROOT/metadata.csv, ROOT/{train,val,test}/metadata.csv     Hugging Face's imagefolder
    ROOT/CLASS/{train,val,test}/*            class folders that hold nothing but split folders
    ROOT/CLASS/**                            class folders, all in the split `train`
    ROOT/*                                   images without labels, all in the split `test`

A folder whose only sub-folder is one of these is read as that sub-folder. Names that start with a
dot, caches and runs are skipped. The order of listing never matters: samples are sorted by split
and id.

Every file with the suffix of a picture is a sample, and errors are reported when it is read. Pipes,
sockets, devices, folders, broken links, names that are not UTF-8 and files larger than MAX_FILE are
each refused without being read. Links to files and folders are followed, wherever they lead.
"""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard, Unpack, overload

import numpy as np

from featurecache.errors import BadInput, FeatureCacheWarning, UnknownName
from featurecache.images.layouts.class_names import check_classes, class_hint
from featurecache.images.layouts.contents import Contents
from featurecache.images.layouts.csv_files import TABLES, csv_file
from featurecache.images.layouts.csv_tables import CsvColumns
from featurecache.images.layouts.folder_layouts import LAYOUTS, folder_contents
from featurecache.images.layouts.hub_datasets import (
    SCHEME,
    download,
    hub_dataset,
    is_hub_dataset,
)
from featurecache.images.layouts.in_memory import Table, in_memory
from featurecache.images.layouts.indexes import Indexed, read_index
from featurecache.images.layouts.joined import joined_classes, joined_samples
from featurecache.images.layouts.tar_shards import is_archive, is_tar, shard_paths, tar_shards
from featurecache.images.layouts.torch_datasets import MapStyle, is_map_style, torch_datasets
from featurecache.images.names import is_picture
from featurecache.images.samples import SPLITS, Member, Sample
from featurecache.notebook import html_table
from featurecache.storage.local import working_folder
from featurecache.storage.locations import locate
from featurecache.storage.stored_file import StoredFile
from featurecache.text import as_utf8, counted

FRAME = "DataFrame.csv"  # stands for the file of a table in memory
_MAX_SHOWN = 5  # classes shown in a notebook
_COLUMNED = (".csv", ".jsonl")  # suffixes of files with named columns

_LABELS = (
    "For labels, put each class into a folder, or list the images in a .csv file with a column of "
    "labels (--label-column)"
)


@dataclass(frozen=True)
class Dataset:
    """Samples sorted by (split in the order train, val, test; id); classes sorted by name.

    `words` maps class names to readable names, if the dataset has them. `notes` list what looks
    like a part of the dataset but is not used. `location` is the path or URL that it was opened at,
    with these `columns`; it is empty for images in memory and for a part of a dataset. Of several
    datasets as one, `locations` has each.
    """

    root: str
    layout: str
    samples: Sequence[Sample]
    classes: tuple[str, ...]
    words: Mapping[str, str]
    notes: tuple[str, ...] = ()
    location: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    locations: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have samples, in the order train, val, test."""
        if isinstance(self.samples, Indexed):
            return tuple(SPLITS[number] for number in np.unique(self.samples.splits))
        present = {sample.split for sample in self.samples}
        return tuple(name for name in SPLITS if name in present)

    @property
    def generated(self) -> tuple[str, ...]:
        """The folders of the datasets of generated images that its samples are of, as given."""
        if isinstance(self.samples, Indexed):
            return ()
        names = {str(Path(n).absolute()): str(Path(n)) for n in self.locations or [self.location]}
        folders = {sample.origin for sample in self.samples if sample.origin}
        return tuple(names.get(folder, folder) for folder in sorted(folders))

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of one split, in order. Raises UnknownName if the dataset lacks it, and
        BadInput if that is because it has no labels."""
        if name not in self.splits:
            if name in SPLITS and not self.classes:
                raise BadInput(
                    f"{self.root}: has no split {name!r}: its images have no labels, and are all "
                    f"in split test. {_LABELS}"
                )
            raise UnknownName("split", name, self.splits, where=self.root)
        if isinstance(self.samples, Indexed):
            return self.samples.split(name)
        return tuple(sample for sample in self.samples if sample.split == name)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        """A sample, or a dataset of some of the samples."""
        if isinstance(index, slice):
            return replace(self, samples=self.samples[index], location="", locations=())
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        return (
            f"<Dataset {self.root!r} ({self.layout}): {counted(len(self), 'image')} of "
            f"{len(self.classes):,} classes>"
        )

    def __str__(self) -> str:
        return self.root  # used where a command or a record names the dataset

    def _repr_html_(self) -> str:
        counts = Counter(sample.split for sample in self.samples)
        names = ", ".join(self.words.get(name, name) for name in self.classes[:_MAX_SHOWN])
        unlisted = len(self.classes) - _MAX_SHOWN
        return html_table(
            f"dataset {self.root}",
            {
                "layout": self.layout,
                **{name: counts[name] for name in self.splits},
                "classes": names + (f" and {unlisted:,} more" if unlisted > 0 else ""),
            },
        )


# What every function with `data` takes; see open_dataset.
DataSource = (
    str | Path | Dataset | Sequence[Any] | np.ndarray | Table | MapStyle | Mapping[str, Any]
)


def name_of(data: DataSource) -> str:
    """The name of the data in messages and records: its path, or the type of what is in memory."""
    return " + ".join(names_of(data))


def names_of(data: DataSource) -> list[str]:
    """The values of --data that name the data, one per dataset."""
    if isinstance(data, Dataset) and data.locations:
        return list(data.locations)
    if _are_datasets(data):
        return [name for part in data for name in names_of(part)]
    return [str(data) if isinstance(data, str | Path | Dataset) else type(data).__name__]


def _are_datasets(data: DataSource) -> TypeGuard[Sequence[str | Path | Dataset]]:
    """Whether a sequence names datasets, and not images."""
    return (
        isinstance(data, list | tuple)
        and len(data) > 0
        and all(
            isinstance(part, Dataset)
            or (isinstance(part, str | Path) and not is_picture(Path(part).name))
            for part in data
        )
    )


def open_dataset(
    data: DataSource,
    *,
    labels: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    **columns: Unpack[CsvColumns],
) -> Dataset:
    """The dataset at `data`: a folder, a file, `hf://OWNER/NAME`, or the literal string `digits`.

    A list of these is one dataset, in which equal class names are the same class.

    A Dataset is returned unchanged, so that every function that takes a path also takes a dataset.
    A pandas DataFrame is read as a CSV file in the working folder. A sequence of arrays (H, W, 3)
    or (H, W) uint8, PIL images or paths, or an array of such images, may have `labels`, `splits`
    and `groups` of the same length. Of Hugging Face's `datasets` a Dataset or a DatasetDict, and a
    map-style torch Dataset or a dict of them by split, are read too. `columns` names columns of a
    table whose names are not usual ones. Lists files, but reads no image. Raises BadInput, with
    advice, if `data` is not a dataset.
    """
    if _are_datasets(data) and labels is splits is groups is None:
        return _joined(data, columns)
    if isinstance(data, list | tuple | np.ndarray):
        return _numbered(in_memory(data, labels, splits, groups))
    if not (labels is splits is groups is None):
        raise BadInput(
            "labels, splits and groups are for a sequence of arrays, PIL images or paths"
        )
    if is_hub_dataset(data):
        return _numbered(hub_dataset(data, columns))
    if isinstance(data, Table):
        return _numbered(csv_file(Path(FRAME), columns, data.to_csv(index=False)))
    if isinstance(data, Dataset) and not any(columns.values()):
        return data
    chosen = {name: str(value) for name, value in columns.items() if value}
    if isinstance(data, str | Path | StoredFile):
        return replace(_opened(data, columns), location=str(data), columns=chosen)
    if chosen:
        raise _no_columns(data, columns)
    if isinstance(data, Mapping) or is_map_style(data):
        return _numbered(torch_datasets(data if isinstance(data, Mapping) else {"": data}))
    raise BadInput(
        f"{data!r}: not a path, and no dataset with a length and an index; pass a single one"
    )


def _joined(data: Sequence[str | Path | Dataset], columns: CsvColumns) -> Dataset:
    """Several datasets as one. `columns` are of the tables among them."""
    is_table = [str(part).startswith(SCHEME) or str(part).endswith(_COLUMNED) for part in data]
    if any(columns.values()) and not any(is_table):
        raise _no_columns(name_of(data), columns)
    parts = [
        open_dataset(part, **columns) if has_columns else open_dataset(part)
        for part, has_columns in zip(data, is_table, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    root = " + ".join(part.root for part in parts)
    locations = [name for part in parts for name in part.locations or (part.location,)]
    if twice := [name for name, count in Counter(filter(None, locations)).items() if count > 1]:
        raise BadInput(f"{root}: {twice[0]} is there twice; give each dataset once")
    classes, notes = joined_classes(parts)
    return Dataset(
        root,
        "joined",
        _sorted(list(joined_samples(parts, classes))),
        tuple(classes),
        {name: word for part in parts for name, word in part.words.items()},
        (*(note for part in parts for note in part.notes), *notes, *check_classes(classes, root)),
        columns={name: str(value) for name, value in columns.items() if value},
        locations=tuple(locations) if all(locations) else (),
    )


def _opened(data: str | Path | StoredFile, columns: CsvColumns) -> Dataset:
    if str(data).startswith(SCHEME):
        return _numbered(hub_dataset(download(str(data)), columns, str(data)))
    if any(columns.values()):
        return _table(data, columns)
    if data == "digits":
        if Path("digits").is_dir():
            warnings.warn(
                "digits means scikit-learn's 1,797 pictures; to use the folder of that name, pass "
                "./digits",
                FeatureCacheWarning,
                stacklevel=2,
            )
        return _digits()
    path = locate(data)
    if is_tar(str(data)) or (isinstance(path, StoredFile) and not path.suffix):
        return _numbered(tar_shards(str(data), shard_paths(str(data))))
    if path.suffix.lower() == ".parquet" and (isinstance(path, StoredFile) or path.is_file()):
        samples, classes = read_index(path)
        return Dataset(str(data), "index", samples, classes, {})
    if isinstance(path, StoredFile):
        if path.suffix.lower() in TABLES:
            return _numbered(csv_file(path))
        raise BadInput(
            f"{data}: a dataset in an object store must be a table ({', '.join(TABLES)}), an index "
            "or tar shards"
        )
    if not _is_there(path):
        near = _nearest_path(path)
        hint = f"a dataset is {LAYOUTS}" if near is None else f"nearest: {as_utf8(near)}"
        raise BadInput(f"{as_utf8(path)}: no such file or folder; {hint}")
    if is_archive(path.name) and path.is_file():
        raise BadInput(f"{as_utf8(path)}: an archive of a kind that can't be read; unpack it first")
    if path.is_dir():
        return _numbered(folder_contents(path))
    if path.suffix.lower() in TABLES:
        return _numbered(csv_file(path))
    raise BadInput(f"{as_utf8(path)}: not a dataset; a dataset is {LAYOUTS}")


def _table(data: str | Path | StoredFile, columns: CsvColumns) -> Dataset:
    path = locate(data)
    if path.suffix.lower() not in _COLUMNED:
        raise _no_columns(data, columns)
    if not isinstance(path, StoredFile) and not _is_there(path):
        raise BadInput(f"{as_utf8(path)}: no such file")
    return _numbered(csv_file(path, columns))


def _no_columns(data: object, columns: CsvColumns) -> BadInput:
    option = next(name for name, value in columns.items() if value).replace("_", "-")
    return BadInput(f"{data}: --{option} is for a .csv or .jsonl file, or an {SCHEME} dataset")


def _nearest_path(path: Path) -> Path | None:
    """The path in the same folder with the most similar name; None if no name is similar."""
    try:
        names = {entry.name.lower(): entry for entry in path.parent.iterdir()}
    except OSError:
        return None
    near = difflib.get_close_matches(path.name.lower(), names, n=1, cutoff=0.75)
    return names[near[0]] if near else None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise BadInput(f"{as_utf8(path)}: {error.strerror}") from error


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    samples = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        # 0..16 to 0..255, rounding halves up, in integers so that every machine gives the same
        grey = bytes((int(value) * 255 * 2 + 16) // 32 for value in image)
        split = "val" if index % 5 == 4 else "train"
        samples.append(Sample(f"{index:04}", int(label), split, b"P5\n8 8\n255\n" + grey))
    return Dataset("digits", "digits", _sorted(samples), tuple("0123456789"), {})


def _numbered(contents: Contents) -> Dataset:
    """The dataset with a layout's contents: classes are numbered, samples sorted."""
    root, listed = contents.root, contents.entries
    train = {e.label for e in listed if e.split == "train" and e.label is not None}
    for entry in listed:
        if train and entry.label is not None and entry.label not in train:
            source = entry.id if isinstance(entry.source, bytes) else entry.source
            raise BadInput(
                f"{root}: class {entry.label!r} (of {source}) is not in split train; "
                f"{class_hint(entry.label, train)}"
            )
    classes = sorted({entry.label for entry in listed if entry.label is not None})
    notes = tuple(map(as_utf8, [*contents.notes, *check_classes(classes, root)]))
    number = {label: index for index, label in enumerate(classes)}
    base = working_folder()  # sources are absolute, as workers may run elsewhere
    samples = [
        Sample(
            as_utf8(name),
            None if label is None else number[label],
            split,
            _source(base, source),
            "" if as_utf8(name) == name else "its name is not UTF-8; rename it",
            group,
            origin,
        )
        for split, label, source, name, group, origin in listed
    ]
    words = {label: contents.words[label] for label in classes if label in contents.words}
    return Dataset(
        as_utf8(root),
        contents.layout,
        _sorted(samples),
        tuple(classes),
        words,
        tuple(map(as_utf8, notes)),
    )


def _source(base: Path, source: str | Member | bytes) -> Path | StoredFile | Member | bytes:
    if isinstance(source, Member) and isinstance(source.path, Path):
        return replace(source, path=base / source.path)
    if isinstance(source, Member | bytes):
        return source
    return locate(source) if "://" in source else base / source


def _sorted(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: (SPLITS.index(sample.split), sample.id)))
