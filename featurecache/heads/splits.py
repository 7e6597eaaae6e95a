"""Which rows are for training and which are held out: splits are made on items, before views
(law 8, "Views of one image never straddle a split")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.heads.group_splits import split_groups
from featurecache.heads.schedules import Schedule
from featurecache.items import Lookup, group_numbers
from featurecache.text import counted

Labels = npt.NDArray[np.int64]  # (N,)
Items = npt.NDArray[np.uint8]  # (N, 32), SHA-256 of the encoded images
Index = npt.NDArray[np.int64]  # (K,), row numbers


def split_items(
    items: Items,
    labels: Labels,
    schedule: Schedule,
    classes: Sequence[str],
    groups: Sequence[str] = (),
) -> list[tuple[Index, Index]]:
    """Train and validation row numbers: one pair for a fraction, K pairs for K folds.

    Rows with the same item are on the same side (law 8). The distinct items are split, sorted by
    their bytes, stratified by label and seeded by `schedule.seed`, so the order of the rows does
    not matter. An item with several labels counts for the smallest. `items` (N, 32) and `labels`
    (N,) in 0..C-1 describe the same rows; `classes` are the C names.

    With `groups`, the N names of groups ("" for none), rows of a group are on the same side too.

    Raises BadInput if a class has too few distinct images to be on both sides.
    """
    check_rows(items, labels, classes)
    if any(groups):
        order = np.argsort(_as_keys(items), kind="stable")
        numbers = group_numbers(items, groups)
        pairs = split_groups(numbers[order], labels[order], schedule, classes)
        return [(np.sort(order[train]), np.sort(order[val])) for train, val in pairs]
    distinct, inverse = np.unique(_as_keys(items), return_inverse=True)
    strata = np.full(len(distinct), len(classes), dtype=np.int64)
    np.minimum.at(strata, inverse, labels)
    counts = np.bincount(strata, minlength=len(classes))
    fraction, folds = schedule.validation.fraction, schedule.validation.folds
    needed = folds if folds is not None else 2
    for name, count in zip(classes, counts, strict=True):
        if 0 < count < needed:
            raise BadInput(
                f"class {name!r} has {counted(count, 'distinct image')}, but this validation needs "
                f"at least {needed} in every class; add images, remove the class, or validate with "
                + ("fewer folds" if count > 1 else "a split of the dataset")
            )
    indices = np.arange(len(distinct))
    if folds is not None:
        from sklearn.model_selection import StratifiedKFold

        cut = StratifiedKFold(folds, shuffle=True, random_state=schedule.seed)
        pairs = list(cut.split(indices, strata))
    elif fraction is not None:
        from sklearn.model_selection import train_test_split

        check_fraction(fraction, len(distinct), int((counts > 0).sum()))
        pairs = [
            train_test_split(
                indices, test_size=fraction, stratify=strata, random_state=schedule.seed
            )
        ]
    else:
        raise BadInput("validation with a split of the dataset needs its rows: pass `pairs`")
    return [
        (np.flatnonzero(np.isin(inverse, train)), np.flatnonzero(np.isin(inverse, val)))
        for train, val in pairs
    ]


def check_fraction(fraction: float, images: int, present: int) -> None:
    """Raise BadInput if a held-out fraction of so many distinct images, or the rest of them, has
    fewer images than there are classes `present`."""
    held_out = int(np.ceil(fraction * images))  # as scikit-learn rounds it
    if min(held_out, images - held_out) < present:
        raise BadInput(
            f"validation.fraction {fraction} of {images} distinct images leaves one side with "
            f"fewer images than the {present} classes; add images or use a fraction nearer 0.5"
        )


def drop_shared(items: Items, train_idx: Index, val_idx: Index) -> Index:
    """`train_idx` without the rows whose item is also a validation item (law 8)."""
    are_shared = Lookup(items[val_idx]).holds(items[train_idx])
    train_rows: Index = train_idx[~are_shared]
    return train_rows


def checked_pairs(
    pairs: Sequence[tuple[Index, Index]],
    items: Items,
    labels: Labels,
    schedule: Schedule,
    classes: Sequence[str],
    copies: Mapping[int, int] = MappingProxyType({}),
) -> list[tuple[Index, Index]]:
    """The pairs without training rows whose item is also a validation item (law 8).

    `copies` maps labels to the number of training images already dropped for the same reason.
    Raises BadInput if a side is empty, or if a class has validation rows but no training rows.
    """
    checked = []
    for fold, (train_idx, val_idx) in enumerate(pairs, 1):
        train_rows = drop_shared(items, train_idx, val_idx)
        dropped = len(train_idx) - len(train_rows)
        if len(train_rows) == 0 or len(val_idx) == 0:
            side = "training" if len(train_rows) == 0 else "validation"
            shared = dropped + sum(copies.values())
            if len(train_rows) == 0 and shared:
                raise BadInput(
                    f"fold {fold}: there are no training rows: all {shared} training images are "
                    "copies of held-out images; add others"
                )
            raise BadInput(
                f"fold {fold}: there are no {side} rows; see `validation` in the schedule"
            )
        if len(train_rows) == 1 and schedule.head.norm == "batch" and schedule.head.hidden:
            raise BadInput(f"fold {fold}: batch norm needs more than one training row")
        unseen = np.setdiff1d(labels[val_idx], labels[train_rows])
        if len(unseen) > 0:
            label = int(unseen[0])
            shared = int((labels[train_idx] == label).sum()) + copies.get(label, 0)
            raise BadInput(f"fold {fold}: class {classes[label]!r} {_why_unseen(shared)}")
        checked.append((train_rows, val_idx))
    return checked


def _why_unseen(copies: int) -> str:
    if copies:
        return (
            f"has validation images but no training images: {counted(copies, 'training image')} "
            "of it are left out as copies of held-out images; add other training images, or "
            "remove the copies from the other split"
        )
    return "has validation images but no training images; add training images or remove the class"


def check_rows(items: Items, labels: Labels, classes: Sequence[str]) -> None:
    if items.ndim != 2 or items.shape[1] != 32 or items.dtype != np.uint8:
        raise BadInput(f"items must be (N, 32) uint8, not {items.shape} {items.dtype}")
    if labels.shape != (len(items),):
        raise BadInput(f"expected {len(items)} labels, one per item, not {labels.shape}")
    if len(labels) == 0:
        raise BadInput("there are no rows to train on")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise BadInput(f"labels must be in 0..{len(classes) - 1}, the indexes of the class names")
    if len(set(classes)) != len(classes):
        raise BadInput("two classes have the same name")


def _as_keys(items: Items) -> npt.NDArray[np.void]:
    """Items (N, 32) as N opaque values that compare byte by byte."""
    return np.ascontiguousarray(items).view("V32").ravel()
