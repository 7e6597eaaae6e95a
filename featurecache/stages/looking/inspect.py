"""`featurecache inspect`: the content of a dataset, and its images that can't be decoded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.decode import Undecodable, decode
from featurecache.images.depth import used_bits
from featurecache.images.layouts.folder_layouts import FOLDER_LAYOUTS
from featurecache.images.layouts.unread import unread_pictures
from featurecache.images.samples import Sample
from featurecache.text import counted, reason_of

_THREADS = 8  # reading waits for disks, and Pillow releases the GIL while it decodes
_MAX_LOW_BITS = 14  # of sensors whose cameras store 16 bits
_SLICE = 64  # images between two progress reports


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split. `counts` maps class names to images, including zeros; empty if unlabelled."""

    images: int
    labelled: int
    classes: int
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes in pixels after EXIF orientation. `common_count` images have the most common size,
    `common` = (width, height).

    Minima and maxima of widths and heights are independent. If two sizes are equally common,
    `common` is the smaller.
    """

    width_min: int
    width_max: int
    height_min: int
    height_max: int
    common: tuple[int, int]
    common_count: int


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that can't be read or decoded: its id and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of `inspect`; `dataclasses.asdict` of it can be written as JSON.

    `bytes` is the total encoded size, and `duplicates` the number of images that repeat the bytes
    of another. `sizes` is None if no image could be decoded. `notes` report files that look like
    part of the dataset but are not used.
    """

    root: str
    layout: str
    images: int
    classes: int
    words: dict[str, str]
    splits: dict[str, Split]
    sizes: Sizes | None
    bytes: int
    duplicates: int
    unreadable: list[Unreadable]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The facts about one image: the reason why it is bad, or its (width, height)."""

    item: bytes | None = None
    length: int = 0
    size: tuple[int, int] | None = None
    reason: str = ""
    bits: int | None = None  # used, of 16


def inspect(data: DataSource = "data", *, progress: ProgressOption = False) -> Inspection:
    """Read and decode every image of the dataset at `data`; nothing is written.

    Raises BadInput if `data` is not a dataset. Bad images are listed in `unreadable`.
    """
    progress = resolve_progress(progress)
    dataset = open_dataset(data)
    samples = dataset.samples

    outcomes: list[_Seen] = []
    slices = [samples[start : start + _SLICE] for start in range(0, len(samples), _SLICE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(lambda part: [*map(_look_at, part)], slices):
            outcomes += part
            progress(len(outcomes), len(samples), "inspect")

    sizes = Counter(outcome.size for outcome in outcomes if outcome.size is not None)
    items = [outcome.item for outcome in outcomes if outcome.item is not None]
    return Inspection(
        root=dataset.root,
        layout=dataset.layout,
        images=len(samples),
        classes=len(dataset.classes),
        words=dict(dataset.words),
        splits={name: _split(dataset.split(name), dataset.classes) for name in dataset.splits},
        sizes=_sizes(sizes) if sizes else None,
        bytes=sum(outcome.length for outcome in outcomes),
        duplicates=len(items) - len(set(items)),
        unreadable=[
            Unreadable(path=sample.id, reason=outcome.reason)
            for sample, outcome in zip(samples, outcomes, strict=True)
            if outcome.reason
        ],
        notes=[
            *dataset.notes,
            *_unread_notes(dataset),
            *_depth_notes([outcome.bits for outcome in outcomes if outcome.bits is not None]),
        ],
    )


def _depth_notes(bits: Sequence[int]) -> list[str]:
    low = [used for used in bits if used <= _MAX_LOW_BITS]
    if not low:
        return []
    return [
        f"{len(low):,} of {counted(len(bits), '16-bit image')} use only their lowest {max(low)} "
        f"bits and appear nearly black; multiply their values by {2 ** (16 - max(low))}"
    ]


def _unread_notes(dataset: Dataset) -> list[str]:
    if dataset.layout not in FOLDER_LAYOUTS or not Path(dataset.root).is_dir():
        return []
    counts = unread_pictures(dataset.root).items()
    return [
        f"ignored {counted(count, 'picture')} "
        f"{f'with suffix {suffix}' if suffix else 'without a suffix'}; convert or rename "
        f"{'it' if count == 1 else 'them'}"
        for suffix, count in counts
    ]


def _look_at(sample: Sample) -> _Seen:
    try:
        data = sample.read()
    except OSError as error:
        return _Seen(reason=reason_of(error))
    item = hashlib.sha256(data).digest()
    try:
        pixels = decode(data)
    except Undecodable as error:
        return _Seen(item=item, length=len(data), reason=str(error))
    height, width, _ = pixels.shape
    return _Seen(item=item, length=len(data), size=(width, height), bits=used_bits(data, pixels))


def _split(samples: Sequence[Sample], classes: Sequence[str]) -> Split:
    number = Counter(sample.label for sample in samples if sample.label is not None)
    counts = {name: number[label] for label, name in enumerate(classes)} if number else {}
    return Split(images=len(samples), labelled=number.total(), classes=len(number), counts=counts)


def _sizes(sizes: Counter[tuple[int, int]]) -> Sizes:
    widths, heights = zip(*sizes, strict=True)
    common = min(sizes, key=lambda size: (-sizes[size], size))
    return Sizes(
        width_min=min(widths),
        width_max=max(widths),
        height_min=min(heights),
        height_max=max(heights),
        common=common,
        common_count=sizes[common],
    )
