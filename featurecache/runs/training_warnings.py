"""Sentences about a training that went the wrong way: phases that lowered the validation accuracy,
and views that destroy what the classes are told apart by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featurecache.heads.schedules import Schedule
from featurecache.heads.streams import Stream
from featurecache.images.view_names import ViewName
from featurecache.study.projections import Neighbourhood
from featurecache.training.epoch_metrics import Epoch

_LEAST_DROP = 0.01  # of validation top-1: smaller ones come and go with the seed
_DESTROYED = 0.7  # of the agreement of the clean vectors: a view below it is destructive
_IMAGES = 1000  # evenly spaced; neighbours of each are searched in all of them


def phase_warnings(schedule: Schedule, epochs: Sequence[Epoch]) -> list[str]:
    """A sentence for each phase after which validation top-1 was lower than after the best phase
    before it: the phase lowered it, or did not regain what an earlier phase had lost."""
    best: float | None = None
    before: float | None = None
    warnings = []
    for number, phase in {planned.number: planned.phase for planned in schedule.plan()}.items():
        last = max((row.epoch for row in epochs if row.phase == number), default=None)
        if last is None:
            continue  # training stopped before it
        after = float(np.mean([row.val_top1 for row in epochs if row.epoch == last]))
        if best is not None and best - after >= _LEAST_DROP:
            views = " + ".join(ViewName.parse(view).display_name for view in phase.views)
            effect = (
                "lowered validation top-1"
                if before is None or after < before
                else "did not regain the best validation top-1"
            )
            warnings.append(
                f"phase {number} ({views}) {effect}: {100 * after:.1f}% after it, "
                f"{100 * best:.1f}% after the best phase before it; try the schedule without it"
            )
        before = after
        best = after if best is None else max(best, after)
    return warnings


def destructive_views(
    vectors: Mapping[str, npt.NDArray[np.float32] | Stream],
    labels: npt.NDArray[np.int64],
    command: str,
) -> list[str]:
    """A sentence for each view whose vectors lie among other classes, as `study drift` measures it:
    by the label of most of the ten nearest clean vectors of other images. `command` shows which."""
    others = [view for view in vectors if view != "none"]
    clean_vectors = vectors.get("none")
    if not others or not isinstance(clean_vectors, np.ndarray):
        return []
    rows = np.linspace(0, len(labels) - 1, min(_IMAGES, len(labels))).astype(np.int64)
    if len(rows) < 2:
        return []
    neighbourhood = Neighbourhood(clean_vectors[rows], labels[rows])
    voted = neighbourhood.voters(labels[rows], 10) > 0
    if not voted.any():
        return []

    def agreement(view: str) -> float:
        of_view = np.asarray(vectors[view][rows])
        return float(neighbourhood.agreement(of_view, np.arange(len(rows)))[voted].mean())

    unchanged = agreement("none")
    return [
        f"view {ViewName.parse(view).display_name} is destructive: the nearest clean images have "
        f"the right class for {100 * agreed:.0f}% of its images, for {100 * unchanged:.0f}% of the "
        f"clean ones (`{command}` shows which); a milder policy, such as mild, may help more"
        for view in others
        if not isinstance(vectors[view], Stream)
        and (agreed := agreement(view)) < _DESTROYED * unchanged
    ]
