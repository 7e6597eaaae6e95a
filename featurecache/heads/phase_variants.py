"""Variants of a schedule's phases: without augmentation, with another policy, in another order.

`worth` compares them. Every variant takes as many epochs as the original phases. Phases are the
plain mappings of a schedule, with `views` and `ramp_to` as mappings of views to shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput

NONE = "none"  # the view without augmentation
_SHARES = ("views", "ramp_to")
_POSITIONAL = ("optimizer",)  # settings that keep their position when phases are shuffled

Phases = list[keys.Json]


def used_views(phases: Sequence[keys.Json]) -> list[str]:
    """The views that the phases use, in first-seen order."""
    views = [view for phase in phases for name in _SHARES for view in phase.get(name, ())]
    return list(dict.fromkeys(views))


def augmented_views(phases: Sequence[keys.Json]) -> list[str]:
    """The views that the phases use, without `none`."""
    return [view for view in used_views(phases) if view != NONE]


def clean(phases: Sequence[keys.Json]) -> Phases:
    """The phases with every view replaced by `none`."""
    return _replaced(phases, lambda view: NONE)


def with_views(phases: Sequence[keys.Json], views: Sequence[str]) -> Phases:
    """The phases with only these augmented views, the draws of one policy.

    Every other augmented view is replaced by one of them, in turn, with the same epochs and shares.
    """
    others = [view for view in augmented_views(phases) if view not in views]
    replacements = {view: views[n % len(views)] for n, view in enumerate(others)}
    return _replaced(phases, lambda view: replacements.get(view, view))


def with_share(phases: Sequence[keys.Json], share: float) -> Phases:
    """The phases with this share of all augmented views together; the rest is `none`. Phases
    without augmented views stay."""
    result = []
    for phase in phases:
        new = dict(phase)
        for name in set(_SHARES) & set(phase):
            views = {view: part for view, part in phase[name].items() if view != NONE}
            if total := sum(views.values()):
                rest = {NONE: 1 - share} if share < 1 else {}
                new[name] = rest | {view: part * share / total for view, part in views.items()}
        result.append(new)
    return result


def with_shares(
    phases_by_policy: dict[str, Phases], share: float | Sequence[float]
) -> dict[str, Phases]:
    """The phases of each policy with each of the shares, by the name `POLICY at 50%`; without
    shares as they are. Raises BadInput."""
    shares = [share] if isinstance(share, int | float) else list(share)
    for number in shares:
        if not 0 < number <= 1:
            raise BadInput(f"--share {number:g}: must be above 0, and at most 1")
    if not shares:
        return phases_by_policy
    return {
        f"{policy} at {100 * number:g}%": with_share(phases, number)
        for policy, phases in phases_by_policy.items()
        for number in dict.fromkeys(shares)
    }


def shuffled(phases: Sequence[keys.Json], seed: int) -> Phases | None:
    """The phases in a random order other than the original; None if there is no other order.

    Views and epochs are shuffled. Optimizer settings keep their position, so that a learning-rate
    schedule written as phases stays intact.
    """
    fixed = [{n: v for n, v in phase.items() if n in _POSITIONAL} for phase in phases]
    moved = [{n: v for n, v in phase.items() if n not in _POSITIONAL} for phase in phases]
    written = _epochs(moved)
    if all(epoch == written[0] for epoch in written):
        return None
    rng = np.random.default_rng(seed)
    while True:
        order = [moved[index] for index in rng.permutation(len(moved))]
        if _epochs(order) != written:
            return [{**content, **settings} for content, settings in zip(order, fixed, strict=True)]


def _epochs(phases: Sequence[keys.Json]) -> Phases:
    """The content of each epoch: two equal phases in a row count as one longer phase."""
    contents = [({n: v for n, v in p.items() if n != "epochs"}, int(p["epochs"])) for p in phases]
    return [content for content, epochs in contents for _ in range(epochs)]


def _replaced(phases: Sequence[keys.Json], replacement: Callable[[str], str]) -> Phases:
    """The phases with their views replaced; if two views become the same, their shares add up."""
    result = []
    for phase in phases:
        new = dict(phase)
        for name in set(_SHARES) & set(phase):
            shares: dict[str, float] = {}
            for view, share in phase[name].items():
                shares[replacement(view)] = shares.get(replacement(view), 0.0) + share
            new[name] = shares
        result.append(new)
    return result
