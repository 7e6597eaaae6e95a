"""Keras' VGG16, ResNet50 and Xception as networks of timm, for weights that people have.

timm's networks of these names compute something else with the same tensors. Keras subtracts the
mean colour from pictures of 0 to 255 (VGG16, ResNet50), has the stride of a ResNet's block in its
first convolution, pads as TensorFlow does (Xception), and has other epsilons. The vector is that of
`include_top=False, pooling="avg"`: the average of the last map. The layers have timm's names.
"""

from __future__ import annotations

import functools
from typing import Any

from timm.layers import ClassifierHead, create_pool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vgg import VGG, cfgs
from timm.models.xception import Xception
from torch import nn

# The means of ImageNet's red, green and blue, of 255, that Caffe's networks were trained with.
_CAFFE = {
    "mean": tuple(colour / 255 for colour in (123.68, 116.779, 103.939)),
    "std": (1 / 255,) * 3,
}
_MOMENTUM = 0.01  # of batch norms; Keras writes it as 0.99
RESNET_EPSILON, XCEPTION_EPSILON = 1.001e-5, 1e-3
# timm's name of a network -> the name of Keras' network here
KERAS_NETWORKS = {
    "vgg16": "keras_vgg16",
    "resnet50": "keras_resnet50",
    "legacy_xception": "keras_xception",
}


class KerasVGG16(VGG):  # type: ignore[misc]
    """The 13 convolutions of VGG16, without its dense layers."""

    def __init__(self, num_classes: int = 1000, drop_rate: float = 0.0, **options: Any) -> None:
        # mlp_ratio: the dense layers that are removed are made with one hidden unit.
        super().__init__(cfgs["vgg16"], num_classes=0, mlp_ratio=1 / 4096, **options)
        self.pre_logits = nn.Identity()
        self.num_classes = num_classes
        self.head = ClassifierHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.head_hidden_size = self.num_features


class _FirstStride(Bottleneck):  # type: ignore[misc]
    """A ResNet's block with its stride in the first convolution (He et al. 2015)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


class KerasResNet50(ResNet):  # type: ignore[misc]
    """ResNet50, version 1. The biases of its convolutions belong into the means of the norms."""

    def __init__(self, **options: Any) -> None:
        norm = functools.partial(nn.BatchNorm2d, eps=RESNET_EPSILON, momentum=_MOMENTUM)
        super().__init__(block=_FirstStride, layers=(3, 4, 6, 3), norm_layer=norm, **options)


class KerasXception(Xception):  # type: ignore[misc]
    """Xception, padded as TensorFlow does: maps of an even size differ from timm's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for module in list(self.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = XCEPTION_EPSILON, _MOMENTUM
            elif isinstance(module, nn.Sequential) and isinstance(module[-1], nn.MaxPool2d):
                module[-1] = create_pool2d("max", 3, 2, padding="same")


_NETWORKS: dict[str, type[nn.Module]] = {
    "keras_vgg16": KerasVGG16,
    "keras_resnet50": KerasResNet50,
    "keras_xception": KerasXception,
}
_COMMON = {"num_classes": 1000, "interpolation": "bilinear", "input_size": (3, 224, 224)}
default_cfgs = generate_default_cfgs(
    {
        "keras_vgg16": {
            **_COMMON, **_CAFFE, "first_conv": "features.0", "classifier": "head.fc",
            "pool_size": (7, 7),
        },
        "keras_resnet50": {
            **_COMMON, **_CAFFE, "first_conv": "conv1", "classifier": "fc", "pool_size": (7, 7),
        },
        "keras_xception": {
            "input_size": (3, 299, 299), "crop_pct": 0.8975, "interpolation": "bicubic",
            "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_classes": 1000, "first_conv": "conv1",
            "classifier": "fc", "pool_size": (10, 10),
        },
    }
)  # fmt: skip


def _register(name: str, network: type[nn.Module]) -> None:
    def build(pretrained: bool = False, **options: Any) -> Any:
        return build_model_with_cfg(network, name, pretrained, **options)

    build.__name__ = build.__qualname__ = name
    register_model(build)


for _name, _network in _NETWORKS.items():
    _register(_name, _network)
