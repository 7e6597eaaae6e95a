"""Vectors of some classes in two dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput, UnknownName
from featurecache.executors import Progress, silent
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.thumbnails import JPEG, thumbnail
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
from featurecache.storage import durable
from featurecache.study import figures, pages, projections

_THUMBNAIL = 64  # pixels


def study_tsne(
    backbone: str = "",
    *,
    classes: str | Sequence[str] = (),
    count: int = 5,
    images: int = 500,
    method: str = "tsne",
    perplexity: float = 30.0,
    view: str = "none",
    split: str = "train",
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    seed: int = 0,
    sampling_seed: int = 0,
    embedding_seed: int = 0,
    out: str | Path = "study",
    progress: Progress = silent,
    **setting: Any,
) -> Study:
    """An embedding of the vectors of some classes, by t-SNE or UMAP, after the components that keep
    90% of their variance (paper 001 §8.3).

    `classes` are names of classes, or readable names, whole or one of them; without any, `count`
    are drawn by `sampling_seed`. `seed` is the one the view was made with, and `embedding_seed`
    that of UMAP (t-SNE starts from the components). Beside the four files of a study there is
    METHOD.html, where each point shows its image.
    The table has a row for each class: {class, name, n}. Raises BadInput, NotCached, MissingExtra.
    """
    projections.check_method(method)
    if not backbone:
        raise BadInput("an embedding needs --backbone NAME; `featurecache ls` lists what is held")
    if not perplexity > 0:
        raise BadInput(f"perplexity {perplexity}: must be above 0")
    seeds = {"sampling_seed": sampling_seed, "embedding_seed": embedding_seed}
    for name, value in seeds.items():
        if not 0 <= value < 2**32:  # scikit-learn takes seeds of 32 bits
            raise BadInput(f"{name} {value}: must be 0 or more, and below 2**32")
    dataset = open_dataset(data)
    named = [classes] if isinstance(classes, str) else classes
    chosen = chosen_classes(dataset, named, count, sampling_seed)
    rows = [row for row in labelled_rows(dataset, [split], progress) if row.label in chosen]
    folder = study_folder(out)
    rows = spread(different(rows), images)
    wanted = find_view(view, seed)
    rows, vectors = cached_vectors(rows, backbone, wanted, data, cache, setting)
    notes = []
    if view == "none" and seed:
        notes.append("--seed is of the view, and none has no seed; --sampling-seed draws classes")
    if not named and count > len(chosen):
        notes.append(f"{dataset.root} has {len(chosen)} classes, fewer than {count}")
    used = min(perplexity, projections.max_perplexity(len(rows)))
    if used < perplexity:
        notes.append(
            f"perplexity {used:.3g} instead of {perplexity:g}: at most a third of the other images"
        )
    embedded, kept = projections.embed(vectors, method, used, embedding_seed)
    names = readable_names(dataset, chosen)
    pictures = {place: thumbnail(p, _THUMBNAIL) for place, p in pictures_of(dataset, rows)}
    shown: list[dict[str, Any]] = [
        {
            "x": float(x),
            "y": float(y),
            "class": names[row.label],
            "path": row.id,
            "src": pages.data_uri(pictures[place], JPEG) if place in pictures else "",
        }
        for place, (row, (x, y)) in enumerate(zip(rows, embedded, strict=True))
    ]
    by = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    title = f"{by} of {len(rows):,} vectors of {backbone}, {len(chosen)} classes, {view}"
    coloured = figures.colours_of(shown)
    files = write_study(
        folder,
        method,
        title,
        figures.scatter(shown, coloured),
        ["x", "y", "class", "path"],
        [[p["x"], p["y"], p["class"], p["path"]] for p in shown],
        {"components for 90%": kept, "images": len(rows), "perplexity": used, "seed": seed}
        | {**seeds, "points": shown},
    )
    page = folder / f"{method}.html"
    points = figures.placed(shown)
    text = pages.page("scatter_page.html", title=title, points=points, colours=coloured)
    durable.replace(page, text.encode("utf-8"))
    table = [
        {"class": dataset.classes[label], "name": names[label]}
        | {"n": sum(row.label == label for row in rows)}
        for label in chosen
    ]
    notes += unread(len(rows) - len(pictures))
    return Study(method, [*files, str(page)], len(rows), table, notes)


def chosen_classes(dataset: Dataset, wanted: Sequence[str], count: int, seed: int) -> list[int]:
    """The labels of the classes that are meant, in the dataset's order."""
    labels = {name: label for label, name in enumerate(dataset.classes)}
    by_word: dict[str, list[int]] = {}
    for name, words in dataset.words.items():
        for word in dict.fromkeys([words, *words.split(", ")]):  # `goldfish, Carassius auratus`
            by_word.setdefault(word, []).append(labels[name])
    if not wanted:
        if count < 1:
            raise BadInput(f"count {count}: must be 1 or more")
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(labels), min(count, len(labels)), replace=False)
        return sorted(int(label) for label in drawn)
    found = set()
    for name in wanted:
        if name not in labels and name not in by_word:
            raise UnknownName("class", name, [*labels, *by_word], str(dataset.root))
        meant = [labels[name]] if name in labels else by_word[name]
        if len(meant) > 1:
            classes = ", ".join(dataset.classes[label] for label in meant)
            raise BadInput(f"class {name!r} means {classes}; give one of these")
        found.add(meant[0])
    return sorted(found)


def readable_names(dataset: Dataset, labels: Sequence[int]) -> dict[int, str]:
    """The readable name of each class, with the class where two of them have the same."""
    read = {label: dataset.words.get(name := dataset.classes[label], name) for label in labels}
    count = Counter(read.values())
    return {
        label: name if count[name] == 1 else f"{name} ({dataset.classes[label]})"
        for label, name in read.items()
    }
