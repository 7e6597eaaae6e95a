"""Stage 3 of a search: candidate mixtures, and successive halving with real trainings of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from featurecache.heads.mixture_weights import best_of_each
from featurecache.stages.search.scoring import OperationScore

Weights = dict[str, float]  # by atomic policy or `none`; they sum to 1
Train = Callable[[Weights, int, int], np.ndarray]  # (weights, epochs, seed) -> (M,) bool

MAX_POLICIES = 8  # in a mixture
_MIN_WEIGHT = 0.02
_RUNGS = 3  # each has half of the candidates, and twice the epochs, of the one before


class CandidateRow(TypedDict):
    """A mixture, and the top-1 on the validation images after its last training."""

    candidate: str
    weights: Weights
    epochs: int
    seeds: int
    top1: float


def candidate_mixtures(
    scores: Sequence[OperationScore], kinds: Mapping[str, str], shipped: Sequence[str]
) -> dict[str, Weights]:
    """Mixtures to train with: of the learned weights, of the operations with the highest gains, of
    those with the lowest loss, none, and each of some `shipped` policies. `kinds` names the
    operation of each atomic policy: a mixture of equal weights has an operation at one strength
    only."""
    names = [row["operation"] for row in scores]
    learned = {row["operation"]: row["weight"] for row in scores}
    operations = [kinds.get(name, name) for name in names]
    by_gain = sorted(range(1, len(scores)), key=lambda n: (-scores[n]["gain"], scores[n]["loss"]))
    by_loss = sorted(range(1, len(scores)), key=lambda n: scores[n]["loss"])
    mixtures = {"none": {names[0]: 1.0}}
    for count in (MAX_POLICIES, 3):
        mixtures[f"weights {count}"] = _largest(learned, count)
    rankings = {"gain": (by_gain, (1, 2, 4, MAX_POLICIES)), "density": (by_loss, (MAX_POLICIES,))}
    for title, (ranking, counts) in rankings.items():
        for count in counts:
            best = best_of_each(operations, ranking, count)
            mixtures[f"{title} {count}"] = {names[n]: 1 / len(best) for n in best}
    mixtures |= {name: {name: 1.0} for name in shipped}
    distinct: dict[tuple[tuple[str, float], ...], str] = {}
    for title, weights in mixtures.items():
        distinct.setdefault(tuple(sorted(weights.items())), title)
    return {title: mixtures[title] for title in distinct.values()}


def halve(
    mixtures: Mapping[str, Weights], train: Train, epochs: int, seeds: Sequence[int]
) -> list[CandidateRow]:
    """Train all mixtures briefly, the better half longer, and so on; the best comes first. The
    last trainings have all `epochs` and all `seeds`."""
    left, lost = list(mixtures), list[str]()
    rows: dict[str, CandidateRow] = {}
    for rung in range(_RUNGS):
        length = max(1, epochs >> (_RUNGS - 1 - rung))
        used = seeds if rung == _RUNGS - 1 else seeds[:1]
        for title in left:
            rights = [train(mixtures[title], length, seed) for seed in used]
            rows[title] = {
                "candidate": title,
                "weights": mixtures[title],
                "epochs": length,
                "seeds": len(used),
                "top1": float(np.mean(rights)),
            }
        left.sort(key=lambda title: -rows[title]["top1"])
        if rung < _RUNGS - 1:
            half = -(-len(left) // 2)
            left, lost = left[:half], left[half:] + lost
    return [rows[title] for title in (*left, *lost)]


def _largest(weights: Weights, count: int) -> Weights:
    """The largest of the weights, which sum to 1 again."""
    names = sorted(weights, key=lambda name: -weights[name])[:count]
    kept_names = [name for name in names if weights[name] >= _MIN_WEIGHT] or names[:1]
    total = sum(weights[name] for name in kept_names)
    return {name: round(weights[name] / total, 6) for name in kept_names}
