"""Folds and parts that keep groups whole: all images of a patient, a camera or a slide are on one
side. Copies of an image join the groups that they are in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.heads.schedules import Schedule

Index = npt.NDArray[np.int64]


def group_parts(groups: Index, labels: Index, parts: int) -> Index:
    """(N,) the number of the part that each row is in, of at most `parts` with about the same share
    of each class. The last part is never empty. Raises BadInput if all rows are of one group."""
    count = min(parts, len(np.unique(groups)), int(np.bincount(labels).max()))
    if count < 2:
        raise BadInput(
            "all training images are of one group, so none can be held out to choose a head on; "
            "add groups, leave --group-column out, or give a --schedule"
        )
    numbers = np.empty(len(groups), np.int64)
    for number, (_, rows) in enumerate(_folds(groups, labels, count, 0), start=parts - count):
        numbers[rows] = number
    return numbers


def split_groups(
    groups: Index, labels: Index, schedule: Schedule, classes: Sequence[str]
) -> list[tuple[Index, Index]]:
    """Training and validation row numbers, as split_items gives them; rows with the same number in
    `groups` (N,) are on the same side.

    The groups are assigned so that each side has about the share of each class that all rows have
    (scikit-learn's StratifiedGroupKFold); a fraction is one of 1 / fraction such folds. Raises
    BadInput if a class is in too few groups to be on both sides.
    """
    fraction, folds = schedule.validation.fraction, schedule.validation.folds
    if folds is None:
        if fraction is None:
            raise BadInput("validation with a split of the dataset needs its rows: pass `pairs`")
        folds = max(2, round(1 / fraction))
        needed = 2
    else:
        needed = folds
    for label, name in enumerate(classes):
        count = len(np.unique(groups[labels == label]))
        if 0 < count < needed:
            raise BadInput(
                f"class {name!r} has images of {count} groups, but this validation needs at least "
                f"{needed} in every class; add groups, use fewer folds, or validate with a split "
                "of the dataset"
            )
    folds = min(folds, len(np.unique(groups)))
    pairs = _folds(groups, labels, folds, schedule.seed)
    if schedule.validation.folds is not None:
        return pairs
    # The fold whose size is nearest to the fraction, of those that leave each class on both sides.
    present = len(np.unique(labels))
    both = [pair for pair in pairs if all(len(np.unique(labels[side])) == present for side in pair)]
    if not both:
        raise BadInput(
            f"no part of {fraction} of the images keeps groups whole and has every class on both "
            "sides; use another fraction or validate with a split of the dataset"
        )
    wanted = len(labels) * float(fraction or 0)
    return [min(both, key=lambda pair: abs(len(pair[1]) - wanted))]


def _folds(groups: Index, labels: Index, count: int, seed: int) -> list[tuple[Index, Index]]:
    """The training and validation row numbers of stratified folds that keep groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold

    cut = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds is a warning, and missing from some validations.
        warnings.simplefilter("ignore", UserWarning)
        return list(cut.split(np.zeros(len(groups)), labels, groups))
