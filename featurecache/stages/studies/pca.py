"""How many principal components keep the variance: of pixels and of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featurecache.errors import BadInput
from featurecache.executors import Progress, silent
from featurecache.images.datasets import open_dataset
from featurecache.images.views import find_view
from featurecache.lookup.labelled_rows import labelled_rows
from featurecache.stages.studies.study_files import (
    Study,
    cached_vectors,
    different,
    pictures_of,
    spread,
    study_folder,
    unread,
    write_study,
)
from featurecache.study import figures, projections

CHANNELS = ("red", "green", "blue")
SHARES = (0.9, 0.95)


def study_pca(
    backbone: str = "",
    *,
    view: str = "none",
    split: str = "train",
    images: int = 2000,
    pixels: int = 64,
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int = 0,
    out: str | Path = "study",
    progress: Progress = silent,
    **setting: Any,
) -> Study:
    """The share of variance that the first components keep: of each colour channel of `images`
    pictures, scaled to `pixels` a side (paper 001 §8.2), and with a backbone of its vectors.

    Both are of the same images, spread evenly over the split. The table has a row for each:
    {of, n, dim, components_90, components_95, singular_90}; the last is the number by the paper's
    own formula, whose shares are of singular values. Raises BadInput, NotCached.
    """
    if pixels < 2 or images < 2:
        raise BadInput("principal components need at least 2 images of at least 2 pixels a side")
    of_vectors = [view != "none", *(value is not None for value in setting.values())]
    if not backbone and any(of_vectors):
        raise BadInput("a view and settings are of vectors; say whose by --backbone NAME")
    dataset = open_dataset(data)
    rows = spread(different(labelled_rows(dataset, [split], progress)), images)
    folder = study_folder(out)
    vectors = None
    if backbone:
        wanted = find_view(view, seed)
        rows, vectors = cached_vectors(rows, backbone, wanted, data, cache, setting)
    flat, kept = [], []
    for place, picture in pictures_of(dataset, rows, progress):
        scaled = Image.fromarray(picture).resize((pixels, pixels))
        flat.append(np.asarray(scaled, np.float32).reshape(-1, 3) / 255)
        kept.append(place)
    if len(flat) < 2:
        raise BadInput(f"split {split!r} of {data} has fewer than 2 images that can be decoded")
    stacked = np.stack(flat)
    parts = {f"pixels, {name}": stacked[:, :, place] for place, name in enumerate(CHANNELS)}
    if vectors is not None:
        parts[f"vectors, {backbone}" + ("" if view == "none" else f", {view}")] = vectors[kept]
    table, curves = [], {}
    for place, (name, part) in enumerate(parts.items()):
        progress(place, len(parts), "principal components")
        variance = projections.variances(part)
        curves[name] = projections.retained(variance)
        by_singular = projections.retained_singular(variance)
        table.append(
            {"of": name, "n": len(part), "dim": part.shape[1]}
            | {
                f"components_{share * 100:.0f}": projections.components_for(curves[name], share)
                for share in SHARES
            }
            | {"singular_90": projections.components_for(by_singular, 0.9)}
        )
    progress(len(parts), len(parts), "principal components")
    title = f"Variance that principal components keep, {len(stacked):,} images of {split}"
    lines = [
        (name, number, float(share))
        for name, curve in curves.items()
        for number, share in enumerate(curve, 1)
    ]
    files = write_study(
        folder,
        "pca",
        title,
        figures.retained(curves, SHARES),
        ["of", "components", "retained"],
        lines,
        {f"{row['of']}: components for 90%": row["components_90"] for row in table}
        | {"table": table},
    )
    return Study("pca", files, len(stacked), table, unread(len(rows) - len(kept)))
