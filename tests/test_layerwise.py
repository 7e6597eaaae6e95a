"""Layer-wise pretraining: which layers are trained in which epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.features.timm_models import find_model
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.layerwise import check_epochs, ends_of_layers
from featurecache.networks.trainable import TrainableNetwork
from featurecache.networks.training import Request, TrainingRows, train_network
from featurecache.training import checkpoints

LAYERS = ("body.0", "body.3", "head.1")
ROWS = TrainingRows(
    labels=np.arange(24, dtype=np.int64) % 2,
    train=np.arange(16),
    val=np.arange(16, 24),
    classes=["dark", "bright"],
)


def config(**changed: Any) -> NetworkConfig:
    plan = {"network": "x", "views": "none", "batch_size": 4, "validation": "val", "epochs": 5}
    return NetworkConfig.model_validate(plan | {"pretrain": "layerwise"} | changed)


def small_network(trunk: nn.Module | None = None) -> TrainableNetwork:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2))
    return TrainableNetwork(trunk, body, head, (0.5,) * 3, (0.5,) * 3, has_frozen_norms=False)


def pictures(requests: Iterator[Request]) -> Iterator[np.ndarray]:
    for request in requests:
        rng = np.random.default_rng(request.rows)
        shape = (len(request.rows), 6, 6, 3)
        yield rng.integers(0, 255, shape).astype(np.uint8)


def states(run: Path, wanted: NetworkConfig) -> list[dict[str, torch.Tensor]]:
    """The tensors of the network before the training and after each epoch."""
    network = small_network()

    def copy() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in network.state_dict().items()}

    run.mkdir(exist_ok=True)
    copies = [copy()]
    train_network(
        network, pictures, ROWS, wanted, run, "x", on_epoch=lambda row: copies.append(copy())
    )  # type: ignore[arg-type]
    return copies


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_layer_changes_from_its_epoch_on(optimizer: str, tmp_path: Path) -> None:
    copies = states(tmp_path, config(optimizer={"name": optimizer}))
    for number, (before, after) in enumerate(itertools.pairwise(copies), 1):
        changed = [
            x for x in LAYERS if not torch.equal(before[f"{x}.weight"], after[f"{x}.weight"])
        ]
        assert changed == list(LAYERS[:number])
        assert not torch.equal(before["body.1.weight"], after["body.1.weight"])  # of the first


def test_epochs_per_layer_are_counted(tmp_path: Path) -> None:
    copies = states(tmp_path, config(pretrain={"name": "layerwise", "epochs": 2}))
    heads = [copy["head.1.weight"] for copy in copies]
    assert [torch.equal(a, b) for a, b in itertools.pairwise(heads)] == [True] * 4 + [False]


def test_a_killed_pretraining_resumes_to_the_same_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = states(tmp_path / "whole", config())[-1]
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    run, steps = tmp_path / "stopped", itertools.count(1)
    run.mkdir()

    def stop(_: int) -> None:
        if next(steps) == 6:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(small_network(), pictures, ROWS, config(), run, "x", on_images=stop)  # type: ignore[arg-type]
    resumed = states(run, config())[-1]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_a_training_that_ends_before_the_last_layer_is_refused() -> None:
    network = small_network(trunk=nn.Conv2d(3, 3, 1))
    assert ends_of_layers(network) == [4, 6, 8]
    check_epochs(config(epochs=3), network)
    with pytest.raises(BadInput, match=r"has 3 layers, .* before epoch 3, but .* 2 epochs; raise"):
        check_epochs(config(epochs=2), network)


def test_the_layers_of_a_network_are_its_convolutions_and_dense_layers() -> None:
    head = nn.Sequential(nn.Linear(512, 2))
    body = find_model("convnet9").build_meta()
    network = TrainableNetwork(None, body, head, (0,) * 3, (1,) * 3, has_frozen_norms=False)
    assert ends_of_layers(network) == [4 * n for n in range(1, 11)] + [42]
    assert len([p for p in network.parameters() if p.requires_grad]) == 42
