"""Index: list and hash a dataset once, so that later commands need not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import BadInput
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.layouts.indexes import check_indexable, write_index
from featurecache.images.samples import items_of
from featurecache.storage import durable
from featurecache.storage.output_files import check_output


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index that was written. Samples that can't be read are listed here instead of in it."""

    path: str
    rows: int
    unreadable: list[dict[str, str]]


def index(data: DataSource = "data", *, out: str | Path, progress: ProgressOption = False) -> Index:
    """Write the dataset at `data` as a Parquet file: ids, labels, splits, groups, paths, and the
    SHA-256 of each image's bytes, which `--data FILE.parquet` then need not hash again. Raises
    BadInput.
    """
    progress = resolve_progress(progress)
    path = Path(out)
    if path.suffix != ".parquet":
        raise BadInput(f"{out}: the name of an index must end in .parquet")
    check_output(path)
    dataset = open_dataset(data)
    check_indexable(dataset.samples)
    if dataset.generated:
        raise BadInput(
            f"{dataset.generated[0]}: an index does not say what the generator of these images "
            "saw; give the folder itself as --data"
        )
    items, unreadable = items_of(dataset.samples, progress, use_memos=False)
    durable.sweep(path.absolute().parent)
    with durable.temporary_file(path) as temporary, durable.errors_about(path):
        rows = write_index(path, dataset.samples, items, dataset.classes, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        durable.sync_folder(path.absolute().parent)
    return Index(
        path=str(path),
        rows=rows,
        unreadable=[{"path": p, "reason": r} for p, r in unreadable.items()],
    )
