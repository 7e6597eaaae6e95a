"""How many principal components retain most of the variance of pixels and of vectors."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from PIL import Image

from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.images.views import find_view
from featurecache.lookup.labelled_rows import labelled_rows
from featurecache.stages.studies.study_files import (
    Study,
    StudyInput,
    cached_vectors,
    pictures_of,
    study_folder,
    study_source,
    unique_rows,
    unread_notes,
    write_study,
)
from featurecache.study import figures, projections
from featurecache.study.sampling import evenly_spaced

CHANNELS = ("red", "green", "blue")
SHARES = (0.9, 0.95)


def study_pca(
    backbone: str = "",
    *,
    view: str = "none",
    split: str = "train",
    images: int = 2000,
    pixels: int = 64,
    seed: int = 0,
    **keywords: Unpack[StudyInput],
) -> Study:
    """Measure the share of the variance that the first principal components retain.

    It is measured for each colour channel of `images` pictures, scaled to `pixels` x `pixels`
    (paper 001 §8.2), and with a backbone also for its vectors of the same images. The images are
    evenly spaced over the split. The table has one row per channel and one for the vectors:
    {of, n, dim, components_90, components_95, singular_90}. `singular_90` follows the paper's
    formula, which takes shares of the singular values. Raises BadInput, NotCached.
    """
    source = study_source(keywords, StudyInput, "study_pca")
    progress = source.progress
    if pixels < 2 or images < 2:
        raise BadInput("principal components need at least 2 images and at least 2 pixels per side")
    vector_options = [view != "none", *(value is not None for value in source.setting.values())]
    if not backbone and any(vector_options):
        raise BadInput("a view or a backbone setting needs --backbone NAME: both select vectors")
    dataset = open_dataset(source.data)
    rows = evenly_spaced(unique_rows(labelled_rows(dataset, [split], progress)), images)
    folder = study_folder(source.out, "pca", source.data)
    vectors = None
    if backbone:
        view_of_vectors = find_view(view, seed, Cache(source.cache).views)
        rows, vectors = cached_vectors(rows, backbone, view_of_vectors, source)
    pixel_rows, indices = [], []
    for index, picture in pictures_of(dataset, rows, progress):
        scaled = Image.fromarray(picture).resize((pixels, pixels))
        pixel_rows.append(np.asarray(scaled, np.float32).reshape(-1, 3) / 255)
        indices.append(index)
    if len(pixel_rows) < 2:
        raise BadInput(f"split {split!r} of {dataset} has fewer than 2 images that can be decoded")
    stacked = np.stack(pixel_rows)
    parts = {f"pixels, {name}": stacked[:, :, index] for index, name in enumerate(CHANNELS)}
    if vectors is not None:
        parts[f"vectors, {backbone}" + ("" if view == "none" else f", {view}")] = vectors[indices]
    table, curves = [], {}
    for index, (name, part) in enumerate(parts.items()):
        progress(index, len(parts), "principal components")
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
    title = f"Variance retained by principal components, {len(stacked):,} images of {split}"
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
    return Study(
        study="pca",
        files=files,
        n=len(stacked),
        table=table,
        notes=unread_notes(len(rows) - len(indices)),
    )
