"""A two-dimensional embedding of the vectors of some classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from featurecache import text
from featurecache.errors import BadInput, UnknownName
from featurecache.features.store import Cache
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.thumbnails import JPEG, thumbnail
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import no_backbone_error
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
from featurecache.storage import durable
from featurecache.study import figures, pages, projections
from featurecache.study.sampling import evenly_spaced
from featurecache.text import listed

_THUMBNAIL = 64  # pixels


class EmbeddingInput(StudyInput, total=False):
    """The keywords of an embedding: the view and the labelled split whose vectors are embedded."""

    view: str  # "none" by default
    split: str  # "train" by default
    seed: int  # of the view; 0 by default


def study_tsne(
    backbone: str = "",
    *,
    classes: str | Sequence[str] = (),
    count: int = 5,
    images: int = 500,
    method: str = "tsne",
    perplexity: float = 30.0,
    sampling_seed: int = 0,
    embedding_seed: int = 0,
    **keywords: Unpack[EmbeddingInput],
) -> Study:
    """Embed the vectors of some classes in two dimensions by t-SNE or UMAP.

    The vectors are first projected onto the principal components that retain 90% of their variance
    (paper 001 §8.3). `classes` are class names or readable names; a readable name may be given in
    full or as one of its comma-separated parts. By default `count` classes are drawn with
    `sampling_seed`. `seed` is the seed of the view. `embedding_seed` is the seed of UMAP; t-SNE
    starts from the principal components. Beside the four files of a study, METHOD.html is written,
    a page where each point shows its image.
    The table has one row per class: {class, name, n}. Raises BadInput, NotCached, MissingExtra.
    """
    source = study_source(keywords, EmbeddingInput, "study_tsne")
    view, split = keywords.get("view", "none"), keywords.get("split", "train")
    seed = keywords.get("seed", 0)
    projections.check_method(method)
    if not backbone:
        raise no_backbone_error("an embedding", source.cache)
    if not perplexity > 0:
        raise BadInput(f"perplexity {perplexity}: must be above 0")
    seeds = {"sampling_seed": sampling_seed, "embedding_seed": embedding_seed}
    for name, value in seeds.items():
        if not 0 <= value < 2**32:  # scikit-learn takes seeds of 32 bits
            raise BadInput(f"{name} {value}: must be at least 0 and below 2**32")
    dataset = open_dataset(source.data)
    class_names = listed(classes)
    chosen = chosen_classes(dataset, class_names, count, sampling_seed)
    rows = [row for row in labelled_rows(dataset, [split], source.progress) if row.label in chosen]
    folder = study_folder(source.out, method, source.data)
    rows = evenly_spaced(unique_rows(rows), images)
    wanted_view = find_view(view, seed, Cache(source.cache).views)
    rows, vectors = cached_vectors(rows, backbone, wanted_view, source)
    notes = []
    if view == "none" and seed:
        notes.append("--seed has no effect on the view `none`; --sampling-seed draws classes")
    if not class_names and count > len(chosen):
        notes.append(f"{dataset.root} has only {len(chosen)} classes")
    used_perplexity = min(perplexity, projections.max_perplexity(len(rows)))
    if used_perplexity < perplexity:
        notes.append(
            f"used perplexity {used_perplexity:.3g} instead of {perplexity:g}: with {len(rows)} "
            "images it can't be higher"
        )
    embedded, components = projections.embed(vectors, method, used_perplexity, embedding_seed)
    names = readable_names(dataset, chosen)
    pictures = {index: thumbnail(p, _THUMBNAIL) for index, p in pictures_of(dataset, rows)}
    points: list[dict[str, Any]] = [
        {
            "x": float(x),
            "y": float(y),
            "class": names[row.label],
            "path": row.id,
            "src": pages.data_uri(pictures[index], JPEG) if index in pictures else "",
        }
        for index, (row, (x, y)) in enumerate(zip(rows, embedded, strict=True))
    ]
    method_name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    title = f"{method_name} of {len(rows):,} vectors of {backbone}, {len(chosen)} classes, {view}"
    colours = figures.colours_of(points)
    files = write_study(
        folder,
        method,
        title,
        figures.scatter(points, colours),
        ["x", "y", "class", "path"],
        [[p["x"], p["y"], p["class"], p["path"]] for p in points],
        {
            "components for 90%": components,
            "images": len(rows),
            "perplexity": used_perplexity,
            "seed": seed,
        }
        | {**seeds, "points": points},
    )
    page = folder / f"{method}.html"
    page_points = figures.scaled_points(points)
    html = pages.page("scatter_page.html", title=title, points=page_points, colours=colours)
    durable.replace(page, html.encode("utf-8"))
    table = [
        {"class": dataset.classes[label], "name": names[label]}
        | {"n": sum(row.label == label for row in rows)}
        for label in chosen
    ]
    notes += unread_notes(len(rows) - len(pictures))
    return Study(study=method, files=[*files, str(page)], n=len(rows), table=table, notes=notes)


def chosen_classes(dataset: Dataset, wanted: Sequence[str], count: int, seed: int) -> list[int]:
    """The labels of the wanted classes, in the dataset's order. If `wanted` is empty, `count`
    classes are drawn with `seed`."""
    labels = {name: label for label, name in enumerate(dataset.classes)}
    labels_by_word: dict[str, list[int]] = {}
    for name, words in dataset.words.items():
        for word in dict.fromkeys([words, *words.split(", ")]):  # `goldfish, Carassius auratus`
            labels_by_word.setdefault(word, []).append(labels[name])
    if not wanted:
        if count < 1:
            raise BadInput(f"count {count}: must be 1 or more")
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(labels), min(count, len(labels)), replace=False)
        return sorted(int(label) for label in drawn)
    chosen = set()
    for name in wanted:
        if name not in labels and name not in labels_by_word:
            raise UnknownName("class", name, [*labels, *labels_by_word], str(dataset.root))
        matches = [labels[name]] if name in labels else labels_by_word[name]
        if len(matches) > 1:
            classes = ", ".join(dataset.classes[label] for label in matches)
            raise BadInput(f"class {name!r} is ambiguous; name one of these: {classes}")
        chosen.add(matches[0])
    return sorted(chosen)


def readable_names(dataset: Dataset, labels: Sequence[int]) -> dict[int, str]:
    """The readable name of each class. If several classes share one, the class name is added."""
    names = {label: text.readable_name(dataset.classes[label], dataset.words) for label in labels}
    count = Counter(names.values())
    return {
        label: name if count[name] == 1 else f"{name} ({dataset.classes[label]})"
        for label, name in names.items()
    }
