"""The networks of the papers: their sizes, and that they are networks like timm's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from featurecache.architectures import registration
from featurecache.errors import BackboneUnavailable, BadInput
from featurecache.features.backbone_table import search_rows
from featurecache.features.backbones import layers_of, load_backbone
from featurecache.features.cuts import trunk_and_body
from featurecache.features.initial_networks import initial_network
from featurecache.features.timm_models import check_name, find_model


def convolution(kernel: int, before: int, width: int, norm: bool = True) -> int:
    return kernel**2 * before * width + width + 2 * width * norm


def dense(*widths: int, norm: bool = False) -> int:
    pairs = itertools.pairwise(widths)
    return sum(before * width + width + 2 * width * norm for before, width in pairs)


ALPHANET = (
    convolution(3, 3, 64) + convolution(3, 64, 128) + convolution(3, 128, 256)
    + 2 * convolution(3, 256, 256)
)  # fmt: skip
SMALLNET = convolution(3, 3, 16) + convolution(3, 16, 32, False) + convolution(3, 32, 32)
CONVNET9 = (
    convolution(5, 3, 64) + convolution(3, 64, 64)
    + convolution(3, 64, 128) + convolution(3, 128, 128)
    + convolution(3, 128, 256) + convolution(3, 256, 256)
    + convolution(3, 256, 512) + convolution(3, 512, 512) + convolution(3, 512, 1024)
)  # fmt: skip
# Input size, size of the last map, and parameters without the classifier.
SIZES = {
    "alphanet_v1": (64, (256, 8, 8), ALPHANET + dense(256 * 64, 2048, 2048, norm=True)),
    "alphanet_v2": (64, (256, 8, 8), ALPHANET + dense(256 * 64, 2048, 2048, norm=True)),
    "alphanet_v3": (72, (256, 9, 9), ALPHANET + dense(256 * 81, 1024, 1024, norm=True)),
    "alphanet_v4": (64, (256, 8, 8), ALPHANET + dense(256 * 64, 1024, 1024, norm=True)),
    # timm's resnet18 has 11,176,512 parameters without its classifier.
    "bravonet": (64, (512, 2, 2), 11_176_512 + dense(512, 1024, 1024, norm=True)),
    "convnet9": (64, (1024, 2, 2), CONVNET9 + dense(4096, 512, norm=True)),
    "vgg_like": (
        64,
        (64, 13, 13),
        convolution(3, 3, 32, False) + convolution(3, 32, 32, False)
        + convolution(3, 32, 64, False) + convolution(3, 64, 64, False)
        + dense(64 * 169, 256),
    ),
    # Simonyan and Zisserman's convolutions have 14,714,688 parameters.
    "vgg16_64": (64, (512, 2, 2), 14_714_688 + dense(2048, 4096, 4096)),
    "alexnet": (
        64,
        (256, 3, 3),
        convolution(11, 3, 64) + convolution(7, 64, 128) + convolution(3, 128, 192)
        + convolution(3, 192, 256) + dense(2304, 4096, 4096, norm=True),
    ),
    "smallnet": (64, (32, 16, 16), SMALLNET + dense(32 * 256, 1024)),
    "smallnet_28": (28, (32, 7, 7), SMALLNET + dense(32 * 49, 1024)),
}  # fmt: skip


def dropouts(network: nn.Module) -> list[float]:
    return [module.p for module in network.modules() if isinstance(module, nn.Dropout)]


def test_all_networks_are_measured() -> None:
    assert set(SIZES) == set(registration.ARCHITECTURES)


@pytest.mark.parametrize("name", SIZES)
def test_a_network_has_the_sizes_of_its_paper(name: str) -> None:
    size, shape, parameters = SIZES[name]
    model = find_model(name)
    network = model.build_meta()
    images = torch.zeros(2, 3, size, size, device="meta")
    assert check_name(name) == model.model == name
    assert model.size == size
    assert tuple(network.forward_features(images).shape[1:]) == shape
    assert network(images).shape == (2, network.num_features)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.feature_info[-1]["num_chs"] == shape[0]
    with torch.device("meta"):
        classifier = model.build(num_classes=7, in_chans=1).eval()
    assert classifier(images[:, :1]).shape == (2, 7)
    classifier.reset_classifier(0)
    assert isinstance(classifier.get_classifier(), nn.Identity)


def test_dropouts_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        rates = {name: dropouts(find_model(name).build()) for name in SIZES}
        changed = dropouts(find_model("convnet9").build(drop_rate=0.1))
    assert rates["alphanet_v1"] == [0.4] * 5 + [0.5] * 2
    assert rates["alphanet_v4"] == [0.2] * 7
    assert rates["bravonet"] == [0.2] * 2
    assert rates["convnet9"] == rates["vgg_like"] == [0.25, 0.25, 0.5]
    assert rates["vgg16_64"] == [0.75] * 2
    assert rates["smallnet"] == [0.5]
    assert changed == [0.1] * 3


def test_the_maps_of_a_network_are_those_of_its_stages() -> None:
    network = find_model("smallnet_28").build().eval()
    images = torch.rand(2, 3, 28, 28)
    last, maps = network.forward_intermediates(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 14, 14), (32, 14, 14), (32, 7, 7)]
    assert torch.equal(last, network.forward_features(images))
    (middle,) = network.forward_intermediates(
        images, indices=[1], stop_early=True, intermediates_only=True
    )
    assert torch.equal(middle, maps[1])
    assert len(network.forward_intermediates(images, indices=2)[1]) == 2
    trunk, body = trunk_and_body(network, "dense")
    assert torch.equal(body.eval()(trunk(images)), network(images))


def test_a_network_of_a_paper_is_a_backbone_of_any_size() -> None:
    own = load_backbone("smallnet_28", "random")
    larger = load_backbone("smallnet_28", "random", input_size=40)
    assert (own.dim, own.preprocess.input_size, larger.dim) == (1024, 28, 1024)
    assert own.weights == larger.weights
    assert list(layers_of("bravonet"))[-1] == "layer4"


def test_what_a_network_of_a_paper_lacks_is_said() -> None:
    with pytest.raises(BackboneUnavailable, match="smallnet has no published weights; pass --weig"):
        load_backbone("smallnet")
    with pytest.raises(BadInput, match="network smallnet has no drop_path_rate; remove drop_path"):
        initial_network("smallnet", "random", regularization={"drop_path_rate": 0.1})
    row = {row["name"]: row for row in search_rows("smallnet")}["smallnet"]
    assert (row["weights"], row["state"], row["dim"]) == ("none: train it", "not here", 1024)
