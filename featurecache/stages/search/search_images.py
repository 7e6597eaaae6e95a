"""The images of a search, and their vectors in any view, which are computed once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from featurecache.errors import BadInput, UnknownName
from featurecache.executors import Progress
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.features.trained_networks import trained_network
from featurecache.heads.splits import split_items
from featurecache.images.datasets import Dataset
from featurecache.images.operations import written_view
from featurecache.images.policies import Policy
from featurecache.images.views import find_view
from featurecache.lookup.held_spaces import OPTIONS, side_by_side, spaces_of
from featurecache.lookup.labelled_rows import (
    LabelledRow,
    LabelledRows,
    decodable,
    labelled_rows,
    training_rows,
)
from featurecache.runs.training_data import TrainingData
from featurecache.seen_items import ItemSource, items_of_network, refuse_seen
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.search.search_config import NONE, SearchConfig


@dataclass(frozen=True, kw_only=True)
class SearchImages:
    """`sample` is seen through every operation, `validation` chooses, `judged` judges. Heads that
    are judged are trained on `training`. No image is in two of the last three."""

    sample: LabelledRows
    training: LabelledRows
    validation: LabelledRows
    judged: LabelledRows
    notes: list[str]

    def decoded(
        self, spaces: Mapping[str, Sequence[Space]], augmented: Literal["sample", "training"]
    ) -> SearchImages:
        """Without images that could not be decoded: in any of these spaces, where `augmented` names
        the part that they hold; in that of `none` otherwise."""
        every = [space for group in spaces.values() for space in group]
        validation = decodable(self.validation, spaces[NONE])
        if augmented == "sample":
            return replace(self, sample=decodable(self.sample, every), validation=validation)
        judged, training = decodable(self.judged, spaces[NONE]), decodable(self.training, every)
        return replace(self, training=training, validation=validation, judged=judged)


def choose_images(config: SearchConfig, dataset: Dataset, progress: Progress) -> SearchImages:
    """The images of a search; a larger sample has all images of a smaller one. Raises BadInput if
    there are too few."""
    if dataset.generated:
        raise BadInput(
            f"{dataset.generated[0]}: has generated images, whose generator may have seen those "
            "that choose or judge; search on real ones"
        )
    split = config.validation.split
    for key, name in (("judge.split", config.judge.split), ("validation.split", split)):
        if name is not None and name not in dataset.splits:
            known = [other for other in dataset.splits if other != "train"]
            raise UnknownName("split", name, known, where=f"{dataset}: {key}")
    judged = labelled_rows(dataset, [config.judge.split], progress)
    labelled = labelled_rows(dataset, config.splits, progress)
    rows, notes, _ = training_rows(dataset, config.splits, labelled, (), progress)
    training = rows.where(rows.is_train)
    validation = rows.where(~rows.is_train & ~rows.are_in({row.item for row in judged}))
    if split is None:
        ((fit, held_out),) = split_items(
            training.items, training.labels, config, dataset.classes, training.groups
        )
        training, validation = training.where(fit), training.where(held_out)
    if not validation:
        raise BadInput(f"validation: split {split} has no image that {config.judge.split} lacks")
    first = {row.item: row for row in reversed(training)}
    distinct = LabelledRows.pack([*reversed(first.values())])
    if len(np.unique(distinct.labels)) < 2:
        raise BadInput("all training images are of one class; a search needs at least two")
    _refuse_seen_by_networks(config, validation, judged)
    largest = int(np.bincount(distinct.labels).max(initial=0))
    for name, count in (("sample", config.sample), ("judge.sample", config.judge.sample or 0)):
        if count > largest:
            raise BadInput(
                f"{name}: {count} images per class, but no class has more than {largest} training "
                "images beside the validation images; lower it"
            )
    return SearchImages(
        sample=_sampled(distinct, config.sample, config.seed),
        training=_sampled(distinct, config.judge.sample or largest, config.seed),
        validation=validation,
        judged=judged,
        notes=notes,
    )


def _refuse_seen_by_networks(
    config: SearchConfig, validation: LabelledRows, judged: LabelledRows
) -> None:
    """Raise BadInput if a backbone was trained on images that choose or judge."""
    seen = {
        ItemSource(f"backbone {choice.name}", "network"): frozenset(
            items_of_network(Path(choice.name))
        )
        for choice in config.backbone
        if trained_network(choice.name) is not None
    }
    refuse_seen(seen, (row.item for row in validation), "validation images")
    refuse_seen(seen, (row.item for row in judged), f"images of {config.judge.split}")


def _sampled(rows: LabelledRows, count: int, seed: int) -> LabelledRows:
    """At most `count` of the rows of each class, those with the smallest hashes."""
    taken: Counter[int] = Counter()
    chosen = set()
    for row in sorted(rows, key=lambda row: hashlib.sha256(b"%d " % seed + row.item).digest()):
        if taken[row.label] < count:
            taken[row.label] += 1
            chosen.add(row.item)
    return rows.where(rows.are_in(chosen))


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Reads the vectors of a search from a cache, where it computes those that are missing."""

    config: SearchConfig
    dataset: Dataset
    cache: Cache
    engine: str
    workers: int | None
    progress: Progress

    def embed(self, rows: Sequence[LabelledRow], views: Sequence[str]) -> dict[str, list[Space]]:
        """The spaces of each view, one per backbone, once they hold these rows."""
        ids = {(row.split, row.id) for row in rows}
        samples = tuple(s for s in self.dataset.samples if (s.split, s.id) in ids)
        part = replace(self.dataset, samples=samples, location="")
        seed = self.config.augment_seed
        for choice in self.config.backbone:
            setting = choice.model_dump(include=set(OPTIONS), exclude_none=True)
            featurize(
                part, policy=views, backbone=choice.name, cache=self.cache.root,
                engine=self.engine, seed=seed, progress=self.progress, workers=self.workers,
                **setting,
            )  # fmt: skip
        wanted = {name: find_view(name, seed, self.cache.views) for name in views}
        items = [row.item for row in rows]
        return spaces_of(self.cache, wanted, self.config.backbone, items, self.dataset)

    def embed_policies(
        self, rows: Sequence[LabelledRow], policies: Mapping[str, Policy], run: Path
    ) -> dict[str, list[Space]]:
        """The spaces of draw 1 of each policy, whose file is in the folder of the run."""
        views = {name: written_view(policy, run / "policies") for name, policy in policies.items()}
        spaces = self.embed(rows, list(views.values()))
        return {name: spaces[view] for name, view in views.items()}

    def training_data(
        self,
        training: LabelledRows,
        others: Sequence[LabelledRow],
        spaces: Mapping[str, Sequence[Space]],
    ) -> TrainingData:
        """The rows to train on in all of the views, and the others, which are clean in each."""
        rows = LabelledRows.pack([*training, *others])
        clean = side_by_side(spaces[NONE], rows.items)
        vectors = {}
        for view, group in spaces.items():
            vectors[view] = clean.copy()
            vectors[view][: len(training)] = side_by_side(group, training.items)
        pair = np.arange(len(training)), np.arange(len(training), len(rows))
        return TrainingData(
            dataset=self.dataset, rows=rows, spaces={}, vectors=vectors,
            pairs=[pair], notes=[], copies={},
        )  # fmt: skip
