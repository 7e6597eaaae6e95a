"""What a fill has done so far, and its progress line."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from featurecache.executors import Progress
from featurecache.filling.shard_plan import Shard
from featurecache.images.datasets import Dataset
from featurecache.text import counted

MAX_LISTED = 3  # machines listed in the progress line


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The outcome of a shard. It is small, since it may come from another machine."""

    rows: int  # computed and committed by this worker
    hits: int  # rows that others have committed in the meantime
    busy: Shard | None  # the part that others have claimed
    spent: dict[str, float]  # part of the work -> seconds
    least_cosine: dict[str, float] = field(default_factory=dict)  # backbone -> cosine to f32
    changed: dict[str, str] = field(default_factory=dict)  # sample id -> why it has no rows


class Tally:
    """The state of a fill, reported to its Progress."""

    def __init__(self, what: str, total: int, hits: int, progress: Progress) -> None:
        self.computed = 0
        self.hits = hits
        self.spent: collections.Counter[str] = collections.Counter()
        self.least_cosine: dict[str, float] = {}
        self.changed: dict[str, str] = {}
        self._what = what
        self._total = total
        self._progress = progress
        self._shares: collections.Counter[str] = collections.Counter()  # machine -> rows
        self._lost = 0

    def add_rows(self, count: int, machine: str = "") -> None:
        self.computed += count
        self._shares[machine] += count
        self.show()

    def add_shard(self, result: ShardResult) -> None:
        self.hits += result.hits
        self._total -= result.hits
        self.spent.update(result.spent)
        self.least_cosine = {**result.least_cosine, **self.least_cosine}
        self.changed |= result.changed
        self.show()

    def add_lost_worker(self, reason: str) -> None:
        self._lost += 1
        self.show(reason)

    def show(self, note: str = "") -> None:
        parts = [f"{self.hits:,} hits"]
        parts += [f"bound by {self.bound}"] if self.spent and self.computed else []
        if any(self._shares.keys()):
            first = self._shares.most_common(MAX_LISTED)
            shares = [f"{machine} {count / max(self.computed, 1):.0%}" for machine, count in first]
            unlisted = len(self._shares) - len(first)
            parts.append(", ".join(shares) + (f" and {unlisted} more" if unlisted else ""))
        if self._lost:
            parts.append(f"{counted(self._lost, 'worker')} lost")
        parts += [note] if note else []
        self._progress(self.computed, self._total, f"{self._what} ({'; '.join(parts)})")

    def failures(self) -> list[dict[str, str]]:
        """`{path, reason}` of the images that were removed or edited after they were listed. Their
        new bytes are unknown, so none of their rows is committed; the next run computes them."""
        return [{"path": path, "reason": reason} for path, reason in sorted(self.changed.items())]

    def notes(self, dataset: Dataset) -> list[str]:
        """Advice about changed images."""
        if not self.changed:
            return []
        images = counted(len(self.changed), "image")
        if dataset.layout == "index":
            return [f"the index {dataset.root} is older than {images} in it; make the index again"]
        return [f"{images} removed or edited during the work; rerun the command"]

    @property
    def bound(self) -> str:
        """The part of the work that took most of the waiting; for pictures, the slower step."""
        part = max(("network", "disk", "pictures"), key=lambda part: self.spent[part])
        if part == "pictures":
            return max(("decode", "augment"), key=lambda part: self.spent[part])
        return part
