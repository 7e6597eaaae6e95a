"""Who is ahead on the same images, by how much, and whether that is sure: in words.

A comparison is paired over the images, and over the seeds where there are several. The best of many
is partly luck, so with more than two groups the level of every interval between them is raised
(Bonferroni): all of them hold at once with 95%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    best = max(groups, key=lambda group: group.top1)
    if hindrance is not None:
        parts = [f"{group.name} has {_percent(group.top1)} top-1" for group in groups]
        return Verdict(
            headline=f"No verdict: {hindrance}.",
            details=(f"{_listed(parts)}.", *_baselines(groups)),
        )
    if len(groups) == 1:
        return _of_one(best)
    others = sorted((group for group in groups if group is not best), key=lambda g: -g.top1)
    level = 1 - (1 - LEVEL) * 2 / (len(groups) * (len(groups) - 1))
    results: dict[str, Paired] = {}
    for group in others:
        rows, other_rows = _common_seeds(best, group)
        if rows:
            results[group.name] = compare(best.right[rows], group.right[other_rows], level)
    apart = [group.name for group in others if group.name not in results]
    unsure = [g for g in others if g.name in results and not results[g.name].sure]
    sure = [g for g in others if g.name in results and results[g.name].sure]
    sentences = []
    if not results:
        headline = (
            "No verdict: the runs have no seed in common; train each with the same seeds to "
            "compare them."
        )
    else:
        closest = (unsure or sure)[0]
        result = results[closest.name]
        points = _points(result.difference.difference)
        if not unsure:
            against = closest.name if len(others) == 1 else f"all {len(sure)} others"
            by = f"by {points}" if len(others) == 1 else f"{closest.name}, the next, by {points}"
            separator = " " if len(others) == 1 else ": of "
            headline = f"{best.name} is ahead of {against}{separator}{by}, and that is sure."
        elif result.difference.difference:
            headline = (
                f"No sure winner: {best.name} is ahead of {closest.name} by {points}, which may "
                "be chance."
            )
        else:
            headline = f"No winner: {best.name} and {closest.name} have the same accuracy."
        sentences.append(_numbers(best, closest.name, closest.top1, result, level))
        if unsure and sure:
            sentences.append(f"Surely behind {best.name}: {_listed([g.name for g in sure])}.")
        sentences.append(_scope(best, [closest]))
    if apart:
        sentences.append(f"Not compared, without a common seed: {_listed(apart)}.")
    return Verdict(headline=headline, details=(*sentences, *_baselines(groups, best)))


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
        _numbers(group, "it", float(group.baseline.mean()), result, LEVEL),
        _scope(group, []),
    ]
    if result.sure and result.difference.difference < 0:
        details.append("Train-head without a schedule chooses among heads that include it.")
    return Verdict(headline=headline, details=tuple(details))


def _numbers(best: Group, name: str, top1: float, result: Paired, level: float) -> str:
    """`95.5% top-1 against 93.9% of NAME on 360 images: +1.6 points, 95% interval +0.3 to +2.9.`"""
    change, images = result.difference, best.right.shape[1]
    p = "" if result.p is None else f"; p {result.p:.2g} (McNemar's exact test)"
    corrected = "" if level == LEVEL else ", corrected for the number of runs"
    return (
        f"{_percent(best.top1)} top-1 against {_percent(top1)} of {name} on the same {images:,} "
        f"images: {100 * change.difference:+.1f} points, {100 * LEVEL:.0f}% interval "
        f"{100 * change.low:+.1f} to {100 * change.high:+.1f}{corrected}{p}."
    )


def _scope(best: Group, others: Sequence[Group]) -> str:
    """What the interval covers."""
    shared = [seed for seed in best.seeds if all(seed in group.seeds for group in others)]
    if len(shared) > 1:
        seeds = ", ".join(map(str, sorted(shared)))
        return f"Means over the seeds {seeds}; the interval covers images and seeds."
    return (
        "Of single trainings: the interval covers the choice of images; another seed may change "
        "the order. Train with several seeds, and name all their runs, to cover that too."
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
        if result.sure and size < 0:
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
            text = f"{BASELINE_NAME[0].upper()}{BASELINE_NAME[1:]} has {top1}"
            sentences.append(f"{text}: {group.name} is {relation}.")
    if best is not None and behind:
        sentences.append(f"Surely below their logistic regression: {_listed(behind)}.")
    lacking = [group for group in groups if group.baseline is None]
    return sentences + ([_no_baseline(lacking)] if lacking else [])


def _no_baseline(groups: Sequence[Group]) -> str:
    return (
        f"No logistic regression was fitted for {_listed([group.name for group in groups])}; "
        "`featurecache baselines` measures it."
    )


def _common_seeds(best: Group, other: Group) -> tuple[list[int], list[int]]:
    """The rows of both groups that belong to the same seeds. Two single trainings are compared as
    they are: the heads, on the same images."""
    if len(best.seeds) == len(other.seeds) == 1:
        return [0], [0]
    common = sorted(set(best.seeds) & set(other.seeds))
    return [best.seeds.index(seed) for seed in common], [other.seeds.index(seed) for seed in common]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.1f}"
    return f"{size} point{'' if size == '1.0' else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
