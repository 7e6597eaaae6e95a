"""Generators with random weights, which take no training, and caches of what they made."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurecache import keys
from featurecache.features.store import Cache
from featurecache.generator_files import TrainedGenerator
from featurecache.generators.architectures import ARCHITECTURES
from featurecache.generators.configs import CONFIGS
from featurecache.generators.cyclegan import StyleNetwork
from featurecache.generators.trained_generators import save_generator
from featurecache.heads.trained_items import TrainedItems, root_of
from featurecache.images.views import find_view
from featurecache.seen_items import note_sources
from featurecache.training.tensors import digest_of_tensors

SMALL: dict[str, dict[str, Any]] = {
    "cyclegan": {"style": "any", "channels": 2, "blocks": 1},
    "wgan": {"noise_size": 3},
    "gaussian": {"backbone": "any", "width": 5},
} | {
    name: {"noise_size": 3, "channels": 1}
    for name in ("wgan_gp", "dcgan", "conditional_dcgan", "projected")
}  # fmt: skip


def items_in(folder: Path) -> list[bytes]:
    """The items of the images in a folder and the folders below it."""
    return [hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.rglob("*.png"))]


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


def write_generator(
    folder: Path,
    seed: int = 0,
    size: int = 12,
    kind: str = "transform",
    fitted: Sequence[bytes] = (bytes(32),),
) -> Path:
    """A transform that was fitted on these items, for pictures as `write_dataset` makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = StyleNetwork(2, 1)
    items = np.frombuffer(b"".join(fitted), np.uint8).reshape(-1, 32)
    described = TrainedGenerator(
        kind=kind, generator="cyclegan", parameters={"channels": 2, "blocks": 1},
        image_size=size, classes=["cat"], weights=digest_of_tensors(network), items=root_of(items),
    )  # fmt: skip
    save_generator(folder, network, described)
    TrainedItems(items, np.zeros(len(items), np.uint16)).save(folder)
    return folder


def add_view(cache: Path, policy: Path) -> None:
    """Store the first draw of a policy file in a cache. Its vectors are those of `none`."""
    made, view = Cache(cache), find_view(f"{policy}_1")
    (clean,) = (space for space in made.spaces() if space.view == "none")
    note_sources(made, [view])
    key = keys.vector_key(view.key(), clean.key["backbone"], "f32")
    items = [item for record in clean.records for item in record.item_list]
    vectors, _ = clean.vectors(items)
    space = made.space(key, view.name, clean.backbone)
    space.commit(items, {"features": vectors}, {}, clean.records[0].provenance, 1.0)


def styled_cache(folder: Path, cache: Path, fitted: Sequence[bytes]) -> Path:
    """A copy of a cache, with a view `styled_1` by a generator that was fitted on some images. The
    run of the generator is gone."""
    run = write_generator(folder / "run", fitted=fitted)
    (folder / "styled.yaml").write_text(f"generator: {{run: {run}}}")
    made = shutil.copytree(cache, folder / "cache")
    add_view(made, folder / "styled.yaml")
    shutil.rmtree(run)
    return made
