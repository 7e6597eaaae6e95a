"""Indexes: a dataset as a Parquet file, one row per sample, with its item.

With an index nothing is listed or hashed, and no Python object is made per image:
`--data tiles.parquet` plans ten million images in seconds. The items of an index are checked when
the images are read (views.original), so no row of an image that changed since is stored.

Columns: `id` and `split` (text), `label` (text; null only in split test), `item` (32 bytes), and
`path` (text: relative to the file's folder, absolute, or a URL such as s3://…). A dataset with
groups has `group` too (text; null for none). Of images in tar shards, `path` is the shard, and
`start` and `size` (integers) are the bytes of the image in it; one of them alone is ignored, as
other columns are. Rows are in the order of a dataset: by split in the order train, val, test, then
by id.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from featurecache.errors import BadInput, MissingExtra
from featurecache.images.samples import MAX_FILE, SPLITS, Member, Sample
from featurecache.items import Items
from featurecache.storage.locations import locate
from featurecache.storage.stored_file import StoredFile
from featurecache.text import one_line

COLUMNS = ("id", "split", "label", "path", "item")
GROUP = "group"  # a column that an index may have
EXTENT = ("start", "size")  # columns that an index of tar shards has
File = Path | StoredFile
_ROWS = 1 << 17  # per row group


class _Groups:
    """The groups of N samples: `numbers` (N,) int32, positions in `names`."""

    def __init__(self, count: int) -> None:
        self.numbers = np.empty(count, np.int32)
        self.names: list[str] = []
        self._codes: dict[str | None, int] = {}

    def add(self, start: int, column: Any) -> None:
        """The groups of the samples from `start` on."""
        for name in column.unique().to_pylist():
            if name not in self._codes:
                self._codes[name] = len(self.names)
                self.names.append(name or "")
        self.numbers[start : start + len(column)] = _numbers(column, self._codes)


class Indexed(Sequence[Sample]):
    """The samples of an index from position `start` on. Items, labels, splits and groups are in
    memory; names are read from the file when samples are accessed, one row group at a time."""

    def __init__(
        self,
        file: _Names,
        labels: np.ndarray,
        splits: np.ndarray,
        items: Items,
        start: int = 0,
        groups: _Groups | None = None,
    ) -> None:
        self._file, self._start = file, start
        self._groups = groups  # of the whole index
        self.labels = labels  # (N,) int32; -1 for none
        self.splits = splits  # (N,) int8, positions in SPLITS
        self.items = items

    def __reduce__(self) -> tuple[Any, ...]:
        # Groups are only of use where splits are made.
        return Indexed, (self._file, self.labels, self.splits, self.items, self._start)

    @property
    def file(self) -> File | None:
        """The index file, if the images lie beside it or below its folder: a process that sees
        them sees it too."""
        path = self._file.path
        _, source = next(self._file.between(self._start, self._start + 1))
        if isinstance(source, Member):
            source = source.path
        if isinstance(path, StoredFile) or isinstance(source, StoredFile):
            is_near = getattr(path, "store", None) == getattr(source, "store", None)
        else:
            is_near = source.is_relative_to(path.parent)
        return path if is_near else None

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if not isinstance(index, slice):
            position = range(len(self))[index]
            return next(iter(self[position : position + 1]))
        start, stop, step = index.indices(len(self))
        if step != 1:
            return [self[position] for position in range(start, stop, step)]
        return self.between(start, max(start, stop))

    def between(self, start: int, stop: int) -> Indexed:
        """The samples from the position `start` to `stop`, exclusive."""
        rows = slice(start, stop)
        return Indexed(
            self._file,
            self.labels[rows],
            self.splits[rows],
            self.items[rows],
            self._start + start,
            self._groups,
        )

    def __iter__(self) -> Iterator[Sample]:
        labels, splits = self.labels.tolist(), self.splits.tolist()
        names = self._file.between(self._start, self._start + len(self))
        groups = self._group_names()
        for (name, source), label, split, group in zip(names, labels, splits, groups, strict=True):
            yield Sample(name, None if label < 0 else label, SPLITS[split], source, group=group)

    @property
    def has_groups(self) -> bool:
        """Whether the index has a column of groups."""
        return self._groups is not None

    def _group_names(self) -> Iterator[str]:
        if self._groups is None:
            return itertools.repeat("", len(self))
        numbers = self._groups.numbers[self._start : self._start + len(self)]
        return map(self._groups.names.__getitem__, numbers.tolist())

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of one split, which are contiguous."""
        first, last = np.searchsorted(self.splits, [SPLITS.index(name), SPLITS.index(name) + 1])
        return self[int(first) : int(last)]


class _Names:
    """The ids and sources of an index. The last row group stays in memory. Thread-safe, which a
    ParquetFile is not."""

    def __init__(self, path: File) -> None:
        self.path = path.absolute() if isinstance(path, Path) else path
        self._root = self.path.parent
        self._group: tuple[int, list[Any]] = (-1, [])  # its number and its columns
        self._file: Any = None
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Callable[[File], _Names], tuple[File]]:
        return _names_of, (self.path,)

    @property
    def file(self) -> Any:
        with self._lock:
            if self._file is None:
                self._file = _opened(self.path)
                sizes = [self._file.metadata.row_group(n).num_rows for n in range(self.groups)]
                self._ends = np.cumsum([0, *sizes])
            return self._file

    @property
    def groups(self) -> int:
        return int(self._file.metadata.num_row_groups)

    def _read(self, group: int, start: int, stop: int) -> Iterator[tuple[Any, ...]]:
        """The id, the path, and if the index has them the start and the size of some rows of a row
        group."""
        with self._lock:
            if self._group[0] != group:
                names = ["id", "path", *_extent_of(self.file.schema_arrow)]
                try:
                    table = self.file.read_row_group(group, columns=names)
                except (OSError, ValueError) as error:
                    raise self._damaged(error) from error
                self._group = (group, [table[name].combine_chunks() for name in names])
            _, columns = self._group
        try:
            return zip(*(column[start:stop].to_pylist() for column in columns), strict=True)
        except ValueError as error:  # bytes that are no text
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> BadInput:
        return BadInput(
            f"{self.path}: is damaged ({one_line(error)}); run `featurecache index` again"
        )

    def between(self, start: int, stop: int) -> Iterator[tuple[str, File | Member]]:
        _ = self.file  # sets self._ends
        last, file = None, self.path
        while start < stop:
            group = int(np.searchsorted(self._ends, start, side="right")) - 1
            first, end = int(self._ends[group]), min(stop, int(self._ends[group + 1]))
            for name, path, *extent in self._read(group, start - first, end - first):
                if path is None:
                    raise BadInput(f"{self.path}: {name} has no path")
                if path != last:  # neighbours may be in one tar shard
                    last, file = path, locate(path) if "://" in path else self._root / path
                yield name, self._member(name, file, *extent) if any(extent) else file
            start = end

    def _member(self, name: str, shard: File, start: int | None, size: int | None) -> Member:
        if start is None or size is None or start < 0 or not 0 <= size <= MAX_FILE:
            raise BadInput(f"{self.path}: {name} has a start and a size that no image has")
        return Member(shard, start, size)


@functools.lru_cache(maxsize=4)
def _names_of(path: File) -> _Names:
    """The names of an index that another process has opened. Its parts share them."""
    return _Names(path)


def read_index(path: File) -> tuple[Indexed, tuple[str, ...]]:
    """The samples of an index and its class names, sorted. Raises BadInput, MissingExtra."""
    pa, _, _ = _arrow(path)
    names = _Names(path)
    try:
        file = names.file
        count = int(file.metadata.num_rows)
        if not count:
            raise BadInput(f"{path}: holds no rows")
        _check_columns(file.schema_arrow, path)
        codes: dict[str | None, int] = {}  # class -> its number by first appearance
        labels, splits = np.empty(count, np.int32), np.empty(count, np.int8)
        items = np.empty((count, 32), np.uint8)
        last, start = (-1, ""), 0
        has_groups = GROUP in file.schema_arrow.names
        in_memory = ["id", "split", "label", "item", *[GROUP] * has_groups]
        groups = _Groups(count) if has_groups else None
        for group in range(names.groups):
            table = file.read_row_group(
                group, columns=in_memory if groups is None else [*in_memory, GROUP]
            )
            stop = start + len(table)
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            lacking = [n for n in ("id", "split", "item") if columns[n].null_count]
            if lacking:
                raise BadInput(f"{path}: column {lacking[0]!r} has rows without a value")
            splits[start:stop] = _numbers(columns["split"], {n: i for i, n in enumerate(SPLITS)})
            if (splits[start:stop] < 0).any():
                raise BadInput(f"{path}: has splits other than {', '.join(SPLITS)}")
            for name in columns["label"].unique().to_pylist():
                codes.setdefault(name, len(codes))
            labels[start:stop] = _numbers(columns["label"], codes)
            if groups is not None:
                groups.add(start, columns[GROUP])
            item = columns["item"].cast(pa.binary(32))
            raw = np.frombuffer(item.buffers()[1], np.uint8, 32 * len(item), 32 * item.offset)
            items[start:stop] = raw.reshape(-1, 32)
            last = _sorted_after(last, splits[start:stop], columns["id"], path)
            start = stop
        if start != count:
            raise ValueError(f"{start:,} rows, but the metadata says {count:,}")
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise BadInput(
            f"{path}: not an index ({one_line(error)}); `featurecache index` writes one, with the "
            f"columns {', '.join(COLUMNS)}"
        ) from error
    classes = sorted(name for name in codes if name is not None)
    number = {name: class_number for class_number, name in enumerate(classes)}
    labels[:] = np.array([number.get(name or "", -1) for name in codes], np.int32)[labels]
    if (labels[splits != SPLITS.index("test")] < 0).any():
        raise BadInput(f"{path}: has rows without a label; only split test may lack one")
    trained = np.zeros(len(classes) + 1, bool)
    trained[labels[splits == SPLITS.index("train")]] = True
    if trained.any() and not trained[labels[labels >= 0]].all():
        name = classes[int(labels[(labels >= 0) & ~trained[labels]][0])]
        raise BadInput(f"{path}: class {name!r} is not in split train")
    return Indexed(names, labels, splits, Items(items), groups=groups), tuple(classes)


def _extent_of(schema: Any) -> tuple[str, ...]:
    """The columns of tar shards, if an index has both."""
    return EXTENT if set(EXTENT) <= set(schema.names) else ()


def _check_columns(schema: Any, path: File) -> None:
    """Raise KeyError if a column is missing, BadInput if one holds values of another type."""
    pa, _, _ = _arrow(path)
    for name in (*COLUMNS[:4], *({GROUP} & set(schema.names))):
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(
            is_(kind) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
        ):
            raise BadInput(f"{path}: column {name!r} holds {kind}, expected text")
    for name in _extent_of(schema):
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise BadInput(f"{path}: column {name!r} holds {kind}, expected integers")


def _numbers(column: Any, codes: Mapping[str | None, int]) -> np.ndarray:
    """The code of each text of a column; -1 without one."""
    if hasattr(column, "dictionary_decode"):  # other writers may have dictionaries with nulls
        column = column.dictionary_decode()
    encoded = column.dictionary_encode(null_encoding="encode")
    table = [codes.get(name, -1) for name in encoded.dictionary.to_pylist()]
    numbers: np.ndarray = np.array(table, np.int32)[encoded.indices.to_numpy()]
    return numbers


def _sorted_after(
    last: tuple[int, str], splits: np.ndarray, ids: Any, path: File
) -> tuple[int, str]:
    """The last (split, id) of a group of rows. Raises BadInput if the rows are not sorted, or not
    greater than `last`."""
    _, pc, _ = _arrow(path)
    count = len(ids)
    following = pc.less(ids.slice(0, count - 1), ids.slice(1)).to_numpy(zero_copy_only=False)
    first = (int(splits[0]), ids[0].as_py())
    rising = (splits[1:] > splits[:-1]) | ((splits[1:] == splits[:-1]) & following)
    if not (last < first and rising.all()):
        raise BadInput(
            f"{path}: its rows must be sorted by split (train, val, test) and id, each id once in "
            "a split; `featurecache index` sorts"
        )
    return int(splits[-1]), ids[count - 1].as_py()


def _opened(path: File) -> Any:
    _, _, pq = _arrow(path)
    checked = {"page_checksum_verification": True}  # older indexes have no checksums
    if isinstance(path, StoredFile):  # its row groups are read when they are needed
        return pq.ParquetFile(path.open(), **checked)
    return pq.ParquetFile(path, **checked)


def write_index(
    out: Path, samples: Sequence[Sample], items: Items, classes: Sequence[str], to: Path
) -> int:
    """Write the samples whose items are known to the file `to`, in order, and return their number.
    `out` is the index's final path: paths below its folder are written relative to it. Raises
    BadInput, MissingExtra."""
    pa, _, pq = _arrow(out)
    text_columns = [*COLUMNS[:4]] + [GROUP] * any(sample.group for sample in samples)
    extent = EXTENT if any(isinstance(sample.source, Member) for sample in samples) else ()
    schema = pa.schema(
        [(name, pa.large_string()) for name in text_columns]
        + [(name, pa.int64()) for name in extent]
        + [("item", pa.binary(32))]
    )
    folder = out.absolute().parent
    written = 0
    with pq.ParquetWriter(to, schema, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(samples), _ROWS):
            rows: list[tuple[Any, ...]] = []
            some = zip(samples[start : start + _ROWS], items[start : start + _ROWS], strict=True)
            for sample, item in some:
                if item is not None:
                    label = None if sample.label is None else classes[sample.label]
                    texts = (sample.id, sample.split, label, _path(sample, folder))
                    groups = (sample.group or None,) * (GROUP in text_columns)
                    bounds = (getattr(sample.source, name, None) for name in extent)
                    rows.append((*texts, *groups, *bounds, item))
            columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema), _ROWS)
            written += len(rows)
    return written


def check_indexable(samples: Sequence[Sample]) -> None:
    """Raise BadInput if an index can't be of these samples."""
    if any(isinstance(sample.source, bytes) for sample in samples):
        raise BadInput("an index is of files, not of images in memory")


def _path(sample: Sample, folder: Path) -> str:
    source = sample.source.path if isinstance(sample.source, Member) else sample.source
    assert not isinstance(source, bytes)  # see check_indexable
    if isinstance(source, StoredFile):
        return str(source)
    return str(source.relative_to(folder) if source.is_relative_to(folder) else source)


def _arrow(path: File) -> tuple[Any, Any, Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtra(f"an index ({path})", "pyarrow", "parquet") from error
    return pyarrow, pyarrow.compute, pyarrow.parquet
