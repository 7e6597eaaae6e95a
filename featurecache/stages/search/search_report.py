"""The result of a search, and its report as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurecache.stages.search.halving import CandidateRow
from featurecache.stages.search.scoring import OperationScore
from featurecache.stages.search.search_trainings import ComparisonRow
from featurecache.text import counted

_LISTED = 10  # operations of each list


@dataclass(frozen=True, kw_only=True)
class Search:
    """The found policy: a file that every command takes, and its weights by atomic policy, where
    `none` leaves an image unchanged. `operations` are the scores, `candidates` the trained
    mixtures, the best first, `compared` the trainings of the verdict, the found policy first.
    `optimism` is what the found policy has on the images that the search chose with, minus the same
    on those that it never touched: `top1`, and its `gain` over none. `seconds` of each stage are
    those of this call."""

    run: str
    policy: str
    verdict: str
    weights: dict[str, float]
    compared: list[ComparisonRow]
    optimism: dict[str, float]
    operations: list[OperationScore]
    candidates: list[CandidateRow]
    images: dict[str, int]
    seconds: dict[str, float]
    notes: list[str]


def report(result: Search) -> str:
    """The verdict, the policy, what helps and hurts, the candidates, the comparison."""
    clean, *scores = result.operations
    by_gain = sorted(scores, key=lambda row: -row["gain"])
    by_loss = sorted(scores, key=lambda row: row["loss"])[:_LISTED]
    optimism = result.optimism
    sections = {
        f"policy: {result.policy}": [
            f"{100 * weight:5.1f}%  {name}" for name, weight in result.weights.items()
        ],
        "highest gains of a ridge head on the validation images, in points (95% interval); "
        f"{sum(row['low'] > 0 for row in scores)} of {counted(len(scores), 'operation')} surely "
        "help": _lines([row for row in by_gain if row["gain"] > 0]),
        f"lowest gains; {sum(row['high'] < 0 for row in scores)} surely hurt":
            _lines([row for row in by_gain[::-1] if row["gain"] < 0]),
        f"lowest loss of the clean head, {clean['loss']:.3f} on clean images; distance of class "
        f"means, {clean['distance']:.3g} for clean images": [
            f"{row['loss']:.3f}  {row['distance']:.3g}  {row['operation']}" for row in by_loss
        ],
        "candidates, by top-1 on the validation images": [
            f"{100 * row['top1']:5.1f}%  {row['candidate']} (epochs {row['epochs']}, seeds "
            f"{row['seeds']})"
            for row in result.candidates
        ],
        "trainings: top-1 on untouched images, and on those that the search chose with": [
            f"{100 * row['untouched']:5.1f}%  {100 * row['searched']:5.1f}%  {row['policy']}"
            for row in result.compared
        ],
        "optimism of the search: the second minus the first, in points": [
            f"{100 * optimism['top1']:+.1f} of top-1, {100 * optimism['gain']:+.1f} of the gain "
            "over none"
        ],
    }  # fmt: skip
    parts = [
        "\n".join([title, *(f"  {line}" for line in lines or ["-"])])
        for title, lines in sections.items()
    ]
    return "\n\n".join([*parts, result.verdict]) + "\n"


def _lines(rows: Sequence[OperationScore]) -> list[str]:
    return [
        f"{100 * row['gain']:+5.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})  "
        f"{row['operation']}; helps {_names(row['helps'])}; hurts {_names(row['hurts'])}"
        for row in rows[:_LISTED]
    ]


def _names(classes: Sequence[str]) -> str:
    """Classes without their synonyms."""
    return ", ".join(name.partition(",")[0] for name in classes) or "no class"


def verdict(compared: Sequence[ComparisonRow], images: int, split: str) -> str:
    """One sentence: what the found policy gains over each of the others."""
    best, *others = compared
    parts = []
    for row in others:
        interval = f"95% interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        sure = "sure" if row["low"] > 0 or row["high"] < 0 else "may be chance"
        change = f"{100 * row['difference']:+.1f} points against {row['policy']}"
        parts.append(f"{change} ({interval}; {sure})")
    return (
        f"{best['policy']} has {100 * best['untouched']:.1f}% top-1 on {images:,} images of split "
        f"{split}, which the search never touched: {', '.join(parts)}."
    )
