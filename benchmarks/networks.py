"""Training of networks: against a loop of timm's own parts, and from maps against from pictures."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import timm.optim
import timm.scheduler
import timm.utils
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
from featurecache.networks import training
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

    def __init__(
        self, dataset: Dataset, config: dict[str, Any], initial: InitialNetwork, most: int = 200
    ) -> None:
        """`most` classes, the first ones."""
        self.initial = initial
        self.config = NetworkConfig.model_validate(config)
        classes = dataset.classes[:most]
        train, val = (
            [sample for sample in dataset.split(split) if sample.label in range(len(classes))]
            for split in ("train", "val")
        )
        self.images = [(sample, sample.item()) for sample in (*train, *val)]
        numbers = np.arange(len(self.images))
        self.rows = TrainingRows(
            labels=np.array([sample.label for sample, _ in self.images], np.int64),
            train=numbers[: len(train)],
            val=numbers[len(train) :],
            classes=classes,
        )
        head = build(initial.dim, len(classes), self.config.head)
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


PEER = "timm's loader and optimizer"


def network_train(setting: Setting) -> list[Case]:
    """An epoch of resnet18 at 64 pixels from random weights, with its validation, against a loop
    as in timm's script train.py, which is not part of its package: `create_loader` with its
    prefetcher, `create_optimizer_v2`, `create_scheduler_v2` with a step at each update, loss and
    accuracy on validation images, in channels-last order, with as many workers. The second
    comparison trains both for as many steps on ten classes and compares their accuracy; the noise
    is two standard errors of a difference of two accuracies."""
    device = torch.device("cpu")
    throughput, check = epoch_of_resnet(setting, device, "f32")
    size = setting.size(64, 32)
    data = tiny_imagenet(setting, *((50, 10) if not setting.small else (5, 1)))
    initial = initial_network("resnet18", "random", input_size=size, crop=1.0)
    config = _resnet(setting, size, "f32", setting.size(4, 1))
    images = _Images(open_dataset(data), config, initial, most=10)
    ours = images.train(images.pictures(setting.folder / "cache"), setting.folder / "accuracy")
    theirs = timm_training(images, size, device)
    mine, peers = ours["val_top1"], theirs["val_top1"]
    share, count = (mine + peers) / 2, len(images.rows.val)
    noise = 2 * (2 * share * (1 - share) / count) ** 0.5
    alike = Check(
        f"top-1 of {count} images after {len(images.rows.train) * images.config.epochs:,} training "
        f"images: {mine:.3f}, timm's {peers:.3f}, noise {noise:.3f}; training losses "
        f"{ours['train_loss']:.3f}, {theirs['train_loss']:.3f}",
        abs(mine - peers) <= noise,
    )
    accuracy = Case("accuracy", checks=[alike], figures={"top-1": mine, "top-1 of timm's": peers})
    throughput.checks.append(check)
    return [throughput, accuracy]


def _resnet(setting: Setting, size: int, precision: str, epochs: int) -> dict[str, Any]:
    return {
        "network": {"name": "resnet18", "input_size": size, "crop": 1.0},
        "optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 0.0},
        "batch_size": setting.size(64, 4),
        "epochs": epochs,
        "validation": "val",
        "precision": precision,
    }


def epoch_of_resnet(setting: Setting, device: torch.device, precision: str) -> tuple[Case, Check]:
    """The time of an epoch on a device, ours and timm's, and whether their losses are alike."""
    size = setting.size(64, 32)
    config = _resnet(setting, size, precision, 1)
    data = tiny_imagenet(setting, 50 if device.type == "cuda" else setting.size(5, 2), 1)
    initial = initial_network("resnet18", "random", input_size=size, crop=1.0)
    images = _Images(open_dataset(data), config, initial)
    images.network.to(device)
    folders = (setting.folder / f"run-{number}" for number in itertools.count())
    seconds, results = compare(
        {OURS: lambda: images.train(images.pictures(setting.folder / "cache"), next(folders)),
         PEER: lambda: timm_training(images, size, device)},
        setting.repeats,
    )  # fmt: skip
    mine, theirs = results[OURS]["train_loss"], results[PEER]["train_loss"]
    check = Check(
        f"mean training losses: {mine:.3f}, timm's {theirs:.3f}", abs(mine - theirs) < 0.5
    )
    return Case(f"resnet18, {size} px", seconds, len(images.images)), check


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


def timm_training(images: _Images, size: int, device: torch.device) -> dict[str, float]:
    """The mean training loss of the last epoch and the top-1 of a loop of timm's parts."""
    config = images.config
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=len(images.rows.classes))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = timm.optim.create_optimizer_v2(model, "momentum", lr=0.01, momentum=0.9)
    train, val = (
        timm.data.create_loader(
            _Pictures(images, rows),
            (3, size, size),
            config.batch_size,
            is_training=is_training,
            no_aug=True,
            num_workers=checked_workers(None),
            crop_pct=1.0,
            device=device,
        )
        for rows, is_training in ((images.rows.train, True), (images.rows.val, False))
    )
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer, "step", num_epochs=config.epochs, decay_epochs=1000, warmup_epochs=0,
        updates_per_epoch=len(train),
    )  # fmt: skip
    half = config.precision == "bf16"
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=half)
    updates = 0
    for epoch in range(config.epochs):
        losses, top1 = timm.utils.AverageMeter(), timm.utils.AverageMeter()
        model.train()
        for x, target in train:
            with autocast():
                loss = functional.cross_entropy(
                    model(x.contiguous(memory_format=torch.channels_last)), target
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            losses.update(loss.item(), len(x))
            scheduler.step_update(num_updates=updates, metric=losses.avg)
        model.eval()
        with torch.inference_mode():
            for x, target in val:
                with autocast():
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                functional.cross_entropy(logits, target).item()
                top1.update(timm.utils.accuracy(logits, target)[0].item() / 100, len(x))
        scheduler.step(epoch + 1)
    return {"train_loss": losses.avg, "val_top1": top1.avg}


def suffix_from_maps(setting: Setting) -> list[Case]:
    """The last layers of Lite0, from blocks.6 on, trained for an epoch from cached maps of
    blocks.5, and from pictures, whose first layers run frozen in each step: the same loop, the
    same minibatches, the same initial weights. The losses of all steps, and of the minibatches of
    the validation, are compared one by one."""
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

    def losses(source: Source) -> list[float]:
        with _recorded_losses() as recorded:
            images.train(source, next(folders))
        return recorded

    seconds, results = compare(
        {OURS: lambda: losses(maps), "from pictures": lambda: losses(images.pictures(cache))},
        setting.repeats,
    )
    ours, theirs = (np.array(results[side]) for side in (OURS, "from pictures"))
    difference = float(np.abs(ours / theirs - 1).max())
    check = Check(
        f"{len(ours)} losses, step by step: they differ by at most {difference:.1e}, relative",
        difference < 1e-5,
    )
    return [
        Case(
            f"EfficientNet-Lite0 from {FIRST}, {size} px", seconds, len(images.images),
            checks=[check], figures={"relative difference of losses": difference},
        )
    ]  # fmt: skip


@contextlib.contextmanager
def _recorded_losses() -> Iterator[list[float]]:
    """The mean losses of all minibatches of the trainings meanwhile."""
    recorded: list[float] = []
    original = training.cross_entropy

    def recording(*arguments: Any, **options: Any) -> torch.Tensor:
        losses = original(*arguments, **options)
        recorded.append(float(losses.detach().mean()))
        return losses

    training.cross_entropy = recording  # type: ignore[attr-defined]
    try:
        yield recorded
    finally:
        training.cross_entropy = original  # type: ignore[attr-defined]
