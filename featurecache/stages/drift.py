"""How far views move vectors: a destructive policy is seen before it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.views import View, find_view
from featurecache.stages.find import fitting
from featurecache.stages.studies import (
    Study,
    cached_vectors,
    choice_of,
    labelled_sample,
    pictures_of,
    study_folder,
    write_study,
)
from featurecache.study import figures, projections

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
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
    have their label's neighbours: most of the nearest `neighbours` clean vectors of other images.

    `policy` are views, without any all that the cache holds of the backbone for these images. The
    table has a row for each: {view, cosine_5 … cosine_95 (quantiles), agreement, broken: the images
    of lowest cosine}; that of `none` has the agreement of the clean vectors themselves. Raises
    BadInput, NotCached.
    """
    if not backbone:
        raise BadInput("drift needs --backbone NAME; `featurecache ls` lists what is held")
    if images < 2 or neighbours < 1:
        raise BadInput("drift needs at least 2 images and 1 neighbour")
    folder = study_folder(out)
    dataset = open_dataset(data)
    rows = labelled_sample(dataset, split, images, progress)
    given = [policy] if isinstance(policy, str) else list(dict.fromkeys(policy))
    if not given:
        held = fitting(Cache(cache).spaces(), choice_of(backbone, setting), cache)
        items = [row.item for row in rows]
        whole = [s for s in held if s.key["view"] is not None and not s.missing(items)]
        given = sorted(s.view for s in whole if s.key["view"]["seed"] == seed)
        if not given:
            raise BadInput(
                f"{cache} holds no view of {backbone} but `none` for these images; featurize one, "
                "or name it with --policy"
            )
    given = [name for name in given if name != "none"]
    if not given:
        raise BadInput("`none` does not drift from itself; give another --policy")
    views = [find_view(name, seed) for name in given]
    rows, found = cached_vectors(rows, backbone, ["none", *given], data, cache, seed, setting)
    clean, labels = found["none"], np.array([row.label for row in rows])
    own = np.arange(len(rows))
    cosines: dict[str, np.ndarray] = {}
    table: list[dict[str, Any]] = []
    strips = []
    for place, (name, view) in enumerate(zip(["none", *given], [View(None), *views], strict=True)):
        progress(place, len(views) + 1, f"drift: {view.name}")
        cosine = projections.cosines(found[name], clean)
        agreed = projections.agreement(found[name], own, clean, labels, neighbours)
        worst = [rows[row] for row in np.argsort(cosine, kind="stable")[:BROKEN]]
        row: dict[str, Any] = {"view": view.name}
        row |= {f"cosine_{q * 100:.0f}": float(np.quantile(cosine, q)) for q in QUANTILES}
        row |= {"agreement": float(agreed.mean()), "broken": []}
        table.append(row)
        if view.policy is None:
            continue
        cosines[view.name] = cosine
        row["broken"] = [image.id for image in worst]
        lowest = np.sort(cosine)
        pairs = [
            (pixels, view.picture(pixels, worst[at].item), f"{lowest[at]:.2f}")
            for at, pixels in pictures_of(dataset, worst)
        ]
        strips.append((view.name, pairs))
    progress(len(views) + 1, len(views) + 1, "drift")
    shares = {str(of["view"]): float(of["agreement"]) for of in table}
    title = f"Drift of views from clean vectors of {backbone}, {len(rows):,} images of {split}"
    files = write_study(
        folder,
        "drift",
        title,
        figures.drift(cosines, shares, strips),
        ["view", "path", "class", "cosine"],
        [
            [name, image.id, dataset.classes[image.label], float(cosine)]
            for name, each in cosines.items()
            for image, cosine in zip(rows, each, strict=True)
        ],
        {f"{row['view']}: median cosine": row["cosine_50"] for row in table[1:]}
        | {f"{row['view']}: neighbours agree": row["agreement"] for row in table}
        | {"table": table},
    )
    return Study("drift", files, len(rows), table, [])
