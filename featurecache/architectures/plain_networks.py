"""Plain networks: convolutions one after another, then dense layers, with timm's interface."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution with its activation, batch norm, max pooling and dropout, in this order; the
    batch norm may also come before the activation."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None  # half of the kernel, which keeps the size if the stride is 1
    norm: Literal["before", "after", "none"] = "before"
    pool: tuple[int, int] | None = None  # kernel and stride of the max pooling
    dropout: float = 0.0

    @property
    def border(self) -> int:
        return self.kernel // 2 if self.padding is None else self.padding

    def size_of_map(self, size: int) -> int:
        """The height of its map, in pixels, for an input of this height."""
        size = (size + 2 * self.border - self.kernel) // self.stride + 1
        if self.pool is not None:
            size = (size - self.pool[0]) // self.pool[1] + 1
        return size


@dataclass(frozen=True, kw_only=True)
class PlainShape:
    """The layers of a plain network. `dense` are the widths of the layers before the classifier,
    each followed by batch norm, activation and dropout. `slope` is that of the activation below 0;
    0 is ReLU."""

    convolutions: tuple[Convolution, ...]
    dense: tuple[int, ...]
    dropout: float = 0.0
    has_dense_norm: bool = True
    slope: float = 0.0
    norm_epsilon: float = 1e-5
    input_size: int = 64


class PlainNetwork(nn.Module):
    """Maps normalized pictures (B, 3, S, S) to logits (B, C), or with `num_classes` 0 to vectors:
    what the last dense layer gives.

    Its maps have the size of `shape` for pictures of `shape.input_size` pixels. Maps of another
    size are averaged to that one (adaptive pooling), so pictures of other sizes are possible.
    `drop_rate` replaces all dropouts of the shape. Convolutions start as in He et al. 2015, dense
    layers as in Glorot and Bengio 2010, which is Keras's default; biases start at 0.
    """

    def __init__(
        self,
        shape: PlainShape,
        num_classes: int = 200,
        in_chans: int = 3,
        drop_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        stages, self.feature_info = [], []
        width, size, reduction = in_chans, shape.input_size, 1
        for number, layer in enumerate(shape.convolutions):
            stages.append(_stage(layer, shape, width, drop_rate))
            width, size = layer.width, layer.size_of_map(size)
            reduction *= layer.stride * (layer.pool[1] if layer.pool else 1)
            self.feature_info.append(
                {"num_chs": width, "reduction": reduction, "module": f"stages.{number}"}
            )
        self.stages, self.grid = nn.Sequential(*stages), size
        widths = (width * size**2, *shape.dense)
        rate = shape.dropout if drop_rate is None else drop_rate
        self.dense = dense_layers(
            widths, rate, shape.slope, shape.norm_epsilon if shape.has_dense_norm else None
        )
        self.num_features = self.head_hidden_size = widths[-1]
        self.fc: nn.Module
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes:
            self.fc = glorot(nn.Linear(self.num_features, num_classes))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.stages(x)
        return maps

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = functional.adaptive_avg_pool2d(x, self.grid)
        x = self.dense(x.flatten(1))
        logits: torch.Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last map and the maps of the stages at `indices` (all of them, or the last so many),
        or these alone."""
        count = len(self.stages)
        numbers = range(count) if indices is None else indices
        if isinstance(numbers, int):
            numbers = range(count - numbers, count)
        chosen = {number % count for number in numbers}
        maps = []
        for number, stage in enumerate(self.stages):
            if stop_early and number > max(chosen):
                break
            x = stage(x)
            if number in chosen:
                maps.append(x)
        return maps if intermediates_only else (x, maps)


def dense_layers(
    widths: Sequence[int], dropout: float, slope: float, norm_epsilon: float | None
) -> nn.Sequential:
    """Dense layers of `widths`, of which the first is the input's, each with batch norm (none if
    `norm_epsilon` is None), activation and dropout."""
    return nn.Sequential(
        *(
            nn.Sequential(
                glorot(nn.Linear(before, width)),
                *([] if norm_epsilon is None else [nn.BatchNorm1d(width, norm_epsilon)]),
                nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True),
                *([nn.Dropout(dropout)] if dropout else []),
            )
            for before, width in itertools.pairwise(widths)
        )
    )


def glorot(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _stage(
    layer: Convolution, shape: PlainShape, width: int, drop_rate: float | None
) -> nn.Sequential:
    norm = [] if layer.norm == "none" else [nn.BatchNorm2d(layer.width, shape.norm_epsilon)]
    activation = nn.LeakyReLU(shape.slope, inplace=True) if shape.slope else nn.ReLU(inplace=True)
    # A rate that replaces the shape's counts only where the shape has a dropout.
    dropout = drop_rate if drop_rate is not None and layer.dropout else layer.dropout
    return nn.Sequential(
        nn.Conv2d(width, layer.width, layer.kernel, layer.stride, layer.border),
        *([*norm, activation] if layer.norm == "before" else [activation, *norm]),
        *([nn.MaxPool2d(*layer.pool)] if layer.pool else []),
        *([nn.Dropout(dropout)] if dropout else []),
    )
