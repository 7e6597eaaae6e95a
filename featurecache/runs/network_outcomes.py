"""Which validation images a network gets right after a training whose files are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featurecache.executors import Progress
from featurecache.executors.pool import checked_workers
from featurecache.features.store import Cache
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.views import View
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.training import Request, Source, TrainingRows, train_network
from featurecache.runs.network_data import NetworkData, load_network_data
from featurecache.runs.network_parts import NetworkParts, network_parts
from featurecache.runs.training_pictures import pictured_views
from featurecache.training.devices import device_of


@dataclass(frozen=True, kw_only=True)
class NetworkOutcomes:
    """Trains variants of a configuration on the same images."""

    data: NetworkData
    folds: list[TrainingRows]
    base: str  # a hash of the images, their views, and the network before its training
    runs: str | Path  # where the name of a run is looked up

    def right(
        self, config: NetworkConfig, scratch: Path, device: str, show: Callable[[int], None]
    ) -> tuple[np.ndarray, float]:
        """(N,) bool for the validation rows of all folds, and the seconds of the training. A killed
        one resumes from `scratch`."""
        parts_of_rows, epochs_done, seconds = [], 0, 0.0
        for rows in self.folds:
            parts = network_parts(config, rows.classes, self.runs)
            parts.network.to(device_of(device))
            source = self.data.source(config, parts, checked_workers(None))
            folder = scratch / f"fold-{rows.fold}"
            folder.mkdir(parents=True, exist_ok=True)
            effective = parts.config.as_json()
            identity = self.data.identity(parts, effective, fold=rows.fold)
            epochs = train_network(
                parts.network, source, rows, parts.config, folder, identity,
                on_epoch=lambda row, before=epochs_done: show(before + row["epoch"]),  # type: ignore[misc]
            )  # fmt: skip
            epochs_done += len(epochs)
            seconds += sum(row["seconds"] for row in epochs)
            parts_of_rows.append(_correct_rows(parts, source, rows))
        return np.concatenate(parts_of_rows), seconds


def network_outcomes(
    config: NetworkConfig,
    variants: Sequence[NetworkConfig],
    data: DataSource,
    cache: Cache,
    progress: Progress,
    runs: str | Path,
) -> NetworkOutcomes:
    """The images of a configuration, in the views of all `variants`. Raises BadInput, NotCached."""
    views: dict[str, View] = {}
    for variant in variants:
        views |= pictured_views(variant, cache)
    parts = network_parts(config, open_dataset(data).classes, runs)
    loaded = load_network_data(parts, views, data, cache, checked_workers(None), progress)
    return NetworkOutcomes(
        data=loaded, folds=loaded.folds(config), base=loaded.identity(parts, {}), runs=runs
    )


@torch.no_grad()
def _correct_rows(parts: NetworkParts, source: Source, rows: TrainingRows) -> np.ndarray:
    """(N,) bool: whether the network classifies each of the validation rows correctly."""
    config, network = parts.config, parts.network.eval()
    device, half = next(network.parameters()).device.type, config.precision == "bf16"
    blocks = np.split(rows.val, range(config.batch_size, len(rows.val), config.batch_size))
    requests = (Request(block, [config.validation.view] * len(block), 1) for block in blocks)
    right = []
    with (
        contextlib.closing(source(requests)) as feed,
        torch.autocast(device, torch.bfloat16, enabled=half),
    ):
        for block, batch in zip(blocks, feed, strict=True):
            classes = network(network.inputs(batch)).argmax(1)
            right.append(classes.cpu().numpy() == rows.labels[block])
    return np.concatenate(right)
