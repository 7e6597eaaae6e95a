"""How much each way of training gains over training on clean images.

The comparison is with clean training under the same learning-rate schedule and under the schedule
that suits clean images best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from featurecache import text
from featurecache.study.paired import Difference, Right, by_class, difference

CLEAN = "clean"
WRITTEN, SHUFFLED = "written", "shuffled"
_MAX_CLASSES = 3  # listed in each of `gained` and `lost`


class Way(NamedTuple):
    """A way of training: its policy (CLEAN, a policy, or several joined by +), the order of its
    phases, and its learning-rate schedule."""

    policy: str
    order: str
    lr_schedule: str

    def __str__(self) -> str:
        order = "" if self.order == WRITTEN else f" {self.order}"
        return f"{self.policy}{order} under {self.lr_schedule}"


# How much a class changed; `class` is a keyword of Python, `name` its readable name.
ClassChange = TypedDict("ClassChange", {"class": str, "name": str, "n": int, "difference": float})


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The result of a way of training, by top-1 on the validation images.

    A comparison that does not apply to the way is None. `gained` and `lost` are the classes that
    changed most against clean: {class, name, n, difference}. `views` are the views it was trained
    on, `seconds` the training time, and `views_seconds` the time to compute the views other than
    `none`.
    """

    policy: str
    order: str
    lr_schedule: str
    top1: float  # mean over the seeds
    of_seeds: list[float]  # top-1 of each seed
    best: bool  # no other way has a higher top1
    against_clean: Difference | None  # under the same learning-rate schedule
    against_best_clean: Difference | None  # under the one that is best for clean images
    against_shuffled: Difference | None  # the same phases in another order
    against_best: Difference | None
    gained: list[ClassChange]
    lost: list[ClassChange]
    views: list[str] = field(default_factory=list)
    seconds: float = 0.0
    views_seconds: float = 0.0


def gains(
    rights: Mapping[Way, Right],
    labels: npt.NDArray[np.integer[Any]],
    classes: Sequence[str],
    words: Mapping[str, str],
) -> list[Gain]:
    """The gain of every way, in the order of `rights`.

    `rights` maps each way to (S, N) bool, for the same S seeds and N images in every way. `labels`
    (N,) are the labels of the images. `rights` must have a clean way under every learning-rate
    schedule. `words` are readable names of classes.
    """
    best = _best(list(rights), rights)
    best_clean = _best([way for way in rights if way.policy == CLEAN], rights)

    def against(way: Way, baseline: Way) -> Difference | None:
        return (
            difference(rights[way], rights[baseline])
            if way != baseline and baseline in rights
            else None
        )

    results = []
    for way, right in rights.items():
        clean_way = Way(CLEAN, WRITTEN, way.lr_schedule)
        changed: list[ClassChange] = [
            {
                "class": row["class"],
                "name": text.readable_name(row["class"], words),
                "n": row["n"],
                "difference": row["difference"],
            }
            for row in (
                by_class(right, rights[clean_way], labels, classes) if way != clean_way else []
            )
        ]
        results.append(
            Gain(
                **way._asdict(),
                top1=float(right.mean()),
                of_seeds=[float(top1) for top1 in right.mean(1)],
                best=way == best,
                against_clean=against(way, clean_way),
                against_best_clean=against(way, best_clean),
                against_shuffled=against(way, way._replace(order=SHUFFLED)),
                against_best=against(way, best),
                gained=[row for row in changed if row["difference"] > 0][:_MAX_CLASSES],
                lost=[row for row in changed[::-1] if row["difference"] < 0][:_MAX_CLASSES],
            )
        )
    return results


def _best(ways: Sequence[Way], rights: Mapping[Way, Right]) -> Way:
    """The way with the highest top-1; in a tie, the first of them."""
    return max(ways, key=lambda way: rights[way].mean())


def verdict(results: Sequence[Gain]) -> str:
    """One sentence: what each policy gained under each learning-rate schedule, and the best way."""
    parts = []
    for policy in dict.fromkeys(gain.policy for gain in results if gain.policy != CLEAN):
        outcomes = [
            f"{_points(gain.against_clean)} under {gain.lr_schedule}"
            for gain in results
            if (gain.policy, gain.order) == (policy, WRITTEN) and gain.against_clean is not None
        ]
        parts.append(f"{policy} {', '.join(outcomes)}")
    (best,) = (gain for gain in results if gain.best)
    best_way = Way(best.policy, best.order, best.lr_schedule)
    return f"{'; '.join(parts)}; best: {best_way}, {100 * best.top1:.1f}%"


def _points(change: Difference) -> str:
    """`gained 0.9 ± 0.4 points`. The interval may be asymmetric; ± gives half its width."""
    size, half = 100 * change.difference, 50 * (change.high - change.low)
    if not change.sure:
        return f"made no significant difference ({size:+.1f} ± {half:.1f} points)"
    return f"{'gained' if size > 0 else 'lost'} {abs(size):.1f} ± {half:.1f} points"
