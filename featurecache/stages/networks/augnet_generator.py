"""Save the AugNet of a training as a generator, which policies name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from featurecache.generator_files import TrainedGenerator
from featurecache.generators.augnet import FrozenAugNet
from featurecache.generators.trained_generators import save_generator
from featurecache.heads.trained_items import root_of
from featurecache.networks.training import Request, TrainingRows
from featurecache.runs.network_data import NetworkData
from featurecache.runs.network_parts import NetworkParts
from featurecache.training.tensors import digest_of_tensors

MAX_PARTNERS = 256 << 20  # bytes of their pictures


def save_augnet(
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
        items=root_of(items[rows.train]),
    )
    save_generator(run, network, described)
