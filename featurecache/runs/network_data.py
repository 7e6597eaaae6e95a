"""The data of networks in training: the images with their labels, and their pictures or maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featurecache import keys
from featurecache.executors import Progress
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.request import check_first_picture
from featurecache.heads.schedules import Schedule
from featurecache.images.datasets import Dataset, DataSource, names_of, open_dataset
from featurecache.images.samples import Sample, sources_of
from featurecache.images.view_names import ViewName
from featurecache.images.views import View
from featurecache.lookup.labelled_rows import items_by_split, labelled_rows
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.training import Source, TrainingRows
from featurecache.runs.held_out import seen_by_run
from featurecache.runs.network_parts import NetworkParts
from featurecache.runs.training_data import TrainingData, choose_rows
from featurecache.runs.training_maps import map_source, map_spaces
from featurecache.runs.training_pictures import (
    PictureMaker,
    picture_source,
    undecodable,
)
from featurecache.seen_items import (
    Fitted,
    ItemSource,
    fitted_items,
    noted_network,
    refuse_unseen,
)
from featurecache.settings import command_line
from featurecache.training.curriculum import TrainingPlan
from featurecache.training.tensors import digest_of_tensors


@dataclass(frozen=True, kw_only=True)
class NetworkData:
    """What the trainings of a configuration share. `spaces` holds the maps of each view; it is
    empty if pictures are read."""

    origin: DataSource
    cache: Cache
    training: TrainingData
    sources: Mapping[bytes, Sample]  # by item
    views: Mapping[str, View]
    spaces: Mapping[str, Space]

    def folds(self, config: NetworkConfig) -> list[TrainingRows]:
        """The rows of each fold. Raises BadInput for rows that can't be validated so."""
        pairs = self.training.folds(schedule_of_config(config, config.network.name))
        classes, labels = self.training.dataset.classes, self.training.labels
        for train, _ in pairs:
            items = (row.tobytes() for row in self.training.items[train])
            refuse_unseen(self.training.fitted, self.views, items)
        return [
            TrainingRows(labels=labels, train=train, val=val, classes=classes, fold=number)
            for number, (train, val) in enumerate(pairs, 1)
        ]

    def source(self, config: NetworkConfig, parts: NetworkParts, workers: int) -> Source:
        """Makes the pictures, or reads the maps, of minibatches."""
        items = [item.tobytes() for item in self.training.items]
        if self.spaces:
            return map_source(self.spaces, items)
        maker = PictureMaker(self.cache, config.augment_seed, parts.initial.preprocess)
        return picture_source(maker, [(self.sources[item], item) for item in items], workers)

    def identity(self, parts: NetworkParts, effective: keys.Json, **others: Any) -> str:
        """A hash of all that determines a training with this `effective` configuration."""
        initial = parts.initial
        return keys.digest(
            {
                "config": effective,
                "classes": list(self.training.dataset.classes),
                "rows": self.training.rows_hash(),
                "network": [initial.model, digest_of_tensors(initial.module)],
                "head": digest_of_tensors(parts.head),
                "views": {name: view.key() for name, view in self.views.items()},
                "decode": keys.DECODE_RULE,
                "maps": {view: space.name for view, space in self.spaces.items()},
                **others,
            }
        )


def load_network_data(
    parts: NetworkParts,
    views: Mapping[str, View],
    data: DataSource,
    cache: Cache,
    workers: int,
    progress: Progress,
) -> NetworkData:
    """The images that can be decoded, and their maps if those are read. Raises BadInput, or
    NotCached for missing maps."""
    config, dataset = parts.config, open_dataset(data)
    pairs = [*items_by_split(dataset, config.splits, progress)]
    sources = sources_of([sample for sample, _ in pairs], [item for _, item in pairs])
    spaces: dict[str, Space] = {}
    if config.maps is not None:
        spaces = map_spaces(
            cache,
            views,
            config.network.name,
            parts.map_key(),
            list(sources),
            data,
            config.network.weights,
        )
        bad = {i: why for space in spaces.values() for i, why in space.failures(sources).items()}
    else:
        made = [view for view in views.values() if view.policy and view.policy.generators]
        check_first_picture(made, [*sources.values()], [*sources])
        bad = undecodable([(s, item) for item, s in sources.items()], workers, progress)
    rows = labelled_rows(dataset, config.splits, progress)
    rows = rows.where(~rows.are_in(bad))
    training = choose_rows(config, dataset, rows, {}, progress)
    fitted = {**training.fitted, **fitted_items(cache, views), **_seen_by_start(parts, cache)}
    training = replace(training, fitted=fitted)
    training.notes.extend(f"{sources[item].id}: {reason}" for item, reason in bad.items())
    if config.maps is None:
        training.notes.extend(_notes_on_repeated_work(views, cache, data))
    return NetworkData(
        origin=data, cache=cache, training=training, sources=sources, views=views, spaces=spaces
    )


def _seen_by_start(parts: NetworkParts, cache: Cache) -> Fitted:
    """The images that the network and the head were trained on from which a training starts."""
    spec = parts.config.network
    noted = noted_network(cache.store, parts.initial.key()["weights"])
    seen = {source: seen_by_run(run) for source, run in parts.initial_runs.items()}
    if noted and not any(source.kind == "network" for source in seen):
        seen[ItemSource(f"network {spec.weights or spec.name}", "network")] = frozenset(noted)
    return seen


def _notes_on_repeated_work(
    views: Mapping[str, View], cache: Cache, data: DataSource
) -> Iterator[str]:
    """A note for each view that a generator makes again in each epoch, to the same pictures."""
    for name, view in views.items():
        if view.policy is None or not view.policy.generators or ViewName.parse(name).draw is None:
            continue
        if cache.space(keys.picture_key(view.key()), view.name).count == 0:
            columns = data.columns if isinstance(data, Dataset) else {}
            options = {"view": name, "seed": view.seed or None, **columns}
            command = command_line("augment", data=names_of(data), cache=cache.root, **options)
            yield f"view {name}: its generator runs in each epoch; `{command}` stores its pictures"


def schedule_of_config(config: NetworkConfig, backbone: str) -> Schedule:
    """The training as the schedule of a head on a backbone, as the commands on runs read it."""
    shared = config.as_json(include=set(TrainingPlan.model_fields) - {"sweep"})
    head = config.head.as_json()
    return Schedule.model_validate({"backbone": {"name": backbone}, "head": head, **shared})
