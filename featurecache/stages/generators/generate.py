"""Write a dataset of images that a generator makes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.executors.pool import checked_workers, ordered
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.generator_files import (
    INDEX,
    GeneratedDataset,
    check_shards,
    damaged_dataset,
    read_generated,
)
from featurecache.json_files import read_file
from featurecache.runs.generated_images import Sampler, find_sampler
from featurecache.runs.generator_items import VERSION
from featurecache.runs.record import make_folder
from featurecache.seen_items import items_of_dataset, items_of_generator
from featurecache.storage import durable, locks

_MAX_SHARD = 4 << 30  # bytes


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A dataset of generated images. `weights` is the digest of the generator's tensors, `items`
    the root hash of the images that it was fitted on, and `root` that of the shards."""

    out: str
    images: int
    classes: int
    shards: int
    weights: str
    items: str
    root: str


def generate(
    generator: str | Path,
    *,
    out: str | Path,
    per_class: int = 500,
    runs: str | Path = "runs",
    workers: int | None = None,
    progress: ProgressOption = False,
) -> Generated:
    """Write a dataset of `per_class` images of each class that a sampler was fitted on
    (docs/generators.md).

    `generator` is a run of `fit_generator`, or the folder of one of its folds. The folder `out`
    appears when it is complete; a killed command resumes with the next shard. The images are the
    same bytes each time, and the first ones of a larger dataset. Raises BadInput before any work
    for another kind of generator, or if `out` exists and holds something else.
    """
    progress = resolve_progress(progress)
    workers = checked_workers(workers)
    if per_class < 1:
        raise BadInput(f"--per-class {per_class}: must be 1 or more")
    sampler = find_sampler(generator, runs)
    described = sampler.described
    seen = items_of_generator(sampler.folder)
    folder = Path(out)
    total = per_class * len(described.classes)
    size = sampler.images_per_shard
    positions = {
        f"train-{number:05}.tar": range(first, min(first + size, total))
        for number, first in enumerate(range(0, total, size))
    }
    if folder.exists():
        return _result(folder, _existing(folder, sampler, per_class))
    # Hidden until it is complete, and named after all that determines its bytes.
    identity = keys.digest([described.model_dump(mode="json"), VERSION, per_class])
    work = folder.absolute().with_name(f".{folder.name}.{identity[:16]}")
    make_folder(work.parent)
    with locks.claimed(
        work.with_name(f".{folder.name}.lock"),  # whatever is written into `folder`
        lambda holder: progress(0, total, f"generate (waiting for {holder})"),
    ):
        if folder.exists():  # the process that held the lock made it
            return _result(folder, _existing(folder, sampler, per_class))
        make_folder(work)
        todo = [name for name in positions if not (work / name).is_file()]
        done = total - sum(len(positions[name]) for name in todo)
        progress(done, total, "generate")
        tasks = ((per_class, positions[name]) for name in todo)
        for name, shard in zip(todo, ordered(_shard, sampler, tasks, workers), strict=True):
            durable.replace(work / name, shard)
            done += len(positions[name])
            progress(done, total, "generate")
        shards = {name: _hash(work / name) for name in positions}
        index = GeneratedDataset(
            generator=described,
            version=VERSION,
            per_class=per_class,
            shards=shards,
            root=keys.digest(shards),
        )
        seen.save(work)
        durable.replace(work / INDEX, index.model_dump_json(indent=1).encode() + b"\n")
        work.rename(folder)
        durable.sync_folder(folder.absolute().parent)
    return _result(folder, index)


def check_folder(folder: Path) -> None:
    """Raise BadInput for a folder that holds something else than a dataset of `generate`."""
    if folder.exists() and not (folder / INDEX).is_file():
        raise BadInput(f"{folder}: exists, and is no dataset of generate; choose another --out")


def _shard(sampler: Sampler, task: tuple[int, range]) -> bytes:
    return sampler.shard(*task)


def _hash(path: Path) -> str:
    return hashlib.sha256(read_file(path, _MAX_SHARD, damaged_dataset)).hexdigest()


def _existing(folder: Path, sampler: Sampler, per_class: int) -> GeneratedDataset:
    """The index of a folder that holds this very dataset. Raises BadInput for any other."""
    check_folder(folder)
    index = read_generated(folder)
    made_by = index.generator, index.version, index.per_class
    if made_by != (sampler.described, VERSION, per_class):
        raise BadInput(
            f"{folder}: holds {index.per_class:,} images per class of {index.generator.generator} "
            f"{index.generator.weights[:16]}, not what this command makes; choose another --out"
        )
    items_of_dataset(folder)  # raises if they are missing or others
    check_shards(folder)
    for name, digest in index.shards.items():
        if _hash(folder / name) != digest:
            raise damaged_dataset(folder / name, f"not the shard that {INDEX} describes")
    return index


def _result(folder: Path, index: GeneratedDataset) -> Generated:
    classes = len(index.generator.classes)
    return Generated(
        out=str(folder),
        images=index.per_class * classes,
        classes=classes,
        shards=len(index.shards),
        weights=index.generator.weights,
        items=index.generator.items,
        root=index.root,
    )
