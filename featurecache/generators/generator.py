"""What every generator has: its modules, its optimizers, a step of training, and its network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featurecache.generators.configs import GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class FittedImages:
    """What a generator is fitted on: N images in dataset order, and the images of a style.

    A vector sampler is fitted on `vectors`, and has no pictures. `critic` is the frozen network
    whose maps a projected GAN's critic judges.
    """

    pictures: npt.NDArray[np.uint8]  # (N, S, S, 3)
    labels: npt.NDArray[np.int64]  # (N,), indexes of `classes`
    items: npt.NDArray[np.uint8]  # (N, 32)
    classes: Sequence[str]
    style: npt.NDArray[np.uint8] | None = None  # (M, S, S, 3)
    vectors: npt.NDArray[np.float32] | None = None  # (N, D)
    critic: nn.Module | None = None


class Generator(ABC):
    """A generator in training. The constructor of a subclass takes its configuration and the
    images, and makes `modules` and `optimizers`: everything that a step changes.

    `network` is the module that makes data when the training is done, and is the only one that is
    saved. A network of the kind `transform` maps images (B, 3, S, S) from -1 to 1 to such images,
    FrozenAugNet images and partners. A `sampler` maps noise (B, `noise_size`) and labels (B,) to
    images, and a `vector sampler` has a method `vectors`: (labels (N,), noise numbers (N,) uint64)
    to vectors (N, D) float32, in NumPy.
    """

    modules: nn.ModuleDict
    optimizers: Mapping[str, torch.optim.Optimizer]

    @staticmethod
    @abstractmethod
    def build(parameters: Mapping[str, Any], image_size: int, classes: int) -> nn.Module:
        """The network that is saved, with random weights. `parameters` are those of the
        configuration's `network()`."""

    @property
    @abstractmethod
    def network(self) -> nn.Module: ...

    @abstractmethod
    def step(
        self, images: FittedImages, step: int, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """The step of this number, from 0, of the training; its losses by name. `rng`, and torch's
        generator, depend on the seed and the number of the step alone."""


def batch(pictures: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Pictures (B, S, S, 3) uint8 as a tensor (B, 3, S, S) from -1 to 1."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The reverse of `batch`; numbers outside are clipped."""
    scaled = ((tensor.detach().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def random_rows(count: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`size` of `count` rows, drawn with replacement."""
    return rng.integers(0, count, size)


def decaying(config: GeneratorConfig, lr: float, step: int) -> float:
    """A learning rate that falls linearly to 0 over the second half of the steps."""
    return lr * min(1.0, 2 * (1 - step / config.steps))
