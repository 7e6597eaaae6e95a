"""Train one network into a run folder, from which a killed training resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurecache import versions
from featurecache.executors import Progress
from featurecache.features.backbones import load_backbone
from featurecache.features.trained_networks import TrainedNetwork, save_network
from featurecache.generator_files import NETWORK_CHECKPOINT, TrainedGenerator
from featurecache.generators.augnet import FrozenAugNet
from featurecache.generators.trained_generators import save_generator
from featurecache.heads.head_networks import HeadNetworks
from featurecache.heads.trained_items import TrainedItems, root_of
from featurecache.images.datasets import name_of
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.training import Request, TrainingRows, train_network
from featurecache.runs.generated_vectors import with_seen_items
from featurecache.runs.network_data import NetworkData, schedule_of_config
from featurecache.runs.network_parts import NetworkParts, network_parts
from featurecache.runs.record import (
    STARTED,
    RunRecord,
    claimed_training,
    finished_record,
    schedule_of,
    write_run,
)
from featurecache.runs.sources import source_fields
from featurecache.runs.training_pictures import view_in_epoch
from featurecache.runs.training_warnings import phase_warnings
from featurecache.stages.cache.featurize import featurize
from featurecache.storage import durable
from featurecache.training.devices import device_of, warn_of_slow_bf16
from featurecache.training.epoch_metrics import EpochRow, read_epochs, results_of
from featurecache.training.tensors import digest_of_tensors
from featurecache.yaml_files import yaml_text

MAX_PARTNERS = 256 << 20  # bytes of the pictures of partners in a saved AugNet


@dataclass(frozen=True, kw_only=True)
class Means:
    """How networks are trained: on which device, with how many processes that make pictures. The
    name of a run is looked up in `runs`."""

    device: str
    workers: int
    progress: Progress
    runs: str | Path


@dataclass(frozen=True, kw_only=True)
class NetworkTraining:
    """A network to train in the folder `run`. Of several trainings `is_part` is true."""

    config: NetworkConfig
    rows: TrainingRows
    run: Path
    is_part: bool = False

    @property
    def pictures(self) -> list[int]:
        """How many pictures each epoch shows."""
        return self.config.pictures_per_epoch(len(self.rows.train))


def train_run(
    training: NetworkTraining,
    data: NetworkData,
    means: Means,
    parts: NetworkParts | None = None,
    on_trained: Callable[[RunRecord], None] = lambda record: None,
) -> RunRecord:
    """The record of a finished training. `parts` are those of its configuration, untrained, if the
    caller has them. `on_trained` is called before the record says that the training is finished.
    Raises Divergence."""
    parts = parts or network_parts(training.config, training.rows.classes, means.runs)
    effective = parts.config.as_json()
    rows, run = training.rows, training.run
    others: dict[str, Any] = {}
    if training.is_part:  # the seed of another configuration decided the split
        others = {"fold": rows.fold, "val": root_of(data.training.items[rows.val])}
    identity = data.identity(parts, effective, **others)

    def waiting(why: str) -> None:
        means.progress(0, sum(training.pictures), f"train-network ({why})")

    with claimed_training(run, lambda: finished_record(run, identity), waiting) as done:
        if done is not None:
            return done
        began = time.time()
        record = new_record(data, parts, identity, run, [rows])
        if training.is_part:
            record.data["fold"] = rows.fold
        write_run(run, record)
        write_config(run, effective)
        epochs = _train(training, parts, data, means, identity)
        record.notes += parts.initial.notes
        weights = digest_of_tensors(parts.initial.module.eval())
        preprocess = parts.initial.preprocess
        trained_on = _seen_items(data, [rows]).common_items
        is_as_before = weights == record.backbones[0]["key"]["weights"]
        if is_as_before and not any(s.kind == "network" for s in data.training.fitted):
            trained_on = trained_on[:0]  # its tensors are the published ones
        described = TrainedNetwork(
            model=parts.initial.model,
            weights=weights,
            input_size=preprocess.input_size,
            crop=preprocess.crop,
            interpolation=preprocess.interpolation,
            items=root_of(trained_on),
        )
        save_network(run, parts.initial.module, described)
        shape = parts.config.head
        HeadNetworks(members=[parts.head.eval()], classes=rows.classes, spec=shape).save(run)
        save_items(run, data, [rows])
        if parts.network.augmenter is not None:
            _save_augnet(run, parts, data, rows, means.workers)
        results = results_of(epochs, parts.config.early_stopping is not None)
        record.best, record.last = dict(results.best), dict(results.last)
        record.backbones[0]["key"] = load_backbone(str(run)).key()
        on_trained(record)
        record.seconds = round(time.time() - began, 3)
        record.warnings = phase_warnings(schedule_of(record), read_epochs(run))
        write_run(run, record)
        (run / NETWORK_CHECKPOINT).unlink(missing_ok=True)
    return record


def _train(
    training: NetworkTraining, parts: NetworkParts, data: NetworkData, means: Means, identity: str
) -> list[EpochRow]:
    """Train the parts in place; they end on the CPU."""
    total, done = sum(training.pictures), 0
    text = "train-network"
    device = device_of(means.device)
    warn_of_slow_bf16(parts.config.precision, device.type)
    parts.network.to(device)

    def on_epoch(row: EpochRow) -> None:
        nonlocal done, text
        done = sum(training.pictures[: row["epoch"]])
        text = f"train-network ({row['val_top1']:.4f})"
        means.progress(done, total, text)

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        means.progress(done, total, text)

    epochs = train_network(
        parts.network,
        data.source(parts.config, parts, means.workers),
        training.rows,
        parts.config,
        training.run,
        identity,
        on_images=on_images,
        on_epoch=on_epoch,
    )
    parts.network.cpu()
    return epochs


def new_record(
    data: NetworkData,
    parts: NetworkParts,
    identity: str,
    run: Path,
    folds: Sequence[TrainingRows],
) -> RunRecord:
    """The record of a training that is about to begin."""
    training, dataset = data.training, data.training.dataset
    seen = _seen_items(data, folds)
    return RunRecord(
        identity=identity,
        schedule=schedule_of_config(parts.config, str(run)).as_json(),
        network=parts.config.as_json(),
        classes=list(dataset.classes),
        words=dict(dataset.words),
        backbones=[{"name": str(run), "key": parts.initial.key(), "precision": "f32"}],
        spaces={},
        rows=training.rows_hash(),
        data={
            "given": name_of(data.origin),
            "layout": dataset.layout,
            "rows": len(training.rows),
            "train_items": root_of(seen.common_items if len(folds) == 1 else seen.items),
            **source_fields(dataset, data.cache.root, run),
        },
        versions=versions.installed_versions("featurecache", "torch", "timm", "numpy"),
        started=time.strftime(STARTED, time.gmtime()),
        notes=list(training.notes),
    )


def fill_validation(
    record: RunRecord, networks: Sequence[Path], run: Path, data: NetworkData, means: Means
) -> None:
    """Compute the networks' vectors of the validation images, and of those of split `val`, and note
    them in the record, so that `evaluate` and `report` work at once."""
    schedule = schedule_of(record)
    view = view_in_epoch(schedule.validation.view, 1)
    present = ["val"] if "val" in data.training.dataset.splits else []
    for split in dict.fromkeys([*present, schedule.splits[-1]]):
        filled = featurize(
            data.origin, policy=view, backbone=[str(network) for network in networks],
            cache=data.cache.root, seed=schedule.augment_seed, split=split,
            workers=means.workers, progress=means.progress,
        )  # fmt: skip
    record.spaces = {view: [space["space"] for space in filled.spaces]}
    maps = [space.name for space in data.spaces.values()]
    data.cache.note_run(run, [*record.spaces[view], *maps])


def save_items(run: Path, data: NetworkData, folds: Sequence[TrainingRows]) -> None:
    """Write which images the networks of a run were trained on."""
    _seen_items(data, folds).save(run)


def _seen_items(data: NetworkData, folds: Sequence[TrainingRows]) -> TrainedItems:
    """The images of the folds, and those that were seen before: by generators of their views and
    datasets, and by what the training starts from."""
    pairs = [(rows.train, rows.val) for rows in folds]
    seen = TrainedItems.from_pairs(data.training.items, pairs)
    return with_seen_items(seen, data.training.seen_items())


def write_config(run: Path, effective: dict[str, Any]) -> None:
    durable.replace(run / "config.yaml", yaml_text(effective).encode())


def _save_augnet(
    run: Path, parts: NetworkParts, data: NetworkData, rows: TrainingRows, workers: int
) -> None:
    """Write AugNet with the images that it was trained on and, unless its pairs are the same image
    twice, pictures of them as partners: the first ones of each class, by hash, if not all fit."""
    setting, trained = parts.config.neural_augmentation, parts.network.augmenter
    assert setting is not None and trained is not None
    preprocess, classes = parts.initial.preprocess, list(rows.classes)
    size, items = preprocess.input_size, data.training.items
    _, first = np.unique(items[rows.train].view("V32").ravel(), return_index=True)
    images = rows.train[first] if setting.pairs == "random" else rows.train[:0]
    labels = rows.labels[images]
    limit = max(1, MAX_PARTNERS // (len(classes) * 3 * size**2))
    members = [images[labels == label][:limit] for label in range(len(classes))]
    partners = np.concatenate(members)

    network = FrozenAugNet(size, len(images), len(partners))
    network.network.load_state_dict(trained.state_dict())
    network.mean.copy_(torch.tensor(preprocess.mean).reshape(3, 1, 1))
    network.std.copy_(torch.tensor(preprocess.std).reshape(3, 1, 1))
    network.images.copy_(torch.from_numpy(items[images]))
    network.labels.copy_(torch.from_numpy(labels))
    network.partner_labels.copy_(torch.from_numpy(rows.labels[partners]))
    blocks = np.split(partners, range(64, len(partners), 64)) if len(partners) else []
    source = data.source(parts.config, parts, workers)
    requests = (Request(block, ["none"] * len(block), 1) for block in blocks)
    start = 0
    for pictures in source(requests):
        network.partners[start : start + len(pictures)] = torch.from_numpy(pictures)
        start += len(pictures)
    parameters = {"pairs": setting.pairs, "images": len(images), "partners": len(partners)}
    described = TrainedGenerator(
        kind="transform",
        generator="augnet",
        parameters=parameters,
        image_size=size,
        classes=classes,
        weights=digest_of_tensors(network),
        items=root_of(_seen_items(data, [rows]).common_items),
    )
    save_generator(run, network, described)
