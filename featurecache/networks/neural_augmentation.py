"""Neural augmentation (paper 004): a network learns pictures that another one is trained on.

An augmentation network makes one picture of two pictures of a class. The classifier is trained on
the pictures of a minibatch and on as many made ones, and the classification loss trains both
networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from featurecache.networks.configs import NeuralAugmentation

Index = npt.NDArray[np.int64]


class PairSampler:
    """Draws further training rows of the class of each row of a minibatch."""

    def __init__(self, setting: NeuralAugmentation, labels: Index, train: Index) -> None:
        self._labels = labels
        self._rows_of = {label: train[labels[train] == label] for label in np.unique(labels[train])}
        pair = 0 if setting.pairs == "same" else 2
        self._count = pair + (setting.loss != "none")

    def with_partners(self, rows: Index, rng: np.random.Generator) -> Index:
        """The rows, then the first and second partner of each, unless a pair is the row twice, and
        with an augmentation loss the row that the made picture is compared with."""
        drawn = np.empty((self._count, len(rows)), np.int64)
        for label, members in self._rows_of.items():
            is_label = self._labels[rows] == label
            drawn[:, is_label] = rng.choice(members, (self._count, int(is_label.sum())))
        return np.concatenate([rows, *drawn])


def augment(
    network: nn.Module, setting: NeuralAugmentation, pictures: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the pictures of `with_partners`: those of the `count` rows and those made of them
    (2 `count`, C, H, W), and the augmentation loss."""
    images, *partners = torch.split(pictures, count)
    first, second = (images, images) if setting.pairs == "same" else partners[:2]
    made = network(first, second)
    loss = augmentation_loss(setting.loss, made, partners[-1:])
    return torch.cat([images, made]), loss


def augmentation_loss(
    name: str, made: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """`content`: the mean squared difference of the pictures. `style`: that of their Gram matrices,
    of channels, per pixel. `none`: 0."""
    if name == "none":
        return torch.zeros((), device=made.device)
    (target,) = targets
    if name == "style":
        made, target = gram(made), gram(target)
    return functional.mse_loss(made, target)


def gram(pictures: torch.Tensor) -> torch.Tensor:
    """(B, C, C): the products of the channels of pictures (B, C, H, W), averaged over pixels."""
    flat = pictures.flatten(2)
    return flat @ flat.mT / flat.shape[2]
