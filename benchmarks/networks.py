"""Training of networks: against a loop of timm's own parts, and from maps against from pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import timm.optim
import torch
from torch.nn import functional

from benchmarks.datasets import tiny_imagenet
from benchmarks.harness import OURS, Case, Check, Setting, compare
from featurecache.executors.pool import checked_workers
from featurecache.features.initial_networks import InitialNetwork, initial_network
from featurecache.features.store import Cache
from featurecache.heads.head_networks import build
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.views import View
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.training import Source, TrainingRows, train_network
from featurecache.runs.network_parts import trainable_parts
from featurecache.runs.training_maps import map_source, map_spaces
from featurecache.runs.training_pictures import PictureMaker, picture_source
from featurecache.stages.cache.featurize import featurize
from featurecache.training.epoch_metrics import EpochRow

LITE0, LAYER, FIRST = "efficientnet_lite0", "blocks.5", "blocks.6"


class _Images:
    """The images of a dataset's splits train and val, and a network that can be trained again."""

    def __init__(self, dataset: Dataset, config: dict[str, Any], initial: InitialNetwork) -> None:
        self.dataset, self.initial = dataset, initial
        self.config = NetworkConfig.model_validate(config)
        train, val = dataset.split("train"), dataset.split("val")
        self.images = [(sample, sample.item()) for sample in (*train, *val)]
        numbers = np.arange(len(self.images))
        self.rows = TrainingRows(
            labels=np.array([sample.label for sample, _ in self.images], np.int64),
            train=numbers[: len(train)],
            val=numbers[len(train) :],
            classes=dataset.classes,
        )
        head = build(initial.dim, len(dataset.classes), self.config.head)
        self.network = trainable_parts(self.config, initial, head)
        state = self.network.trained_state()
        self._start = {name: tensor.clone() for name, tensor in state.items()}

    def pictures(self, cache: Path) -> Source:
        maker = PictureMaker(Cache(cache), 0, self.initial.preprocess)
        return picture_source(maker, self.images, checked_workers(None))  # type: ignore[return-value]

    def train(self, source: Source, folder: Path) -> EpochRow:
        """Train for the epochs of the configuration, always from the same weights."""
        self.network.load_trained_state(self._start)
        folder.mkdir()
        return train_network(self.network, source, self.rows, self.config, folder, "bench")[-1]


def network_train(setting: Setting) -> list[Case]:
    """One epoch of resnet18 at 64 pixels from random weights, with its validation, against a loop
    of timm's own parts: `timm.data.create_loader`, `create_optimizer_v2` and cross-entropy, in
    channels-last order, with as many workers. timm's script train.py is not part of its package;
    it runs the same parts, and more."""
    data = tiny_imagenet(setting, 5, 1)
    network: dict[str, Any] = {"name": "resnet18", "input_size": setting.size(64, 32), "crop": 1.0}
    optimizer = {"name": "sgd", "lr": 0.01, "weight_decay": 0.0}
    config = {
        "network": network,
        "optimizer": optimizer,
        "batch_size": setting.size(64, 4),
        "epochs": 1,
        "validation": "val",
    }
    size = int(network["input_size"])
    initial = initial_network("resnet18", "random", input_size=size, crop=1.0)
    ours = _Images(open_dataset(data), config, initial)
    folders = (setting.folder / f"run-{number}" for number in itertools.count())

    def timms() -> float:
        return _timm_epoch(ours, size)

    seconds, results = compare(
        {OURS: lambda: ours.train(ours.pictures(setting.folder / "cache"), next(folders)),
         "timm's loader and optimizer": timms},
        setting.repeats,
    )  # fmt: skip
    mine, theirs = results[OURS]["train_loss"], results["timm's loader and optimizer"]
    check = Check(
        f"mean training losses: {mine:.3f}, timm's {theirs:.3f}", abs(mine - theirs) < 0.5
    )
    return [Case(f"resnet18, {size} px", seconds, len(ours.images), checks=[check])]


class _Pictures(torch.utils.data.Dataset[Any]):
    """What timm's loader reads: (PIL image, label)."""

    def __init__(self, images: _Images, rows: np.ndarray) -> None:
        self._samples = [images.images[row][0] for row in rows]
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import io

        from PIL import Image

        sample = self._samples[index]
        picture = Image.open(io.BytesIO(sample.read())).convert("RGB")
        assert self.transform is not None and sample.label is not None
        return self.transform(picture), sample.label


def _timm_epoch(images: _Images, size: int) -> float:
    """The mean training loss of an epoch of timm's parts, with its validation."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=len(images.dataset.classes))
    model = model.to(memory_format=torch.channels_last)
    optimizer = timm.optim.create_optimizer_v2(model, "momentum", lr=0.01, momentum=0.9)
    loaders = [
        timm.data.create_loader(
            _Pictures(images, rows),
            (3, size, size),
            images.config.batch_size,
            is_training=is_training,
            no_aug=True,
            use_prefetcher=False,
            num_workers=checked_workers(None),
            crop_pct=1.0,
            persistent_workers=False,
            device=torch.device("cpu"),
        )
        for rows, is_training in ((images.rows.train, True), (images.rows.val, False))
    ]
    losses = []
    model.train()
    for x, target in loaders[0]:
        loss = functional.cross_entropy(model(x.to(memory_format=torch.channels_last)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.inference_mode():
        for x, target in loaders[1]:
            functional.cross_entropy(model(x.to(memory_format=torch.channels_last)), target).item()
    return float(np.mean(losses))


def suffix_from_maps(setting: Setting) -> list[Case]:
    """The last layers of Lite0, from blocks.6 on, trained for an epoch from cached maps of
    blocks.5, and from pictures, whose first layers run frozen in each step: the same loop, the
    same minibatches, the same initial weights."""
    data = tiny_imagenet(setting, 1, 1)
    size = setting.size(224, 64)
    config = {"network": {"name": LITE0, "pretrained": True, "input_size": size},
              "trainable": {"from": FIRST}, "optimizer": {"lr": 1e-4}, "batch_size": 32,
              "epochs": 1, "validation": "val"}  # fmt: skip
    images = _Images(open_dataset(data), config, initial_network(LITE0, None, input_size=size))
    cache = setting.folder / "cache"
    featurize(
        data, policy="none", backbone=LITE0, input_size=size, layer=LAYER, pooling="none",
        cache=cache,
    )  # fmt: skip
    items = [item for _, item in images.images]
    key = images.initial.key() | {"layer": LAYER, "pooling": "none"}
    spaces = map_spaces(Cache(cache), {"none": View(None)}, LITE0, key, items, data)
    maps: Source = map_source(spaces, items)  # type: ignore[assignment]
    folders = (setting.folder / f"run-{number}" for number in itertools.count())
    seconds, results = compare(
        {OURS: lambda: images.train(maps, next(folders)),
         "from pictures": lambda: images.train(images.pictures(cache), next(folders))},
        setting.repeats,
    )  # fmt: skip
    ours, theirs = (results[side] for side in (OURS, "from pictures"))
    difference = max(
        abs(ours["train_loss"] / theirs["train_loss"] - 1),
        abs(ours["val_loss"] / theirs["val_loss"] - 1),
    )
    check = Check(f"losses differ by {difference:.1e}, relative", difference < 1e-5)
    return [
        Case(
            f"EfficientNet-Lite0 from {FIRST}, {size} px", seconds, len(images.images),
            checks=[check], figures={"relative difference of losses": difference},
        )
    ]  # fmt: skip
