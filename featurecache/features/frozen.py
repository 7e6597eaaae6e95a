"""The network as engines run it: frozen, from bytes to vectors, with folded batch norms.

A frozen batch norm scales and shifts each channel, so it can be merged into the convolution before
it. That saves one pass over the activations per batch norm. OpenVINO does this itself; torch does
not.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from featurecache.features.backbones import Backbone
from featurecache.features.preprocess import Preprocess

MAX_SHIFT = 1e-4  # relative to the largest element; a larger change by folding is not rounding


class Frozen(nn.Module):
    """Maps pictures (n, S, S, 3) uint8 to vectors (n, D): normalizes, then runs the network in
    `dtype`."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.mean: torch.Tensor
        self.std: torch.Tensor
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(shape))
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(shape))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 255
        x = (x - self.mean) / self.std
        return self.network(x.to(self.dtype))  # type: ignore[no-any-return]


def freeze(backbone: Backbone, dtype: torch.dtype = torch.float32, folded: bool = False) -> Frozen:
    """The network of a backbone, with its normalization in front. The backbone is not changed.

    `folded` merges the batch norms into the convolutions, which changes the last bits. A network
    whose output would change by more than MAX_SHIFT is not folded.
    """
    network = copy.deepcopy(backbone.module).eval()
    if folded:
        size = backbone.preprocess.input_size
        with torch.no_grad():
            example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            before = network(example)
            fold_batch_norms(network, example)
            if (network(example) - before).abs().max() > MAX_SHIFT * before.abs().max():
                network = copy.deepcopy(backbone.module).eval()
    return Frozen(network.to(dtype), backbone.preprocess, dtype).eval()


def fold_batch_norms(network: nn.Module, example: torch.Tensor) -> int:
    """Fold every batch norm into the convolution before it, in place; return how many were folded.

    The pairs are observed in a pass of `example` (a float32 batch that the network takes), not
    guessed from names. A convolution is not folded if it runs twice, feeds two norms, or has its
    output changed in place before the norm. A convolution that feeds something else beside its norm
    is not detected, so the caller must compare the vectors.
    """
    # Each tensor stays alive here, so that its id stays unique; `written` is its version, the
    # number of in-place writes.
    outputs: dict[int, tuple[nn.Conv2d, torch.Tensor, int]] = {}
    passes: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def after_convolution(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        passes[layer] = passes.get(layer, 0) + 1
        outputs[id(out)] = (layer, out, out._version)

    def before_norm(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        layer, out, written = outputs.get(id(inputs[0]), (None, None, 0))
        if layer is not None and out is not None and out._version == written:
            pairs.append((layer, norm))

    hooks = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(after_convolution))
        elif isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(before_norm))
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    fed = [layer for layer, _ in pairs]
    layers_by_norm = {
        norm: layer for layer, norm in pairs if passes[layer] == 1 and fed.count(layer) == 1
    }
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if norm in layers_by_norm:
                _fold(layers_by_norm[norm], norm)
                setattr(parent, name, _without_norm(norm))
    return len(layers_by_norm)


def _fold(layer: nn.Conv2d, norm: Any) -> None:
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        before = 0.0 if layer.bias is None else layer.bias
        shift = (before - norm.running_mean.double()) * scale
        if norm.affine:
            shift = shift + norm.bias
        layer.weight.copy_(layer.weight * scale.view(-1, 1, 1, 1))
        layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=False)


def _without_norm(norm: Any) -> nn.Module:
    """What remains of a batch norm: timm's classes also contain dropout and an activation."""
    remaining = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*(layer for layer in remaining if not isinstance(layer, nn.Identity)))
