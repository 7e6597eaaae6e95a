"""AugNet (paper 004) after its training: a transform of two images of a class.

`train-network` trains it with a classifier. What is saved has all that its pictures depend on:
which images it was trained on, with their classes, and pictures of them as partners.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from featurecache.architectures.augnet import AugNet


class FrozenAugNet(nn.Module):
    """Images (B, 3, S, S) from -1 to 1, and partners like them, -> images that may lie beyond.

    `images` (N, 32) are the items that it was trained on, with their `labels` (N,), and `partners`
    (M, S, S, 3) uint8 are pictures of classes `partner_labels` (M,). With `pairs: same` there are
    none of them, and an image is its own partner.
    """

    def __init__(self, size: int, images: int, partners: int) -> None:
        super().__init__()
        self.network = AugNet()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.images: torch.Tensor
        self.labels: torch.Tensor
        self.partners: torch.Tensor
        self.partner_labels: torch.Tensor
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.register_buffer("images", torch.zeros(images, 32, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("partners", torch.zeros(partners, size, size, 3, dtype=torch.uint8))
        self.register_buffer("partner_labels", torch.zeros(partners, dtype=torch.int64))

    @staticmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> FrozenAugNet:
        return FrozenAugNet(image_size, parameters["images"], parameters["partners"])

    @cached_property
    def _label_of(self) -> dict[bytes, int]:
        rows = zip(self.images.numpy(), self.labels.tolist(), strict=True)
        return {image.tobytes(): label for image, label in rows}

    def partner(self, item: bytes, random: np.random.Generator) -> np.ndarray | None:
        """A picture (S, S, 3) of the class of an image; None if it was not trained on this one."""
        label = self._label_of.get(item)
        if label is None:
            return None
        rows = np.flatnonzero(self.partner_labels.numpy() == label)
        partner: np.ndarray = self.partners[int(random.choice(rows))].numpy()
        return partner

    def forward(self, images: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
        made = self.network(self._normalized(images), self._normalized(partners))
        result: torch.Tensor = (made * self.std + self.mean) * 2 - 1
        return result

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return ((images + 1) / 2 - self.mean) / self.std
