"""Datasets of Hugging Face: `hf://OWNER/NAME[/CONFIG][@REVISION]`, and the objects of `datasets`.

Encoded bytes are used as they are stored, so an image has the item that its file has. Of a dataset
on disk, which `datasets` keeps in uncompressed Arrow files, an image is read where it lies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput, MissingExtra, UnknownName
from featurecache.images.layouts.contents import Contents, Entry, first_few
from featurecache.images.layouts.csv_tables import CsvColumns
from featurecache.images.names import column_of, is_usual_column, split_of
from featurecache.images.samples import SPLITS, Member
from featurecache.text import one_line

SCHEME = "hf://"
ROOT = "datasets.Dataset"  # stands for the path of an object
_MODULES = ("datasets.arrow_dataset", "datasets.dataset_dict", "datasets.iterable_dataset")
_URL = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@(.+))?")


def is_hub_dataset(data: object) -> bool:
    """Whether `data` is an object of the package `datasets`, or a dict of them. The package is not
    imported for this; a user's own module may have its name too."""
    if type(data) is dict:
        return bool(data) and all(map(is_hub_dataset, data.values()))
    return any(kind.__module__ in _MODULES for kind in type(data).__mro__)


def download(url: str) -> Any:
    """The DatasetDict at `hf://OWNER/NAME[/CONFIG][@REVISION]`. Raises BadInput, MissingExtra."""
    match = _URL.fullmatch(url)
    if match is None:
        raise BadInput(f"{url}: expected {SCHEME}OWNER/NAME, /CONFIG and @REVISION may follow")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra(f"a dataset of Hugging Face ({url})", "datasets", "hf") from error
    if not hasattr(datasets, "load_dataset"):
        raise BadInput(f"{url}: {datasets.__file__} hides the package `datasets`; rename it")
    name, config, revision = match.groups()
    try:
        return datasets.load_dataset(name, config, revision=revision)
    except ConnectionError as error:
        raise BadInput(
            f"{url}: Hugging Face can't be reached ({one_line(error)}); connect, or load it once "
            "where there is a connection: it is then read from the cache of `datasets`"
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise BadInput(
            f"{url}: there is no such dataset or revision, or it needs a token; see "
            f"https://huggingface.co/datasets/{name}, and `hf auth login`"
        ) from error
    except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"{url}: can't be loaded ({one_line(error)})") from error


def hub_dataset(data: Any, columns: CsvColumns, root: str = ROOT) -> Contents:
    """The images of a Dataset or a DatasetDict, in its order; `columns` names columns of it. Images
    with a label are in the split of their part, or in train if that says none. Raises BadInput."""
    entries: list[Entry] = []
    notes: list[str] = []
    for key, split, part in _parts(data, root, notes):
        where = f"{root} {key}".rstrip()
        names = _columns(part.features, columns, where)
        if "label" not in names:
            notes.append(f"{where}: no column of labels, so its images are unlabelled")
        unused = [repr(name) for name in part.features if name not in names.values()]
        if unused:
            notes.append(f"{where}: columns that are not used: {first_few(unused)}")
        texts = {column: _texts(part, name) for column, name in names.items() if column != "path"}
        digits = len(str(len(part) - 1))
        for index, source in enumerate(_sources(part, names["path"], where)):
            row = {column: values[index] for column, values in texts.items()}
            label, group = row.get("label"), row.get("group") or ""
            own_split = split or ("train" if "label" in names else "test")
            if "split" in names:
                own_split = split_of(row["split"] or "train") or ""
                if not own_split:
                    raise UnknownName("split", row["split"], SPLITS, where=f"{where}[{index}]")
            if label is None and own_split != "test":
                raise BadInput(f"{where}[{index}]: no label; only split test may lack one")
            if "group" in names and not group:
                raise BadInput(f"{where}[{index}]: the group is empty")
            name = f"{key}/{index:0{digits}}".lstrip("/")
            entries.append(Entry(own_split, label, source, name, group))
    if not entries:
        raise BadInput(f"{root}: holds no rows")
    return Contents(root=root, layout="hugging face", entries=entries, notes=notes)


def _parts(data: Any, root: str, notes: list[str]) -> list[tuple[str, str | None, Any]]:
    """(key, split, Dataset) of each part whose split is known, or of a single part. Raises
    BadInput."""
    for part in data.values() if isinstance(data, Mapping) else [data]:
        if not hasattr(part, "cache_files"):
            raise BadInput(
                f"{type(part).__name__}: has no length and no index, so no image of it can be "
                "found again; load it without streaming"
            )
    if not isinstance(data, Mapping):
        return [("", split_of(str(data.split or "")), data)]
    if len(data) == 1:
        ((key, part),) = data.items()
        return [(str(key), split_of(str(key)), part)]
    parts: list[tuple[str, str | None, Any]] = [
        (str(key), split, part) for key, part in data.items() if (split := split_of(str(key)))
    ]
    unused = [str(key) for key in data if split_of(str(key)) is None]
    if not parts:
        raise BadInput(f"{root}: none of its parts is a split: {first_few(unused)}; pass one part")
    if unused:
        notes.append(f"parts that are no splits, and are not used: {first_few(unused)}")
    splits = [split for _, split, _ in parts]
    for key, split, _ in parts:
        if splits.count(split) > 1:
            raise BadInput(f"{root}: {key!r} is not the only part that is split {split}; keep one")
    return parts


def _columns(features: Mapping[str, Any], columns: CsvColumns, root: str) -> dict[str, str]:
    """The names of the columns of paths, labels, splits and groups. Raises BadInput."""
    names: dict[str, str] = {}
    for option, wanted in columns.items():
        if wanted is not None:
            if wanted not in features:
                raise UnknownName("column", wanted, features, where=root)
            names[option.removesuffix("_column")] = str(wanted)
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    if "path" not in names:
        if not pictures:
            names_and_kinds = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise BadInput(f"{root}: no column of images; its columns: {names_and_kinds}")
        names["path"] = _only(pictures, "path", root)
    if names["path"] not in pictures:
        raise BadInput(f"{root}: column {names['path']!r} does not hold images")
    if "label" not in names:
        coded = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        usual = [
            name
            for name, kind in kinds.items()
            if kind == "Value" and (column_of(name) == "label" or is_usual_column(name, "label"))
        ]
        if coded or usual:
            names["label"] = _only(coded or usual, "label", root)
    for column, name in names.items():
        if column != "path" and kinds[name] not in ("ClassLabel", "Value"):
            raise BadInput(f"{root}: column {name!r} holds {kinds[name]}; expected one value each")
    return names


def _only(names: Sequence[str], column: str, root: str) -> str:
    if len(names) > 1:
        choices = " and ".join(map(repr, names))
        raise BadInput(
            f"{root}: columns {choices} may be the {column}; choose with --{column}-column NAME"
        )
    return names[0]


def _texts(part: Any, name: str) -> list[str | None]:
    """The values of a column as text, classes by their names; None where there is none."""
    values = part.data.column(name).to_pylist()
    classes = getattr(part.features[name], "names", None)
    texts: list[str | None] = []
    for row in _order(part):
        value = values[row]
        if value is None or (classes is not None and value < 0):
            texts.append(None)
        else:
            texts.append(str(value) if classes is None else classes[value])
    return texts


def _order(part: Any) -> Sequence[int]:
    """The rows of `part.data` that a Dataset has: after a shuffle, not all and not in order."""
    indices = part._indices
    return range(len(part)) if indices is None else indices.column(0).to_pylist()


def _sources(part: Any, name: str, where: str) -> Iterator[str | Member | bytes]:
    """Where the encoded bytes of each image are. Raises BadInput."""
    column = part.data.column(name)
    members = _members(part, name)
    for index, row in enumerate(_order(part)):
        member = members[row] if members else None
        if member is not None:
            yield member
            continue
        picture = column[row].as_py() or {}
        content, path = picture.get("bytes"), picture.get("path")
        if content is not None:
            yield content
        elif path is None:
            raise BadInput(f"{where}[{index}]: column {name!r} has no image")
        elif not os.path.lexists(path):
            raise BadInput(f"{where}[{index}]: its file {path} is not on this machine")
        else:
            yield path


def _members(part: Any, name: str) -> list[Member | None] | None:
    """For each row of `part.data`, where its bytes lie in a file; None for rows without, and None
    for all if the table is not that of the files, for example because it was never written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    members: list[Member | None] = []
    sizes: list[Any] = []
    try:
        for file in part.cache_files:
            if len(members) >= part.data.num_rows:
                break  # what follows is the order of the rows
            path = Path(file["filename"]).absolute()
            with pa.memory_map(str(path)) as mapped:
                buffer = mapped.read_buffer()
            for chunk in pa.ipc.open_stream(buffer).read_all().column(name).chunks:
                content = chunk.field("bytes")
                members += _in_file(path, content, buffer)
                sizes.append(pc.binary_length(content))
        lengths = pc.binary_length(pc.struct_field(part.data.column(name), "bytes"))
        if not sizes or not pa.chunked_array(sizes).equals(lengths):
            return None
    except (pa.ArrowException, KeyError, OSError, ValueError):
        return None
    return members


def _in_file(path: Path, content: Any, buffer: Any) -> list[Member | None]:
    """The places in a file of the values of a binary array, whose memory is the mapped file.
    Raises ValueError if it is not, as with compressed files."""
    _, offsets, values = content.buffers()
    if values is None:
        return [None] * len(content)
    wide = content.type in ("large_binary", "large_string")
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32)
    ends = ends[content.offset : content.offset + len(content) + 1].astype(np.int64)
    start = values.address - buffer.address
    if start < 0 or start + values.size > buffer.size:
        raise ValueError("not in the file")
    spans = zip(ends[:-1].tolist(), ends[1:].tolist(), content.is_valid().to_pylist(), strict=True)
    return [Member(path, start + a, b - a) if valid else None for a, b, valid in spans]
