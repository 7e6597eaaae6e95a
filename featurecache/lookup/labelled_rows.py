"""The labelled rows of a dataset that a training or an evaluation uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.images.datasets import Dataset
from featurecache.images.samples import Sample, items_of
from featurecache.text import counted


class LabelledRow(NamedTuple):
    """A labelled image to train or evaluate on."""

    item: bytes
    label: int
    split: str
    id: str
    group: str = ""
    origin: str = ""  # the dataset of generated images that it is of


class TrainingRows(NamedTuple):
    """The rows that a training uses. `notes` report omissions and oddities, one sentence each.
    `copies` counts by label the training images omitted because they are copies of held-out ones.
    """

    rows: list[LabelledRow]
    notes: list[str]
    copies: Counter[int]


def items_by_split(
    dataset: Dataset, splits: Iterable[str], progress: Progress = silent
) -> Iterator[tuple[Sample, bytes | None]]:
    """The samples of these splits with their items. With an index no image is opened."""
    for split in splits:
        samples = dataset.split(split)
        yield from zip(samples, items_of(samples, progress)[0], strict=True)


def labelled_rows(
    dataset: Dataset, splits: Sequence[str], progress: Progress = silent
) -> list[LabelledRow]:
    """The rows of these splits that can be read. Raises BadInput for an unlabelled split."""
    for split in splits:
        if any(sample.label is None for sample in dataset.split(split)):
            hint = "use another split" if dataset.classes else "no image of it has any"
            raise BadInput(f"split {split!r} of {dataset.root} has no labels; {hint}")
    return [
        LabelledRow(item, sample.label, sample.split, sample.id, sample.group, sample.origin)
        for sample, item in items_by_split(dataset, splits, progress)
        if item is not None and sample.label is not None
    ]


def decodable(rows: Sequence[LabelledRow], spaces: Iterable[Space]) -> list[LabelledRow]:
    """The rows that have a vector in each of these spaces. Raises BadInput if there are none."""
    bad: dict[bytes, str] = {}
    for space in spaces:
        bad |= space.failures(row.item for row in rows)
    decoded = [row for row in rows if row.item not in bad]
    if rows and not decoded:
        first = f"{rows[0].id}: {bad[rows[0].item]}"
        raise BadInput(
            f"none of the {counted(len(rows), 'image')} could be decoded; the first: {first}"
        )
    if not decoded:
        raise BadInput("none of the images can be read")
    return decoded


def rows_digest(rows: Sequence[LabelledRow]) -> str:
    """The hash of items, labels, splits and groups that a run's record holds."""
    return keys.digest(
        [[row.item.hex(), row.label, row.split, *filter(None, [row.group])] for row in rows]
    )


def training_rows(
    dataset: Dataset,
    splits: Sequence[str],
    rows: Sequence[LabelledRow],
    spaces: Sequence[Space],
    progress: Progress = silent,
    validation_spaces: Sequence[Space] | None = None,
) -> TrainingRows:
    """The subset of the `labelled_rows` of these splits that a training on `spaces` uses. Images of
    a split other than train are only read in the `validation_spaces`, by default in all.

    An image that is also in a split other than train, used here or not, is never trained on
    (law 8, "Views of one image never straddle a split").
    """
    notes = []
    judged = spaces if validation_spaces is None else validation_spaces
    parts = (
        ([row for row in rows if row.split == "train"], spaces),
        ([row for row in rows if row.split != "train"], judged),
    )
    decoded = [row for part, used in parts if part for row in decodable(part, used)]
    lost = sum(len(dataset.split(split)) for split in splits) - len(decoded)
    if lost:
        notes.append(f"left out {counted(lost, 'image')} that could not be read or decoded")
    others = [split for split in dataset.splits if split != "train"]
    held_out = {item for _, item in items_by_split(dataset, others, progress)}
    train_rows = [row for row in decoded if row.split != "train" or row.item not in held_out]
    copies = Counter(row.label for row in decoded if row.split == "train" and row.item in held_out)
    if shared := copies.total():
        notes.append(
            f"left out {counted(shared, 'training image')} that another split also contains"
        )
    held_out_groups: set[str] = set()
    if any(row.group for row in rows):
        held_out_groups = {s.group for split in others for s in dataset.split(split) if s.group}
    if straddling := {r.group for r in train_rows if r.split == "train"} & held_out_groups:
        before = train_rows
        train_rows = [r for r in before if r.split != "train" or r.group not in straddling]
        notes.append(
            f"left out {counted(len(before) - len(train_rows), 'training image')} of "
            f"{counted(len(straddling), 'group')} that another split also contains"
        )
    labels = Counter(item for item, _ in {(row.item, row.label) for row in train_rows})
    contradicting = sum(count > 1 for count in labels.values())
    if contradicting:
        several = "1 image has" if contradicting == 1 else f"{contradicting:,} images have"
        notes.append(f"{several} more than one class")
    return TrainingRows(train_rows, notes, copies)
