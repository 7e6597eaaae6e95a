"""What a fill has done so far, and its progress line."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from featurecache.executors import Progress
from featurecache.filling.shard_plan import Shard
from featurecache.images.datasets import Dataset

MAX_LISTED = 3  # machines whose share progress shows, and failed shards that an error does


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard. Small, since it may come from another machine."""

    rows: int  # computed here, and committed
    found: int  # committed by others meanwhile
    left: Shard | None  # what others are at
    spent: dict[str, float]  # seconds by part
    least_cosine: dict[str, float] = field(default_factory=dict)  # featurize's
    changed: dict[str, str] = field(default_factory=dict)  # sample id -> why its rows can't be made


class Tally:
    """What a run has done so far, and its progress."""

    def __init__(self, what: str, total: int, hits: int, progress: Progress) -> None:
        self.computed = 0
        self.hits = hits
        self.spent: collections.Counter[str] = collections.Counter()
        self.least_cosine: dict[str, float] = {}
        self.changed: dict[str, str] = {}
        self._what = what
        self._total = total
        self._progress = progress
        self._shares: collections.Counter[str] = collections.Counter()  # rows made by each place
        self._lost = 0

    def rows(self, count: int, place: str = "") -> None:
        self.computed += count
        self._shares[place] += count
        self.show()

    def done(self, done: ShardResult) -> None:
        self.hits += done.found
        self._total -= done.found
        self.spent.update(done.spent)
        self.least_cosine = {**done.least_cosine, **self.least_cosine}
        self.changed |= done.changed
        self.show()

    def lost(self, why: str) -> None:
        self._lost += 1
        self.show(why)

    def show(self, note: str = "") -> None:
        said = [f"{self.hits:,} hits"]
        said += [f"bound by {self.bound}"] if self.spent and self.computed else []
        if any(self._shares.keys()):
            first = self._shares.most_common(MAX_LISTED)
            shares = [f"{place} {count / max(self.computed, 1):.0%}" for place, count in first]
            more = len(self._shares) - len(first)
            said.append(", ".join(shares) + (f" and {more} more" if more else ""))
        if self._lost:
            said.append(f"{self._lost} workers lost")
        said += [note] if note else []
        self._progress(self.computed, self._total, f"{self._what} ({'; '.join(said)})")

    def failures(self) -> list[dict[str, str]]:
        """`{path, reason}` of the images that were removed or edited since they were listed. Their
        bytes are unknown, so nothing of them is committed: a later run takes them up."""
        return [{"path": path, "reason": why} for path, why in sorted(self.changed.items())]

    def notes(self, dataset: Dataset) -> list[str]:
        """What to do about them."""
        if not self.changed:
            return []
        if dataset.layout == "index":
            return [
                f"the index {dataset.root} is older than {len(self.changed):,} of its images; run "
                "`featurecache index` again"
            ]
        return [
            f"{len(self.changed):,} images were removed or edited while the work ran; run again"
        ]

    @property
    def bound(self) -> str:
        """What was waited for most; of pictures, what takes the most of making them."""
        part = max(("network", "disk", "pictures"), key=lambda part: self.spent[part])
        if part == "pictures":
            return max(("decode", "augment"), key=lambda part: self.spent[part])
        return part
