"""Saliency: which pixels of a picture the score of a class depends on, through network and head.

- gradient: Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks" (2013), section 3;
  drawn absolute and signed as in paper 003 (3.2.1), with the dataset's boxes as in paper 001 (8.1).
- smoothgrad: Smilkov et al., "SmoothGrad: removing noise by adding noise" (2017).
- gradcam: Selvaraju et al., "Grad-CAM" (ICCV 2017), equations 1 and 2.

The score is the logit of the class, averaged over the folds. All computation is float32 on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.features.preprocess import Preprocess

_COPIES_PER_PASS = 5  # noisy copies per forward and backward pass

Map = npt.NDArray[np.float64]


class ImageClassifier(nn.Module):
    """From pictures to logits: networks in parallel, each after its normalization, then the head.

    Each of the `networks` maps (n, 3, S, S) to (n, D). The `members`, one per fold, map
    (n, sum of D) to (n, C).
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        preprocesses: Sequence[Preprocess],
        members: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.preprocesses = list(preprocesses)
        self.members = nn.ModuleList(members)
        self.eval()

    def forward(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits (members, n, C) of pictures (n, 3, S, S) in 0..1, one tensor per network."""
        vectors = []
        for network, preprocess, x in zip(self.networks, self.preprocesses, inputs, strict=True):
            mean = torch.tensor(preprocess.mean).view(1, -1, 1, 1)
            std = torch.tensor(preprocess.std).view(1, -1, 1, 1)
            vectors.append(network((x - mean) / std))
        joined = torch.cat(vectors, 1)
        return torch.stack([member(joined) for member in self.members])

    def score(self, inputs: Sequence[torch.Tensor], label: int) -> torch.Tensor:
        """The score of class `label`, summed over the pictures, which are independent."""
        logits: torch.Tensor = self(inputs)
        return logits[:, :, label].mean(0).sum()

    def ready(self, pixels: np.ndarray) -> list[torch.Tensor]:
        """A picture (H, W, 3) uint8 as the input of each network: (1, 3, S, S) float32 in 0..1."""
        return [
            torch.tensor(preprocess(pixels)).permute(2, 0, 1)[None].float() / 255
            for preprocess in self.preprocesses
        ]

    def on_picture(self, gradients: Sequence[torch.Tensor], height: int, width: int) -> Map:
        """The gradient by the picture's pixels, (height, width, 3), from the gradients by the
        networks' inputs, (1, 3, S, S) each.

        Resizing and cropping are linear, apart from rounding to bytes: one matrix per axis. The
        chain rule multiplies by their transposes. The gradients of several networks are added. The
        gradient is 0 where the picture was cropped away.
        """
        total: Map = np.zeros((height, width, 3))
        for gradient, preprocess in zip(gradients, self.preprocesses, strict=True):
            down, across = preprocess.matrices(height, width)
            channels = gradient[0].double().numpy()
            total += np.stack([down.T @ channel @ across for channel in channels], 2)
        return total


def probabilities(model: ImageClassifier, pixels: np.ndarray) -> npt.NDArray[np.float32]:
    """The probabilities (C,) of a picture (H, W, 3) uint8, averaged over the head's members as in
    its predict_proba."""
    with torch.no_grad():
        mean: npt.NDArray[np.float32] = model(model.ready(pixels)).softmax(2).mean(0)[0].numpy()
    return mean


def gradient(model: ImageClassifier, pixels: np.ndarray, label: int) -> Map:
    """The gradient (H, W, 3) of the score of class `label` by the pixels (H, W, 3) uint8 of a
    picture, in logits per change of a channel from 0 to 255."""
    return model.on_picture(_gradients(model, model.ready(pixels), label), *pixels.shape[:2])


def smooth_gradient(
    model: ImageClassifier,
    pixels: np.ndarray,
    label: int,
    rng: np.random.Generator,
    samples: int,
    noise: float,
) -> Map:
    """The mean of `gradient` over `samples` noisy copies. The noise is added to the networks'
    inputs; its standard deviation is `noise` times the span of their values."""
    inputs = model.ready(pixels)
    sums = [torch.zeros_like(x) for x in inputs]
    for start in range(0, samples, _COPIES_PER_PASS):
        count = min(_COPIES_PER_PASS, samples - start)
        noisy = []
        for x in inputs:
            drawn = rng.standard_normal((count, *x.shape[1:]), np.float32)
            noisy.append(x + torch.from_numpy(drawn) * (noise * (x.max() - x.min())))
        for total, gradients in zip(sums, _gradients(model, noisy, label), strict=True):
            total += gradients.sum(0, keepdim=True)
    return model.on_picture([total / samples for total in sums], *pixels.shape[:2])


def class_activations(model: ImageClassifier, pixels: np.ndarray, label: int) -> Map:
    """Grad-CAM before its ReLU, (H, W).

    For each network it takes the last feature map of more than one cell, sums the channels weighted
    by their mean gradients, and interpolates the sum bilinearly over the part of the picture that
    the network saw. The maps of several networks are added. The map is 0 where the picture was
    cropped away. Raises BadInput for a network without such a map: a transformer, or one with
    channels last.
    """
    total = np.zeros(pixels.shape[:2])
    cells = _weighted_maps(model, model.ready(pixels), label)
    for activation, preprocess in zip(cells, model.preprocesses, strict=True):
        sides = []
        resized, starts = preprocess.geometry(*pixels.shape[:2])
        for count, old_length, new_length, start in zip(
            activation.shape, pixels.shape[:2], resized, starts, strict=True
        ):
            sides.append(
                _interpolation_weights(count, old_length, new_length, start, preprocess.input_size)
            )
        total += sides[0] @ activation.double().numpy() @ sides[1].T
    return total


def absolute(gradient: Map) -> Map:
    """The maximum (H, W) of the channels' absolute values (Simonyan et al., section 3.1)."""
    return np.asarray(np.abs(gradient).max(2))


def signed(gradient: Map) -> Map:
    """The sum (H, W) of the channels: how a brighter pixel changes the score."""
    return np.asarray(gradient.sum(2))


def share_inside(values: Map, mask: npt.NDArray[np.bool_]) -> float | None:
    """The share of the non-negative values (H, W) that is inside the mask; None if all are 0."""
    total = float(values.sum())
    return float(values[mask].sum()) / total if total > 0 else None


def _gradients(
    model: ImageClassifier, inputs: Sequence[torch.Tensor], label: int
) -> list[torch.Tensor]:
    """The gradients of each picture's score by the input of each network, (n, 3, S, S)."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(model.score(leaves, label), leaves))


def _weighted_maps(
    model: ImageClassifier, inputs: Sequence[torch.Tensor], label: int
) -> list[torch.Tensor]:
    """The Grad-CAM map of each network, (h, w) cells."""
    feature_maps: dict[int, torch.Tensor] = {}

    def recorder(number: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 3:
                feature_maps.pop(number, None)  # tokens follow: the earlier map was not the last
            elif isinstance(output, torch.Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                feature_maps[number] = output

        return keep

    with contextlib.ExitStack() as hooks:
        for number, network in enumerate(model.networks):
            for layer in network.modules():
                hooks.callback(layer.register_forward_hook(recorder(number)).remove)
        score = model.score([x.detach().clone().requires_grad_() for x in inputs], label)
    for number, network in enumerate(model.networks):
        inner = getattr(network, "network", network)  # inside a Reader
        if number not in feature_maps or getattr(inner, "output_fmt", "NCHW") != "NCHW":
            raise BadInput(
                f"Grad-CAM needs a network that ends in a feature map, and {type(inner).__name__} "
                "does not; use --method gradient or smoothgrad"
            )
    maps = [feature_maps[number] for number in range(len(model.networks))]
    slopes = torch.autograd.grad(score, maps)
    return [
        (slope.mean((2, 3), keepdim=True) * activation.detach()).sum(1)[0]
        for activation, slope in zip(maps, slopes, strict=True)
    ]


def _interpolation_weights(cells: int, pixels: int, resized: int, start: int, size: int) -> Map:
    """The weights of the cells along an axis at each pixel, (pixels, cells); 0 for pixels that were
    cropped away."""
    positions = (np.arange(pixels) + 0.5) * resized / pixels - start  # in pixels of the input
    cell_positions = positions * cells / size - 0.5
    weights = np.stack(
        [np.interp(cell_positions, np.arange(cells), cell) for cell in np.eye(cells)], 1
    )
    weights[(positions < 0) | (positions > size)] = 0
    return weights
