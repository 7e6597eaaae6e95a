"""Paper 000's pipeline as the script that a user would write, without featurecache.

    python -m benchmarks.hand_written DATA --out features

For every view: a DataLoader with workers reads the images of a Tiny ImageNet folder and augments
them by imgaug, timm makes vectors of them, h5py appends these to a file. Then a small head is
trained on one view after the other. As in the paper the validation images are augmented too; the
head is evaluated on them as they are, and through a spatial and a color view.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import h5py
import imgaug as ia
import imgaug.augmenters as iaa
import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

VIEWS = ("none", "spatial_1", "spatial_2", "color_1", "spatial_3")
PHASES = (("none", 2), ("spatial_1", 2), ("spatial_2", 2), ("color_1", 2), ("spatial_3", 2),
          ("none", 2))  # fmt: skip
WORKERS = min(os.cpu_count() or 1, 8)


def spatial() -> iaa.Augmenter:
    """The paper's geometric transforms, read as one of two resizes followed by the rest."""
    return iaa.Sequential([
        iaa.SomeOf(1, [iaa.Resize(256, interpolation="linear"),
                       iaa.Resize(256, interpolation="cubic")]),
        iaa.Rotate((-45, 45)),
        iaa.PerspectiveTransform(scale=(0.01, 0.10), keep_size=False),
        iaa.CropAndPad(percent=(-0.1, 0.15), keep_size=False),
        iaa.Cutout(fill_mode="gaussian", nb_iterations=2, size=(0.2, 0.3), squared=False),
        iaa.Fliplr(p=2 / 3),
        iaa.Flipud(p=1 / 5),
        iaa.MultiplyAndAddToBrightness(mul=(0.9, 1.1), add=(-5, 5)),
    ])  # fmt: skip


def color() -> iaa.Augmenter:
    """The paper's colour transforms."""
    return iaa.Sequential([
        iaa.CropAndPad(percent=(-0.1, 0.1), keep_size=False),
        iaa.MultiplyAndAddToBrightness(mul=(0.7, 1.1), add=(-30, 10)),
        iaa.LinearContrast((0.75, 1.5), per_channel=0.5),
        iaa.AdditiveGaussianNoise(loc=0, scale=(0.0, 0.05 * 255), per_channel=0.5),
        iaa.AddToHueAndSaturation((-50, 50), per_channel=True),
    ])  # fmt: skip


class TinyImageNet(Dataset[tuple[np.ndarray, int]]):
    """(H, W, 3) uint8 pixels and the label of each image of one split."""

    def __init__(self, root: Path, split: str) -> None:
        names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
        label = {name: number for number, name in enumerate(names)}
        if split == "train":
            paths = sorted((root / "train").glob("*/images/*.JPEG"))
            self.samples = [(path, label[path.parent.parent.name]) for path in paths]
        else:
            lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
            rows = [line.split("\t") for line in lines]
            self.samples = [(root / "val" / "images" / r[0], label[r[1]]) for r in rows]
        self.classes = len(names)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.samples[index]
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")), label


class Collate:
    """Augments the images of a batch by imgaug, then fits each of them to the network."""

    def __init__(self, view: str, transform: Any) -> None:
        policy = view.partition("_")[0]
        self.augmenter = (
            {"spatial": spatial, "color": color}[policy]() if policy != "none" else None
        )
        self.transform = transform

    def __call__(self, batch: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = [image for image, _ in batch]
        if self.augmenter is not None:
            images = self.augmenter.augment_images(images)
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        return pixels, torch.tensor([label for _, label in batch])


def seed_worker(worker: int) -> None:
    """imgaug's generator is global: without this every worker draws the same numbers."""
    ia.seed(torch.initial_seed() % 2**32)
    torch.set_num_threads(1)


def featurize(root: Path, out: Path, workers: int, batch_size: int = 64) -> None:
    """Write OUT/VIEW.h5 for each view, with the features and labels of both splits."""
    model = load_network()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config | {"crop_pct": 1.0}, is_training=False)
    for view in VIEWS:
        with h5py.File(out / f"{view}.h5", "w") as file:
            for split in ("train", "val"):
                loader = DataLoader(
                    TinyImageNet(root, split), batch_size, num_workers=workers,
                    collate_fn=Collate(view, transform), worker_init_fn=seed_worker,
                )  # fmt: skip
                x = file.create_dataset(f"{split}/x", (0, 1280), "f4", maxshape=(None, 1280))
                y = file.create_dataset(f"{split}/y", (0,), "i8", maxshape=(None,))
                for pixels, labels in loader:
                    with torch.inference_mode():
                        features = model(pixels).numpy()
                    x.resize(len(x) + len(features), axis=0)
                    y.resize(len(x), axis=0)
                    x[-len(features) :] = features
                    y[-len(features) :] = labels.numpy()


def load_network() -> nn.Module:
    """timm's EfficientNet-Lite0 without its classifier. The weights come from the package that
    featurecache takes them from, as they have no place in timm's own cache here."""
    from featurecache.features.backbones import load_module

    name = "efficientnet_lite0"
    return load_module(name, None, classifier=False)


def train(out: Path, classes: int, lr: float = 1e-3, batch_size: int = 256) -> dict[str, float]:
    """Train a head by the phases; the accuracy on the validation images, by view."""
    torch.manual_seed(0)
    head = nn.Sequential(
        nn.Linear(1280, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(1024, classes),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr)
    loss_function = nn.CrossEntropyLoss()
    for view, epochs in PHASES:
        x, y = load(out, view, "train")
        for _ in range(epochs):
            head.train()
            for rows in torch.randperm(len(x)).split(batch_size):
                loss = loss_function(head(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    head.eval()
    accuracy = {}
    for view in ("none", "spatial_1", "color_1"):
        x, y = load(out, view, "val")
        with torch.inference_mode():
            accuracy[view] = (head(x).argmax(1) == y).float().mean().item()
    return accuracy


def load(out: Path, view: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    with h5py.File(out / f"{view}.h5") as file:
        return torch.from_numpy(file[f"{split}/x"][:]), torch.from_numpy(file[f"{split}/y"][:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("features"))
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    featurize(arguments.data, arguments.out, arguments.workers, arguments.batch_size)
    print(train(arguments.out, TinyImageNet(arguments.data, "train").classes))


if __name__ == "__main__":
    main()
