"""Pictures that are not normalised as a network's first batch norm expects are noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featurecache.features.backbones import load_backbone
from featurecache.features.normalisations import NORMALISATIONS, normalisation_note
from featurecache.features.timm_models import find_model
from featurecache.stages.cache.featurize import featurize

Write = Callable[..., Path]


def pictures(seed: int, spread: float = 50) -> np.ndarray:
    """Colours that vary from picture to picture and from place to place."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(118, spread, (16, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.asarray(blocks.clip(0, 255), np.uint8)


def trained(folder: Path, name: str) -> Path:
    """A ResNet whose norms have the statistics of pictures under this normalisation."""
    torch.manual_seed(0)
    module: Any = find_model("resnet10t").build(num_classes=0)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in NORMALISATIONS[name])
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches
    module.train()
    with torch.no_grad():
        for seed in range(3):
            images = torch.from_numpy(pictures(10 + seed)).permute(0, 3, 1, 2) / 255
            module((images - mean) / std)
    save_file(module.state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_the_normalisation_that_the_norms_were_trained_with_is_found(
    name: str, tmp_path: Path
) -> None:
    file = trained(tmp_path, name)
    backbone = load_backbone("resnet10t", file, input_size=64, crop=1.0)
    note = normalisation_note(backbone, pictures(1))
    if name == "ImageNet's mean and std":  # the one of the network
        assert note == ""
        assert normalisation_note(backbone, pictures(1, spread=20)) == ""  # other pictures
    else:
        assert f"{name} fit better" in note


def test_networks_without_trained_norms_have_no_note(tmp_path: Path) -> None:
    for model in ("resnet10t", "vit_tiny_patch16_224"):
        backbone = load_backbone(model, "random")
        assert normalisation_note(backbone, np.zeros((2, 224, 224, 3), np.uint8)) == ""


@pytest.mark.slow
def test_featurize_notes_it(tmp_path: Path, write_dataset: Write) -> None:
    data = write_dataset(tmp_path / "data", {"cat": 2, "dog": 2})
    options: dict[str, Any] = {
        "backbone": "resnet10t", "weights": trained(tmp_path, "numbers from 0 to 255"),
        "input_size": 32, "crop": 1.0, "engine": "torch-cpu", "workers": 0,
        "cache": tmp_path / "cache",
    }  # fmt: skip
    (note,) = featurize(data, **options).notes
    assert "does not expect pictures with mean" in note
    assert not featurize(data, **options).notes  # nothing was computed
