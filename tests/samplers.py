"""Generators with random weights, which take no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurecache import keys
from featurecache.generator_files import TrainedGenerator
from featurecache.generators.architectures import ARCHITECTURES
from featurecache.generators.configs import CONFIGS
from featurecache.generators.trained_generators import save_generator
from featurecache.heads.trained_items import TrainedItems
from featurecache.training.tensors import digest_of_tensors

SMALL: dict[str, dict[str, Any]] = {
    "cyclegan": {"style": "any", "channels": 2, "blocks": 1},
    "wgan": {"noise_size": 3},
    "gaussian": {"backbone": "any", "width": 5},
} | {
    name: {"noise_size": 3, "channels": 1}
    for name in ("wgan_gp", "dcgan", "conditional_dcgan", "projected")
}  # fmt: skip


def write_sampler(
    folder: Path,
    classes: Sequence[str],
    items: Sequence[bytes] = (bytes(32),),
    name: str = "wgan_gp",
    held_out: Sequence[bytes] = (),
) -> Path:
    """The folder of a generator for 16x16 pixels that was fitted on these items."""
    config = CONFIGS[name].model_validate(
        {"generator": name, "image_size": 16, "steps": 1} | SMALL[name]
    )
    torch.manual_seed(0)
    network = ARCHITECTURES[name].build(config.network(), 16, len(classes))
    with torch.no_grad():  # new weights make nearly grey pictures, which may be equal
        for weight in network.parameters():
            weight.mul_(2)
    folder.mkdir(parents=True)
    both = np.frombuffer(b"".join([*items, *held_out]), np.uint8).reshape(-1, 32)
    folds = np.repeat(np.array([0, 1], np.uint16), [len(items), len(held_out)])
    TrainedItems(both, folds).save(folder)
    described = TrainedGenerator(
        kind=config.kind,
        generator=name,
        parameters=config.network(),
        image_size=16,
        classes=list(classes),
        weights=digest_of_tensors(network),
        items=keys.digest(sorted(item.hex() for item in items)),
    )
    save_generator(folder, network, described)
    return folder
