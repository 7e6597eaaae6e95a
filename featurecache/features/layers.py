"""Layers: which output of a network is read, and how it becomes one vector per image.

timm's networks list the modules that are useful to read (`feature_info`) and return their maps
(`forward_intermediates`, timm/models/_features.py), so this module knows no architecture. Stages
between these, such as blocks.5 of an EfficientNet, are read by cutting the network behind them.
"""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import torch
from torch import nn

from featurecache.errors import BadInput, UnknownName
from featurecache.features.cuts import trunk_until

PRE_LOGITS = "pre_logits"  # the output of timm for num_classes=0: pooled by the network itself
FEATURES = "features"  # the map before that, the output of timm's forward_features
MODEL_POOLING = "model"  # the pooling of pre_logits
_POOL: dict[str, Any] = {"avg": torch.mean, "max": torch.amax}
_OF_MAPS = (*_POOL, "avg+max")  # the poolings of every map
MAPS = "none"  # no pooling: the map itself
POOLINGS = (MODEL_POOLING, *_OF_MAPS, "token", MAPS)


def resolve_layer(layer: str | None, pooling: str | None) -> tuple[str, str]:
    """The layer and the pooling, with defaults in place of None.

    Raises BadInput for a pooling that does not fit the layer of any network.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UnknownName("pooling", pooling, POOLINGS)
    if pooling == MAPS:
        if layer in (None, PRE_LOGITS, FEATURES):
            raise BadInput(f"pooling {MAPS} keeps the map of a layer; name a module as --layer")
        return str(layer), MAPS
    layer = layer or (PRE_LOGITS if pooling in (None, MODEL_POOLING) else FEATURES)
    pooling = pooling or (MODEL_POOLING if layer == PRE_LOGITS else "avg")
    if (layer == PRE_LOGITS) != (pooling == MODEL_POOLING):
        raise BadInput(
            f"layer {layer} with pooling {pooling}: the network pools {PRE_LOGITS} itself "
            f"({MODEL_POOLING}); every other layer is pooled by {', '.join(POOLINGS[1:-1])}"
        )
    return layer, pooling


def poolings_by_layer(network: Any, size: int) -> dict[str, tuple[str, ...]]:
    """The layers of a timm network, with the poolings that each supports.

    `network` is on the meta device, where a pass over a picture of `size` pixels costs nothing.
    """
    poolings = {PRE_LOGITS: (MODEL_POOLING,)} if _output(network, size, 2) else {}
    prefixed = getattr(network, "num_prefix_tokens", None)
    token = ("token",) if prefixed and getattr(network, "cls_token", None) is not None else ()
    # With a class token, but an unknown number of tokens before the map, the map can't be cut out.
    hidden = prefixed is None and any("cls_token" in name for name, _ in network.named_parameters())
    if not hidden and _output(network.forward_features, size, 3, 4):
        poolings[FEATURES] = (*_OF_MAPS, *token)
    parameters = inspect.signature(network.forward_intermediates).parameters
    inner = (*_OF_MAPS, *token) if "return_prefix_tokens" in parameters else _OF_MAPS
    return poolings | dict.fromkeys(_indices(network), inner)


def poolings_of_stage(network: Any, layer: str, size: int) -> dict[str, tuple[str, ...]]:
    """`layer` with its poolings, if it is a stage that timm does not list beside those that it
    lists, and its output is a map of the same kind; else nothing. `network` is as above."""
    listed = _indices(network)
    container = layer.rpartition(".")[0]
    is_stage = container and any(name.rpartition(".")[0] == container for name in listed)
    if not is_stage or layer in listed or getattr(network, "output_fmt", None) == "NHWC":
        return {}
    try:
        trunk = trunk_until(network, layer)
    except BadInput:  # the network can't be cut there
        return {}
    return {layer: _OF_MAPS} if _output(trunk, size, 4) else {}


def _output(forward: Any, size: int, *dimensions: int) -> bool:
    """Whether `forward` returns one tensor with one of these numbers of dimensions; True if that
    can't be determined."""
    try:
        with torch.no_grad():
            out = forward(torch.zeros(1, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError):  # it needs numbers, which the meta device lacks
        return True
    return isinstance(out, torch.Tensor) and out.ndim in dimensions


def _indices(network: Any) -> dict[str, int]:
    """The index of each module in `feature_info`, except for names that occur twice."""
    names = [info["module"] for info in network.feature_info]
    count = Counter(names)
    return {name: i for i, name in enumerate(names) if name and count[name] == 1}


class MapReader(nn.Module):
    """Maps images (n, 3, S, S) to the maps of a layer, flattened to rows (n, D)."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.trunk = trunk_until(network, layer)

    def shape(self, size: int) -> tuple[int, ...]:
        """The shape of the map of one image of `size` pixels."""
        with torch.inference_mode():
            return tuple(self.trunk(torch.zeros(1, 3, size, size)).shape[1:])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.trunk(images).flatten(1)
        return rows


class Reader(nn.Module):
    """Maps images (n, 3, S, S) to vectors (n, D): reads a layer of a network and pools it.

    Modules after the layer are not run. `avg+max` concatenates the two poolings.
    """

    def __init__(self, network: nn.Module, layer: str, pooling: str) -> None:
        super().__init__()
        self.index = _indices(network).get(layer)
        self.is_cut = self.index is None and layer != FEATURES
        self.network = trunk_until(network, layer) if self.is_cut else network
        self.pooling = pooling

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor
        axes: tuple[int, ...]
        if self.is_cut:
            maps, axes = self.network(images), (2, 3)
        elif self.index is None:
            maps, axes = self._last(images)
        else:
            maps, axes = self._inner(images, self.index)
        if self.pooling == "token":
            return maps
        return torch.cat([_POOL[name](maps, axes) for name in self.pooling.split("+")], 1)

    def _last(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The network's last map with the dimensions to pool over, or its class token."""
        network: Any = self.network
        out = network.forward_features(images)
        if not isinstance(out, torch.Tensor):
            raise BadInput(f"{type(network).__name__} ends in several maps; use another --layer")
        if out.ndim == 4:
            return out, (1, 2) if getattr(network, "output_fmt", None) == "NHWC" else (2, 3)
        if self.pooling == "token":
            return out[:, 0], ()
        return out[:, getattr(network, "num_prefix_tokens", 0) :], (1,)

    def _inner(self, images: torch.Tensor, index: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        network: Any = self.network
        options = {"stop_early": True, "intermediates_only": True, "output_fmt": "NCHW"}
        if self.pooling == "token":
            ((_, prefix),) = network.forward_intermediates(
                images, indices=[index], return_prefix_tokens=True, **options
            )
            return prefix[:, 0], ()
        (maps,) = network.forward_intermediates(images, indices=[index], **options)
        return maps, (2, 3)
