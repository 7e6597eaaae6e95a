"""The arms of a comparison: the phases of a schedule without augmentation, through another policy,
and in another order. All of them take as many epochs as the phases they are made from.

Phases are the plain mappings of a schedule, `views` and `ramp_to` as mappings of views to shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from featurecache import keys

NONE = "none"  # the view without augmentation
_SHARES = ("views", "ramp_to")
_OF_THE_PLACE = ("optimizer",)  # what stays where it is when phases change places

Phases = list[keys.Json]


def shown_views(phases: Sequence[keys.Json]) -> list[str]:
    """The views that phases show, in first-seen order."""
    views = [view for phase in phases for name in _SHARES for view in phase.get(name, ())]
    return list(dict.fromkeys(views))


def augmented_views(phases: Sequence[keys.Json]) -> list[str]:
    """Those of them beside `none`."""
    return [view for view in shown_views(phases) if view != NONE]


def clean(phases: Sequence[keys.Json]) -> Phases:
    """The phases on images without augmentation."""
    return _replaced(phases, lambda view: NONE)


def through(phases: Sequence[keys.Json], views: Sequence[str]) -> Phases:
    """The phases with no augmented views but these, the draws of one policy: as often and as long,
    but instead of each other view one of them, in turn."""
    others = [view for view in augmented_views(phases) if view not in views]
    instead = {view: views[n % len(views)] for n, view in enumerate(others)}
    return _replaced(phases, lambda view: instead.get(view, view))


def shuffled(phases: Sequence[keys.Json], seed: int) -> Phases | None:
    """The phases in a random order that is not the written one; None where there is no other.

    What is seen and for how long changes places; the optimizer's settings stay in theirs, so that
    an order of rates that is written as phases is not shuffled with them.
    """
    fixed = [{n: v for n, v in phase.items() if n in _OF_THE_PLACE} for phase in phases]
    moved = [{n: v for n, v in phase.items() if n not in _OF_THE_PLACE} for phase in phases]
    written = _epochs(moved)
    if all(epoch == written[0] for epoch in written):
        return None
    rng = np.random.default_rng(seed)
    while True:
        order = [moved[index] for index in rng.permutation(len(moved))]
        if _epochs(order) != written:
            return [{**content, **settings} for content, settings in zip(order, fixed, strict=True)]


def _epochs(phases: Sequence[keys.Json]) -> Phases:
    """What each epoch shows: two phases alike, one after the other, are as one of both lengths."""
    contents = [({n: v for n, v in p.items() if n != "epochs"}, int(p["epochs"])) for p in phases]
    return [content for content, epochs in contents for _ in range(epochs)]


def _replaced(phases: Sequence[keys.Json], instead: Callable[[str], str]) -> Phases:
    """The phases with other views; where two become one, it has the shares of both."""
    result = []
    for phase in phases:
        new = dict(phase)
        for name in set(_SHARES) & set(phase):
            shares: dict[str, float] = {}
            for view, share in phase[name].items():
                shares[instead(view)] = shares.get(instead(view), 0.0) + share
            new[name] = shares
        result.append(new)
    return result
