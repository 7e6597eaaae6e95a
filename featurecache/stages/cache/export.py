"""Export: the vectors of a view with the labels of a dataset, as arrays or as one file."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np

from featurecache.errors import BadInput, MissingExtra, UnknownName
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.mapped import MappedColumns, MappedVectors, map_columns
from featurecache.features.settings import CachedSetting, check_keywords, keywords_of
from featurecache.features.store import Cache
from featurecache.heads.schedules import backbone_choice
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.samples import items_of
from featurecache.images.views import find_view
from featurecache.items import group_numbers, packed
from featurecache.lookup.held_spaces import side_by_side, spaces_of
from featurecache.storage import durable
from featurecache.storage.output_files import check_output
from featurecache.text import listed

FORMATS = ("npz", "parquet", "safetensors")

Vectors = np.ndarray | MappedVectors | MappedColumns


class CachedVectors(CachedSetting, total=False):
    """Which vectors of the backbone to read; these settings tell apart what the cache holds several
    of."""

    cache: str | Path  # "data/cache" by default
    seed: int  # of the views; 0 by default
    progress: ProgressOption


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows in dataset order: vectors (N, D) float32, labels (N,) int64 (-1 for unlabelled
    images), ids and splits (N,) str, items (N, 32) uint8, the names of N groups ("" for none),
    and the class names that the labels index."""

    vectors: Vectors
    labels: np.ndarray
    ids: np.ndarray
    items: np.ndarray
    splits: np.ndarray
    groups: Sequence[str]
    classes: np.ndarray
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file that `export` wrote."""

    path: str
    format: str
    rows: int
    dim: int
    left_out: int  # images that could not be read or decoded


def export(
    out: str | Path,
    *,
    view: str = "none",
    backbone: str,
    format: str | None = None,
    split: str | None = None,
    data: DataSource = "data",
    **options: Unpack[CachedVectors],
) -> Exported:
    """Write a view's vectors with labels, ids, items (SHA-256 of images) and splits into one file.

    `format` is npz, parquet or safetensors; the default is the suffix of `out`. Images that could
    not be decoded are left out and counted. The settings select among several spaces in the cache.
    Raises NotCached for missing vectors.
    """
    check_keywords(options, CachedVectors, "export")
    path = Path(out)
    format = format or path.suffix.removeprefix(".")
    if format not in FORMATS:
        raise UnknownName("export format", format, FORMATS)
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra("export to parquet", "pyarrow", "parquet")
    check_output(path, data=data)
    table = _table(data, [view], [backbone], split, options)
    content = io.BytesIO()
    if format == "npz":
        np.savez(
            content,
            features=table.vectors,
            labels=table.labels,
            ids=table.ids,
            items=table.items,
            splits=table.splits,
            classes=table.classes,
        )
    elif format == "safetensors":
        for part in _safetensors(table):
            content.write(part)
    else:
        import pyarrow
        import pyarrow.parquet

        names = [str(table.classes[n]) if n >= 0 else None for n in table.labels]
        columns = {
            "id": pyarrow.array(table.ids.tolist()),
            "item": pyarrow.array([item.tobytes().hex() for item in table.items]),
            "split": pyarrow.array(table.splits.tolist()),
            "class": pyarrow.array(names, pyarrow.string()),
            "features": pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(np.ravel(table.vectors)), table.vectors.shape[1]
            ),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), content)
    durable.replace(path, content.getvalue())
    rows, dim = table.vectors.shape
    return Exported(path=str(path), format=format, rows=rows, dim=dim, left_out=table.left_out)


@overload
def vectors(
    data: DataSource = ...,
    view: str | Sequence[str] = ...,
    backbone: str | Sequence[str] = ...,
    *,
    split: str | None = ...,
    mapped: bool = ...,
    return_groups: Literal[False] = ...,
    return_ids: Literal[False] = ...,
    return_items: Literal[False] = ...,
    **options: Unpack[CachedVectors],
) -> tuple[Vectors, np.ndarray]: ...
@overload
def vectors(
    data: DataSource = ...,
    view: str | Sequence[str] = ...,
    backbone: str | Sequence[str] = ...,
    *,
    split: str | None = ...,
    mapped: bool = ...,
    return_groups: bool = ...,
    return_ids: bool = ...,
    return_items: bool = ...,
    **options: Unpack[CachedVectors],
) -> tuple[Vectors, np.ndarray, *tuple[np.ndarray, ...]]: ...
def vectors(
    data: DataSource = "data",
    view: str | Sequence[str] = "none",
    backbone: str | Sequence[str] = "",
    *,
    split: str | None = None,
    mapped: bool = False,
    return_groups: bool = False,
    return_ids: bool = False,
    return_items: bool = False,
    **options: Unpack[CachedVectors],
) -> tuple[Vectors, np.ndarray, *tuple[np.ndarray, ...]]:
    """(X, y) for scikit-learn: vectors (N, D) float32 and class names (N,) of labelled images.

    The rows of several views follow each other, view by view; an image that one of them lacks is
    left out. The vectors of several backbones are concatenated: D is the sum of their widths.
    With `mapped`, X stays on disk and is read on access, for spaces larger than memory.

    The result has in addition, in this order: with `return_groups` the groups (N,) int64, the same
    number for all views and copies of an image, and for all images of a group of the dataset (pass
    it to cross-validation, or an image ends up on both sides); with `return_ids` the ids of the
    samples (N,) str; with `return_items` their items (N, 32) uint8, the SHA-256 of the images.
    """
    check_keywords(options, CachedVectors, "vectors")
    views, backbones = distinct_views(view), listed(backbone)
    if not any(backbones):
        raise BadInput("vectors needs a backbone; featurecache.ls(cache) lists the cached ones")
    if mapped and len(views) > 1:
        raise BadInput("mapped=True takes a single view; call vectors once per view")
    table = _table(data, views, backbones, split, options, labelled=True, mapped=mapped)
    extra: list[np.ndarray] = []
    if return_groups:
        extra.append(group_numbers(table.items, table.groups))
    if return_ids:
        extra.append(table.ids)
    if return_items:
        extra.append(table.items)
    return table.vectors, table.classes[table.labels], *extra


def _safetensors(table: Table) -> list[bytes | memoryview]:
    """The parts of a safetensors file. The library has the metadata in another order each time, so
    its header is written again: equal tables have equal bytes."""
    from safetensors.numpy import save

    names = ("ids", "splits", "classes")
    texts = {name: json.dumps(getattr(table, name).tolist()) for name in names}
    arrays = {"features": table.vectors, "labels": table.labels, "items": table.items}
    content = memoryview(save(arrays, metadata=texts))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(bytes(content[8:start])), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the numbers start at a multiple of 8
    return [len(header).to_bytes(8, "little"), header, content[start:]]


def distinct_views(view: str | Sequence[str]) -> list[str]:
    """The names of one or several views. Raises BadInput for none, or for one given twice."""
    views = listed(view)
    if not views or len(set(views)) < len(views):
        raise BadInput(f"view {views}: give at least one view, and each only once")
    return views


def _table(
    data: DataSource,
    views: Sequence[str],
    backbones: Sequence[str],
    split: str | None,
    options: CachedVectors,
    labelled: bool = False,
    mapped: bool = False,
) -> Table:
    choices = [backbone_choice(b, keywords_of(CachedSetting, options)) for b in backbones]
    cache, seed = Cache(options.get("cache", "data/cache")), options.get("seed", 0)
    dataset = open_dataset(data)
    samples = dataset.samples if split is None else dataset.split(split)
    items, _ = items_of(samples, resolve_progress(options.get("progress", False)))
    readable = [(s, i) for s, i in zip(samples, items, strict=True) if i is not None]
    wanted = {name: find_view(name, seed, cache.views) for name in views}
    known = [item for _, item in readable]
    where: Any = data if isinstance(data, str | Path) else dataset
    spaces = spaces_of(cache, wanted, choices, known, where)
    failed = {item for view in views for space in spaces[view] for item in space.failures(known)}
    decoded = [(sample, item) for sample, item in readable if item not in failed]
    rows = [(s, item) for s, item in decoded if s.label is not None or not labelled]
    chosen = [item for _, item in rows]
    features: Vectors
    if mapped:
        features = map_columns(spaces[views[0]], chosen)
    else:
        parts = [side_by_side(spaces[name], chosen) for name in views]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts)
    copies = len(views)
    labels = np.array([-1 if s.label is None else s.label for s, _ in rows], np.int64)
    return Table(
        vectors=features,
        labels=np.tile(labels, copies),
        ids=np.tile(np.array([s.id for s, _ in rows], str), copies),
        items=np.tile(packed(chosen), (copies, 1)),
        splits=np.tile(np.array([s.split for s, _ in rows], str), copies),
        groups=[s.group for s, _ in rows] * copies,
        classes=np.array(dataset.classes, str),
        left_out=len(samples) - len(decoded),
    )
