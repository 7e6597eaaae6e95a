"""The training data of heads: vectors with labels and items, and their division into folds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.heads.drawn import Drawn
from featurecache.heads.schedules import Schedule
from featurecache.heads.splits import Index, Items, Labels, check_rows, checked_pairs, split_items
from featurecache.heads.streams import Stream
from featurecache.items import group_numbers

if TYPE_CHECKING:
    from featurecache.heads.epochs import Job

Vectors = npt.NDArray[np.float32] | Stream | Drawn  # (N, D)

_ROWS = 1 << 16  # that are checked at a time


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """N images to train heads on; row i of every array is one image.

    `vectors` maps each view to an array (N, D), or to a Stream, from which minibatches are drawn in
    windows (streams.py): in another order, so `identity` must include the size of a window. Drawn
    vectors are made for each fold, and perhaps for each epoch.
    `labels` (N,) are in 0..C-1 for the C `classes`; `items` is (N, 32) uint8. `identity` identifies
    the vectors, which are not hashed here; the keys of their spaces do, for example. `pairs` are
    the (training, validation) row numbers for `validation: {split: ...}`; None means that
    `split_items` makes them by the schedule. With `is_final` the validation rows may be training
    rows too: the head is trained on all of them, and its validation measures nothing. `groups` are
    the names of the rows' groups, which splits keep whole; "" is none.
    """

    vectors: Mapping[str, Vectors]
    labels: Labels
    items: Items
    classes: Sequence[str]
    identity: str
    pairs: Sequence[tuple[Index, Index]] | None = None
    is_final: bool = False
    groups: Sequence[str] = ()

    def group_numbers(self, rows: Index) -> Index | None:
        """A number for each of these rows, the same for a group and for copies of an image; None
        without groups."""
        if not any(self.groups):
            return None
        return group_numbers(self.items[rows], [self.groups[row] for row in rows])

    def folds(self, schedule: Schedule) -> list[tuple[Index, Index]]:
        """The training and validation row numbers of each fold. Training rows whose item is also a
        validation item are dropped (law 8, "Views of one image never straddle a split").

        Raises BadInput for arrays, labels or classes that do not fit each other or the schedule.
        """
        check_rows(self.items, self.labels, self.classes)
        self._check_vectors(schedule)
        pairs = self.pairs
        if pairs is None:
            pairs = split_items(self.items, self.labels, schedule, self.classes, self.groups)
        if self.is_final:
            return list(pairs)
        pairs = checked_pairs(pairs, self.items, self.labels, schedule, self.classes)
        for train_rows, _ in pairs:
            schedule.check_fits(self.classes, len(train_rows), self.width(schedule))
        return pairs

    def width(self, schedule: Schedule) -> int:
        """D, the numbers per vector."""
        return int(self.vectors[schedule.validation.view].shape[1])

    def _check_vectors(self, schedule: Schedule) -> None:
        rows = len(self.labels)
        for view in schedule.views():
            if view not in self.vectors:
                raise BadInput(
                    f"the schedule names the view {view!r}, but there are no vectors of it"
                )
            array = self.vectors[view]
            if array.ndim != 2 or len(array) != rows or array.shape[1] == 0:
                raise BadInput(f"view {view!r}: expected vectors ({rows}, D), not {array.shape}")
            if array.shape != self.vectors[schedule.views()[0]].shape:
                raise BadInput(
                    f"view {view!r}: its vectors differ in width from those of the first view"
                )
            parts = (array[start : start + _ROWS] for start in range(0, rows, _ROWS))
            if not all(np.isfinite(part).all() for part in parts):
                raise BadInput(f"view {view!r}: the vectors hold NaN or infinity")

    def group_identity(
        self,
        group: Sequence[Job],
        pairs: Sequence[tuple[Index, Index]],
        schedule: Schedule,
        device: str,
    ) -> str:
        """The hash of everything that determines the results of a group of networks."""
        rows = hashlib.sha256()
        for number in dict.fromkeys(job.fold.number for job in group):
            for side in pairs[number - 1]:
                for array in (self.labels[side], self.items[side]):
                    rows.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return keys.digest(
            {
                "vectors": self.identity,
                "schedule": schedule.model_dump(mode="json"),
                "classes": list(self.classes),
                "rows": rows.hexdigest(),
                "networks": [[job.fold.number, asdict(job.member)] for job in group],
                "device": device,
            }
        )
