"""How far views move vectors: a destructive policy is seen before it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.views import View, find_view, view_of_key
from featurecache.lookup.held_spaces import OTHER_VERSIONS, fitting_spaces, is_drawn_alike
from featurecache.lookup.labelled_rows import LabelledRow, labelled_rows
from featurecache.stages.studies.study_files import (
    Study,
    cached_vectors,
    choice_of,
    different,
    pictures_of,
    spread,
    study_folder,
    unread,
    write_study,
)
from featurecache.study import figures, projections

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CLEAN = 50_000  # images among whom neighbours are looked for, at most: 250 MB of 1,280 numbers
BROKEN = 10  # images shown of each view


def study_drift(
    backbone: str = "",
    policy: str | Sequence[str] = (),
    *,
    split: str = "train",
    images: int = 2000,
    neighbours: int = 10,
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int = 0,
    out: str | Path = "study",
    progress: Progress = silent,
    **setting: Any,
) -> Study:
    """The cosine of each vector of a view to the clean one of its image, and how many views still
    have their label's neighbours: most of the nearest `neighbours` clean vectors of other images of
    the split (of a larger one 50,000, spread evenly). Of a class with no more images than that,
    its size less one vote, and images that are alone in their class are not counted.

    `policy` are views, without any all that the cache holds of the backbone for these images. The
    table has a row for each: {view, cosine_5 … cosine_95 (quantiles), agreement, broken: the images
    of lowest cosine}; that of `none` has the agreement of the clean vectors themselves. Raises
    BadInput, NotCached.
    """
    if not backbone:
        raise BadInput("drift needs --backbone NAME; `featurecache ls` lists what is held")
    if images < 2 or neighbours < 1:
        raise BadInput("drift needs at least 2 images and 1 neighbour")
    dataset = open_dataset(data)
    every = spread(different(labelled_rows(dataset, [split], progress)), max(images, CLEAN))
    folder = study_folder(out)
    rows = spread(every, images)
    notes: list[str] = []
    names = [policy] if isinstance(policy, str) else policy
    views = [find_view(name, seed) for name in dict.fromkeys(names) if name != "none"]
    if not views:
        held = fitting_spaces(Cache(cache).spaces(), choice_of(backbone, setting), cache)
        views = list(_held(held, rows, seed, notes))
    if not views:
        raise BadInput(
            f"{cache} holds no view of {backbone} but `none` for these images; featurize one, "
            "or name it with --policy"
        )
    every, clean = cached_vectors(every, backbone, View(None), data, cache, setting)
    place_of = {row.item: place for place, row in enumerate(every)}
    labels = np.array([row.label for row in every])
    neighbourhood = projections.Neighbourhood(clean, labels)
    notes += _small_classes(neighbourhood, labels, neighbours, dataset)
    if not neighbourhood.voters(np.array([row.label for row in rows]), neighbours).any():
        raise BadInput("each of these images is alone in its class; give more --images")
    cosines: dict[str, np.ndarray] = {}
    lines: list[list[object]] = []
    table: list[dict[str, Any]] = []
    strips = []
    lost = 0
    for number, view in enumerate([View(None), *views]):
        progress(number, len(views) + 1, f"drift ({view.name})")
        seen, vectors = cached_vectors(rows, backbone, view, data, cache, setting)
        seen, vectors, own = _beside(seen, vectors, place_of)
        cosine = projections.cosines(vectors, clean[own])
        agreed = neighbourhood.agreement(vectors, own, neighbours)
        row: dict[str, Any] = {"view": view.name}
        row |= {f"cosine_{q * 100:.0f}": float(np.quantile(cosine, q)) for q in QUANTILES}
        counted = neighbourhood.voters(labels[own], neighbours) > 0
        row |= {"agreement": float(agreed[counted].mean()), "broken": []}
        table.append(row)
        if view.policy is None:
            continue
        cosines[view.name] = cosine
        order = np.argsort(cosine, kind="stable")[:BROKEN]
        worst = [seen[at] for at in order]
        row["broken"] = [image.id for image in worst]
        lines += [
            [view.name, image.id, dataset.classes[image.label], float(value)]
            for image, value in zip(seen, cosine, strict=True)
        ]
        pairs = [
            (pixels, view.picture(pixels, worst[at].item), f"{cosine[order[at]]:.2f}")
            for at, pixels in pictures_of(dataset, worst)
        ]
        strips.append((view.name, pairs))
        lost += len(worst) - len(pairs)
    progress(len(views) + 1, len(views) + 1, "drift")
    shares = {str(of["view"]): float(of["agreement"]) for of in table}
    title = f"Drift of views from clean vectors of {backbone}, {len(rows):,} images of {split}"
    files = write_study(
        folder,
        "drift",
        title,
        figures.drift(cosines, shares, strips),
        ["view", "path", "class", "cosine"],
        lines,
        {f"{row['view']}: median cosine": row["cosine_50"] for row in table[1:]}
        | {f"{row['view']}: neighbours agree": row["agreement"] for row in table}
        | {"table": table},
    )
    return Study("drift", files, len(rows), table, [*notes, *unread(lost)])


def _small_classes(
    neighbourhood: projections.Neighbourhood, labels: np.ndarray, neighbours: int, dataset: Dataset
) -> list[str]:
    """Notes of the classes that have fewer voters than `neighbours`."""
    present = np.unique(labels)
    voters = neighbourhood.voters(present, neighbours)
    notes = []
    small = np.flatnonzero((voters < neighbours) & (voters > 0))
    if len(small):
        least = small[voters[small].argmin()]
        name = dataset.classes[present[least]]
        notes.append(
            f"{len(small)} of {len(present)} classes have at most {neighbours} images; in each of "
            f"them as many neighbours vote as it has images, less one ({voters[least]} in {name})"
        )
    if alone := int((voters == 0).sum()):
        notes.append(f"{alone} classes have one image, which is left out of the agreement")
    return notes


def _held(
    spaces: Sequence[Space], rows: Sequence[LabelledRow], seed: int, notes: list[str]
) -> Iterator[View]:
    """The views that the cache holds for these images with this seed, by their names; a note for
    each that can't be drawn again here, lacks some of them, or has the name of another."""
    names = set()
    for space in sorted(spaces, key=lambda space: space.view):
        view = view_of_key(space.key["view"], space.view)
        if view.policy is None or view.seed != seed:
            continue
        missing = len(space.missing(row.item for row in rows))
        if not is_drawn_alike(view, space):
            notes.append(f"{space.view} is left out: {OTHER_VERSIONS}")
        elif missing:
            notes.append(f"{space.view} lacks {missing} of these images, and is left out")
        elif view.name in names:
            notes.append(f"several policies are called {space.view}, of which one is looked at")
        else:
            names.add(view.name)
            yield view


def _beside(
    rows: Sequence[LabelledRow], vectors: np.ndarray, place_of: Mapping[bytes, int]
) -> tuple[list[LabelledRow], np.ndarray, np.ndarray]:
    """The rows that have a clean vector too, theirs, and the places of the clean ones."""
    both = [at for at, row in enumerate(rows) if row.item in place_of]
    kept = [rows[at] for at in both]
    return kept, vectors[both], np.array([place_of[row.item] for row in kept], np.int64)
