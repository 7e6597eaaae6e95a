"""Makes the networks of the papers known to timm: importing this module registers them."""

from __future__ import annotations

import functools
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

from featurecache.architectures import keras_networks as keras_networks  # registers them too
from featurecache.architectures import paper_networks
from featurecache.architectures.plain_networks import PlainNetwork, PlainShape, dense_layers

_UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # paper 001: pixels in [0, 1]
_IMAGENET = {"mean": timm.data.IMAGENET_DEFAULT_MEAN, "std": timm.data.IMAGENET_DEFAULT_STD}


class BravoNet(ResNet):  # type: ignore[misc]
    """Paper 001: ResNet-18 with dense layers, as timm builds a ResNet.

    From the paper: ResNet-18 without ImageNet weights, dense layers of 1,024 units, dropouts of
    0.2. Chosen: the average of the last map, then the dense layers of AlphaNet_v4: two, with batch
    norm and leaky ReLU.
    """

    def __init__(self, drop_rate: float | None = None, **options: Any) -> None:
        super().__init__(block=BasicBlock, layers=(2, 2, 2, 2), **options)
        rate = 0.2 if drop_rate is None else drop_rate
        widths = (512, *paper_networks.ALPHANET_DENSE)
        self.dense = dense_layers(widths, rate, paper_networks.ALPHANET_SLOPE, 1e-5)
        self.num_features = widths[-1]
        self.reset_classifier(self.num_classes)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.dense(self.global_pool(x))
        logits: torch.Tensor = x if pre_logits else self.fc(x)
        return logits


_SHAPES: dict[str, tuple[PlainShape, dict[str, Any]]] = {
    **{f"alphanet_v{n}": (paper_networks.alphanet(n), _UNIT) for n in (1, 2, 3, 4)},
    "convnet9": (paper_networks.convnet9(), _IMAGENET),
    "vgg_like": (paper_networks.vgg_like(), _IMAGENET),
    "vgg16_64": (paper_networks.vgg16_64(), _IMAGENET),
    "alexnet": (paper_networks.alexnet(), _IMAGENET),
    "smallnet": (paper_networks.smallnet(64), _IMAGENET),
    "smallnet_28": (paper_networks.smallnet(28), _IMAGENET),
}
ARCHITECTURES = (*_SHAPES, "bravonet")


def _config(size: int, normalization: dict[str, Any], first: str) -> dict[str, Any]:
    return {
        "input_size": (3, size, size), "num_classes": 200, "crop_pct": 1.0, "pool_size": None,
        "interpolation": "lanczos" if size == 72 else "bilinear",
        "first_conv": first, "classifier": "fc", **normalization,
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        **{
            name: _config(shape.input_size, normalization, "stages.0.0")
            for name, (shape, normalization) in _SHAPES.items()
        },
        "bravonet": _config(64, _UNIT, "conv1"),
    }
)


def _register(name: str, network: Any) -> None:
    def build(
        pretrained: bool = False, pretrained_cfg: PretrainedCfg | None = None, **options: Any
    ) -> Any:
        return build_model_with_cfg(
            network, name, pretrained, pretrained_cfg=pretrained_cfg, **options
        )

    build.__name__ = build.__qualname__ = name
    register_model(build)


for _name, (_shape, _) in _SHAPES.items():
    _register(_name, functools.partial(PlainNetwork, _shape))
_register("bravonet", BravoNet)
