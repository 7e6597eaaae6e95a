"""Who is ahead on the same images, by how much, and whether that is sure: in words.

A comparison is paired over the images, and over the seeds where there are several. The best of many
is partly luck, so with more than two groups the level of every interval between them is raised
(Bonferroni): all of them hold at once with 95%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from featurecache.study.metrics import LEVEL, mcnemar
from featurecache.study.paired import Difference, Right, difference

BASELINE_NAME = "logistic regression on the same vectors"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but their seed, on the same N images. `right` and `baseline` are
    (S, N); row s belongs to seed s. `baseline` is None if a run has no logistic regression."""

    name: str
    seeds: tuple[int, ...]
    right: Right
    baseline: Right | None

    @property
    def top1(self) -> float:
        return float(self.right.mean())


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A paired comparison. `p` is that of McNemar's exact test, and None over several seeds.

    It is sure if the interval excludes 0 and p is below what the level leaves: the bootstrap of few
    differing images is too narrow, the exact test is not.
    """

    difference: Difference
    p: float | None
    sure: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sentence for the head of a page, and the sentences that give its numbers."""

    headline: str
    details: tuple[str, ...]


def compare(right: Right, other: Right, level: float = LEVEL) -> Paired:
    """Compare two ways of training, (S, N) each, on the same seeds and images."""
    change = difference(right, other, level=level)
    p = mcnemar(right[0], other[0])["p"] if len(right) == 1 else None
    return Paired(difference=change, p=p, sure=change.sure and (p is None or p < 1 - level))


def verdict(groups: Sequence[Group], hindrance: str | None = None) -> Verdict:
    """The verdict on groups of runs. A single one is compared with its baseline.

    `hindrance` says why the accuracies on these images can't be compared; the headline then gives
    it instead of a winner.
    """
    shared = _with_common_seeds(groups)
    if hindrance is None and shared is None:
        hindrance = "the runs have no seed in common; train each kind with the same seeds"
    if hindrance is not None or shared is None:
        parts = [f"{group.name} has {_percent(group.top1)} top-1" for group in groups]
        return Verdict(
            headline=f"No verdict: {hindrance}.",
            details=(f"{_listed(parts)}.", *_baselines(groups)),
        )
    if len(shared) == 1:
        return _of_one(shared[0])
    best = max(shared, key=lambda group: group.top1)
    others = sorted((group for group in shared if group is not best), key=lambda g: -g.top1)
    level = 1 - (1 - LEVEL) * 2 / (len(shared) * (len(shared) - 1))
    results = [compare(best.right, group.right, level) for group in others]
    sure = [group.name for group, result in zip(others, results, strict=True) if result.sure]
    closest = next((n for n, result in enumerate(results) if not result.sure), 0)
    name, result = others[closest].name, results[closest]
    points = _points(result.difference.difference)
    if not result.difference.difference:
        headline = f"No winner: {best.name} and {name} have the same accuracy."
    elif not result.sure:
        headline = (
            f"No sure winner: {best.name} is ahead of {name} by {points}, which may be chance."
        )
    elif len(others) == 1:
        headline = f"{best.name} is ahead of {name} by {points}, and that is sure."
    else:
        headline = (
            f"{best.name} is ahead of all {len(others)} others: of {name}, the next, by {points}, "
            "and that is sure."
        )
    sentences = [_numbers(best.right, others[closest].right, name, result, len(shared) > 2)]
    if sure and not result.sure:
        sentences.append(f"Surely behind {best.name}: {_listed(sure)}.")
    sentences += [*_baselines(shared, best), _scope(best, groups)]
    against = None if best.baseline is None else compare(best.right, best.baseline)
    if against is not None and against.sure and against.difference.difference < 0:
        sentences.insert(0, headline)
        points = _points(against.difference.difference)
        headline = (
            f"{BASELINE_NAME.capitalize()} is ahead of every run, of the best by {points}, and "
            "that is sure."
        )
    return Verdict(headline=headline, details=tuple(sentences))


def _of_one(group: Group) -> Verdict:
    """The verdict on runs of a single kind: against their logistic regression."""
    if group.baseline is None:
        return Verdict(
            headline=f"{group.name} has {_percent(group.top1)} top-1; nothing to compare it with.",
            details=(_no_baseline([group]), "Name several runs to compare them."),
        )
    result = compare(group.right, group.baseline)
    points = _points(result.difference.difference)
    side = "ahead of" if result.difference.difference > 0 else "behind"
    if result.sure:
        headline = f"{group.name} is {side} {BASELINE_NAME} by {points}, and that is sure."
    elif result.difference.difference:
        headline = f"{group.name} is {side} {BASELINE_NAME} by {points}, which may be chance."
    else:
        headline = f"{group.name} is as accurate as {BASELINE_NAME}."
    details = [
        _numbers(group.right, group.baseline, "it", result),
        _scope(group, [group]),
    ]
    if result.sure and result.difference.difference < 0:
        details.append("Train-head without a schedule chooses among heads that include it.")
    return Verdict(headline=headline, details=tuple(details))


def _numbers(right: Right, other: Right, name: str, result: Paired, corrected: bool = False) -> str:
    """`95.5% top-1 against 93.9% of NAME on 360 images: +1.6 points, 95% interval +0.3 to +2.9.`"""
    change, images = result.difference, right.shape[1]
    p = "" if result.p is None else f"; p {result.p:.2g} (McNemar's exact test)"
    correction = ", corrected for the number of runs" if corrected else ""
    return (
        f"{_percent(right.mean())} top-1 against {_percent(other.mean())} of {name} on the same "
        f"{images:,} images: {100 * change.difference:+.1f} points, {100 * LEVEL:.0f}% interval "
        f"{100 * change.low:+.1f} to {100 * change.high:+.1f}{correction}{p}."
    )


def _scope(best: Group, groups: Sequence[Group]) -> str:
    """What the intervals cover. `best` has only the seeds that all the groups have in common."""
    if len(best.seeds) > 1:
        seeds = ", ".join(map(str, best.seeds))
        return f"Means over the seeds {seeds}; the intervals cover images and seeds."
    several = any(len(group.seeds) > 1 for group in groups)
    return (
        (f"Only seed {best.seeds[0]} is common to all runs" if several else "Of single trainings")
        + ": the intervals cover the choice of images; another seed may change the order. Train "
        "with several seeds, and name all their runs, to cover that too."
    )


def _baselines(groups: Sequence[Group], best: Group | None = None) -> list[str]:
    """What logistic regression has: beside the best of the groups, or beside all of them."""
    sentences = []
    behind = []
    for group in groups:
        if group.baseline is None:
            continue
        result = compare(group.right, group.baseline)
        top1 = _percent(float(group.baseline.mean()))
        size = result.difference.difference
        if result.sure and size < 0 and group is not best:
            behind.append(group.name)
        if best is None:
            sentences.append(f"{group.name}: {BASELINE_NAME} has {top1}.")
        elif group is best:
            relation = (
                f"{_points(size)} {'ahead of' if size > 0 else 'behind'} it, "
                + ("and that is sure" if result.sure else "which may be chance")
                if size
                else "as accurate"
            )
            sentences.append(
                f"{BASELINE_NAME.capitalize()} has {top1}: {group.name} is {relation}."
            )
    if best is not None and behind:
        sentences.append(f"Surely below their own logistic regression: {_listed(behind)}.")
    lacking = [group for group in groups if group.baseline is None]
    return sentences + ([_no_baseline(lacking)] if lacking else [])


def _no_baseline(groups: Sequence[Group]) -> str:
    return (
        f"No logistic regression was fitted for {_listed([group.name for group in groups])}; "
        "the command `baselines` measures it."
    )


def _with_common_seeds(groups: Sequence[Group]) -> list[Group] | None:
    """The groups with only the seeds that all of them have; None if there are none. Single
    trainings are compared as they are: their heads, on the same images."""
    if all(len(group.seeds) == 1 for group in groups):
        return list(groups)
    common = sorted(set.intersection(*(set(group.seeds) for group in groups)))
    rows = [[group.seeds.index(seed) for seed in common] for group in groups]
    if not common:
        return None
    return [
        replace(
            group,
            seeds=tuple(common),
            right=group.right[selected],
            baseline=None if group.baseline is None else group.baseline[selected],
        )
        for group, selected in zip(groups, rows, strict=True)
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.1f}"
    return f"{size} point{'' if size == '1.0' else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
