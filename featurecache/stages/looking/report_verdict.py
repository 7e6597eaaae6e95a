"""The verdict of a report: its runs as groups of seeds, and what keeps them from a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurecache import keys
from featurecache.runs.held_out import HELD_OUT
from featurecache.runs.predictions import Predictions
from featurecache.runs.record import RunRecord, schedule_of
from featurecache.study.verdicts import Group, Verdict, verdict


def verdict_of(
    predictions: Predictions, names: Sequence[str], split: str, comparable: bool
) -> Verdict:
    """Who is ahead on the images of the split. `names` are those of the runs; `comparable` is false
    if the runs see different pictures."""
    return verdict(groups(predictions, names), _hindrance(predictions, names, split, comparable))


def groups(predictions: Predictions, names: Sequence[str]) -> list[Group]:
    """The runs that differ in nothing but their seed, together."""
    members: dict[str, list[list[int]]] = {}
    for index, record in enumerate(predictions.records):
        kinds = members.setdefault(_kind(record), [])
        seed = _seed(record)
        for kind in kinds:  # the same training twice is two groups
            if seed not in [_seed(predictions.records[member]) for member in kind]:
                kind.append(index)
                break
        else:
            kinds.append([index])
    return [
        _group(predictions, names, kind)
        for kind in sorted(kind for kinds in members.values() for kind in kinds)
    ]


def _group(predictions: Predictions, names: Sequence[str], members: Sequence[int]) -> Group:
    masks = [predictions.baselines[index] for index in members]
    fitted = [mask for mask in masks if mask is not None]
    name = names[members[0]]
    return Group(
        name=name if len(members) == 1 else f"{name} ({len(members)} seeds)",
        seeds=tuple(_seed(predictions.records[index]) for index in members),
        right=np.stack([predictions.correct_mask(index) for index in members]),
        baseline=np.stack(fitted) if len(fitted) == len(masks) else None,
    )


def _seed(record: RunRecord) -> int:
    return int(record.schedule.get("seed", 0))


def _kind(record: RunRecord) -> str:
    """What runs share that differ in nothing but their seed. Without a schedule, the seed may
    change the head that was chosen, and so its settings. Networks differ in their weights."""
    if record.network is not None:
        config = {name: value for name, value in record.network.items() if name != "seed"}
        return keys.digest([config, record.classes, record.rows])
    schedule = {name: value for name, value in record.schedule.items() if name != "seed"}
    if record.candidates is not None:
        schedule = {name: schedule.get(name) for name in ("backbone", "validation", "augment_seed")}
        schedule["candidates"] = [
            [candidate.get("head"), candidate.get("views")] for candidate in record.candidates
        ]
    backbones = [dict(backbone) for backbone in record.backbones]
    spaces = record.spaces if record.candidates is None else None
    return keys.digest([schedule, record.classes, record.rows, backbones, spaces])


def _hindrance(
    predictions: Predictions, names: Sequence[str], split: str, comparable: bool
) -> str | None:
    """Why accuracies on these images can't be compared; None if they can."""
    if predictions.notes:
        return "some of these images were trained on, as the warning says"
    if not comparable:
        seeds = ", ".join(
            f"{name} {record.schedule['augment_seed']}"
            for name, record in zip(names, predictions.records, strict=True)
        )
        return (
            f"the runs see different pictures, since their seeds of views differ ({seeds}); --seed "
            "evaluates all of them with one seed"
        )
    for name, record in zip(names, predictions.records, strict=True):
        settings = len(record.trials or [])
        if settings > 1 and split in (schedule_of(record).validation.split, HELD_OUT):
            return (
                f"{name} was chosen among {settings} settings by its accuracy on these images; "
                "--split names images that chose nothing"
            )
    return None
