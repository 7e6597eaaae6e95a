"""Whether pictures are normalised as a network's batch norms expect.

A batch norm stores the mean and the variance that each channel had in its training. Pictures with
the normalisation of that training have about the same mean and variance at the first norm, others
do not: the variances of the usual normalisations differ by factors of 4 and more. A network without
batch norms stores nothing to compare with. The order of colours is not tested: it hardly changes
these numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from featurecache.features.backbones import Backbone

PICTURES = 16  # are enough for the statistics of a channel
_CAFFE = (123.68 / 255, 116.779 / 255, 103.939 / 255)
NORMALISATIONS = {  # name -> mean and std of each channel of pictures from 0 to 1
    "numbers from 0 to 1": ((0.0,) * 3, (1.0,) * 3),
    "numbers from -1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0 to 255 without ImageNet's mean colour": (_CAFFE, (1 / 255,) * 3),
    "numbers from 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
}
# Measured with EfficientNet-Lite: photographs are 0.02 to 0.12 nats per channel from the
# statistics under the right normalisation, 0.2 to 0.4 under ImageNet's, and thousands as numbers
# to 255. Drawings, scans and digits are 0.2 to 2.2 from them under the right one.
_FACTOR = 5.0  # how many times as far the usual normalisation must be as the best one
_ALIKE = 0.15  # the pictures are like those of the training, so that small differences count
_FAR = 3.0  # whatever the pictures are; numbers that are 255 times too small are 4 or more


def normalisation_note(backbone: Backbone, pixels: np.ndarray) -> str:
    """Whether prepared pictures (n, S, S, 3) uint8 fit the first batch norm, in a sentence for the
    user; empty if the network has no batch norm that was trained."""
    usual = (tuple(backbone.preprocess.mean), tuple(backbone.preprocess.std))
    distances = {
        name: distance
        for name, (mean, std) in {"own": usual, **NORMALISATIONS}.items()
        if (distance := _distance(backbone.module, pixels, mean, std)) is not None
    }
    if not distances:
        return ""
    best = min(distances, key=lambda name: (distances[name], name != "own"))
    is_clear = distances["own"] > _FACTOR * distances[best]
    if not (is_clear and (distances[best] < _ALIKE or distances["own"] > _FAR)):
        return ""
    mean, std = ([float(f"{value:.3g}") for value in values] for values in usual)
    return (
        f"backbone {backbone.name}: its first batch norm does not expect pictures with mean "
        f"{mean} and std {std} (their distance from its statistics is {distances['own']:.2g}); "
        f"{best} fit better ({distances[best]:.2g}). If the weights were trained on those, the "
        "vectors are wrong: write a network of your own with their `mean` and `std` "
        "(docs/concepts.md)"
    )


class _Reached(Exception):
    """The first batch norm was reached."""


def _distance(
    module: nn.Module, pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> float | None:
    """How far the first batch norm's input is from its statistics: the divergence of two normal
    distributions in nats, the median over the channels. None without a trained norm."""
    distances: list[float] = []

    def look(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        x = inputs[0].double()
        variance, center = torch.var_mean(x, (0, 2, 3), correction=0)
        expected = norm.running_var.double() + norm.eps
        ratio = (variance + norm.eps) / expected
        shift = (center - norm.running_mean.double()) ** 2 / expected
        if bool(norm.running_var.std(correction=0) > 0):  # else it was never trained
            distances.append(float(((ratio - 1 - ratio.log() + shift) / 2).median()))
        raise _Reached

    norms = [
        m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.running_var is not None
    ]
    if not norms:
        return None
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    shape = (1, 3, 1, 1)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)
    network: Any = module
    try:
        with torch.inference_mode():
            network(images)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return distances[0] if distances else None
