"""Networks that are built for one size of pictures: other sizes, and repositories of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from featurecache.errors import BadInput
from featurecache.features.backbones import load_backbone

VIT = "test_vit.r160_in1k"  # class token, patches of 16 pixels, 160 pixels


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the network at its own size, unlike those that `random` gives."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model(VIT).state_dict(), path)
    return path


def timms_own(name: str, file: Path, size: int) -> Any:
    """The network as timm itself resizes its published weights."""
    overlay = {"file": str(file), "hf_hub_id": None, "url": ""}
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=size, num_classes=0
    ).eval()


@pytest.mark.parametrize("size", [80, 224])
def test_another_size_is_what_timm_makes_of_it(weights: Path, size: int) -> None:
    random_state = torch.get_rng_state()
    resized, own = load_backbone(VIT, weights, input_size=size), load_backbone(VIT, weights)
    assert torch.equal(random_state, torch.get_rng_state())
    wanted = timms_own(VIT, weights, size)
    state = resized.module.state_dict()
    assert state["pos_embed"].shape[1] == (size // 16) ** 2 + 1
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(state[name], tensor), name
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(resized.module(images), wanted(images))
    # One network has one digest; the size is a field of its own.
    assert {**resized.key(), "input_size": 160} == own.key()
    assert resized.dim == own.dim == 64
    assert not resized.module.training
    config: Any = resized.module.pretrained_cfg
    assert config.get("state_dict") is None  # not a second copy of the weights


def test_the_keys_of_its_own_size_stay() -> None:
    # Random weights have other bits on another kind of processor.
    weights = load_backbone(VIT, "random").weights
    for size in (None, 160):
        assert load_backbone(VIT, "random", input_size=size).key() == {
            "name": VIT, "weights": weights, "input_size": 160, "interpolation": "bicubic",
            "crop": 0.95, "crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3,
            "layer": "pre_logits", "pooling": "model",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        (VIT, 100, r"100: it is not a multiple of the patch size 16; --input-size 96 or 112 is the "
         r"nearest, or leave it out to use 160"),
        (VIT, 8, r"patch size 16; --input-size 16 is the nearest"),
        pytest.param(
            "vit_small_patch14_dinov2", 225, "patch size 14; --input-size 224 or 238",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "efficientformer_l1", 256, r"256: .* or leave it out to use 224", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(name: str, size: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_backbone(name, "random", input_size=size)


@pytest.mark.parametrize(
    ("layer", "pooling", "dim"),
    [(None, None, 64), ("features", None, 64), ("features", "token", 64), ("blocks.1", "avg", 64)],
)
def test_layers_at_another_size(
    weights: Path, layer: str | None, pooling: str | None, dim: int
) -> None:
    backbone = load_backbone(VIT, weights, input_size=96, layer=layer, pooling=pooling)
    assert backbone.dim == dim
    network = timms_own(VIT, weights, 96)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = network.forward_features(images)
        found = backbone.module(images)
        if layer is None:
            assert torch.equal(found, network.forward_head(tokens, pre_logits=True))
        elif layer == "features":
            wanted = tokens[:, 0] if pooling == "token" else tokens[:, 1:].mean(1)
            torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch14_dinov2", 70),
        ("vit_small_patch16_dinov3", 112),  # rotary positions, no table of them
        ("test_vit3", 96),  # pooled by attention, like SigLIP
        ("vit_xsmall_patch16_clip_224", 128),
        ("swin_tiny_patch4_window7_224", 128),  # tables of relative positions
        ("test_maxvit", 192),
    ],
)
def test_families_at_another_size(name: str, size: int) -> None:
    backbone = load_backbone(name, "random", input_size=size)
    with torch.inference_mode():
        pictures = torch.rand(2, 3, size, size)
        out = backbone.module(pictures)
        assert out.shape == (2, backbone.dim)
        torch.testing.assert_close(out[:1], backbone.module(pictures[:1]), rtol=1e-3, atol=1e-4)
