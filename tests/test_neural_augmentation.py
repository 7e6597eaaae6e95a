"""Neural augmentation: the drawn pairs, the losses, and trainings that resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featurecache
from featurecache.architectures.augnet import AugNet
from featurecache.generators.augnet import FrozenAugNet
from featurecache.generators.trained_generators import load_generator
from featurecache.networks.configs import NeuralAugmentation
from featurecache.networks.neural_augmentation import PairSampler, augment, augmentation_loss
from featurecache.networks.trainable import TrainableNetwork
from featurecache.networks.training import train_network
from featurecache.training import checkpoints
from tests.test_train_network import ROWS, SMALL, config, pictures, small_network

LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 1])
TRAIN = np.arange(6)


def test_augnet_has_the_five_layers_of_the_paper() -> None:
    network = AugNet()
    first, second = torch.randn(2, 4, 3, 28, 28)
    assert network(first, second).shape == (4, 3, 28, 28)
    assert sum(p.numel() for p in network.parameters()) == 880 + 3 * 2320 + 435
    assert not torch.equal(network(first, second), network(second, first))


@pytest.mark.parametrize(
    ("pairs", "loss", "count"),
    [("random", "none", 3), ("random", "style", 4), ("same", "none", 1), ("same", "content", 2)],
)
def test_partners_are_training_rows_of_the_same_class(pairs: Any, loss: Any, count: int) -> None:
    sampler = PairSampler(NeuralAugmentation(pairs=pairs, loss=loss), LABELS, TRAIN)
    rows = np.array([5, 0, 1])
    drawn = np.concatenate(
        [sampler.with_partners(rows, np.random.default_rng(n)) for n in range(40)]
    ).reshape(40, count, 3)
    assert (drawn[:, 0] == rows).all() and (LABELS[drawn] == LABELS[rows]).all()
    if count > 1:
        assert set(drawn[:, 1:, 1].flat) == {0, 2, 4}  # row 6 is no training row


def test_the_control_makes_a_picture_of_the_same_image_twice() -> None:
    x = torch.randn(2, 3, 8, 8)
    both, loss = augment(lambda a, b: a + b, NeuralAugmentation(pairs="same"), x, 2)  # type: ignore[arg-type]
    assert torch.equal(both, torch.cat([x, 2 * x])) and loss == 0


def test_the_losses_compare_pictures_or_their_gram_matrices() -> None:
    made, target = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    assert augmentation_loss("content", made, [target]) == (made - target).square().mean()
    first, second = (torch.einsum("bchw,bdhw->bcd", x, x) / 64 for x in (made, target))
    style = augmentation_loss("style", made, [target])
    torch.testing.assert_close(style, (first - second).square().mean())
    rearranged = made.flatten(2)[..., torch.randperm(64)].reshape(made.shape)
    assert augmentation_loss("style", made, [rearranged]) < 1e-20


def augmenting_network() -> TrainableNetwork:
    plain = small_network()
    network = TrainableNetwork(
        None, plain.body, plain.head, (0.5,) * 3, (0.5,) * 3, False, AugNet(width=2)
    )
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("loss", ["none", "content", "style"])
def test_both_networks_learn_and_a_stopped_training_ends_with_the_same_numbers(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(neural_augmentation=loss)

    def train(run: Path, stop_after: int = 10**9) -> tuple[list[Any], dict[str, torch.Tensor]]:
        run.mkdir(exist_ok=True)
        network, done = augmenting_network(), 0

        def on_images(count: int) -> None:
            nonlocal done
            done += count
            if done >= stop_after:
                raise KeyboardInterrupt

        rows = train_network(network, pictures, ROWS, wanted, run, "id", on_images=on_images)
        return [{**row, "seconds": 0.0} for row in rows], network.trained_state()

    before = augmenting_network().trained_state()
    rows, state = train(tmp_path / "whole")
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"body", "head", "augmenter"}
    assert all(0 <= row["train_top1"] <= 1 for row in rows)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", 30)
    resumed_rows, resumed = train(tmp_path / "stopped")
    assert resumed_rows == rows
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in state.items())


def test_every_view_shows_each_image_in_all_views(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []

    def source(requests: Any) -> Any:
        for request in requests:
            seen.extend(zip(request.rows.tolist(), request.views, strict=True))
            yield np.zeros((len(request.rows), 6, 6, 3), np.uint8)

    views = {"views": ["none", "color"], "every_view": True, "epochs": 1}
    wanted = config(**views)
    train_network(small_network(), source, ROWS, wanted, tmp_path, "id")
    count = 2 * len(ROWS.train)
    assert wanted.pictures_per_epoch(len(ROWS.train)) == [count]
    assert sorted(seen[:count]) == [(row, v) for row in ROWS.train for v in ("color", "none")]
    assert len(seen) == count + len(ROWS.val)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"neural_augmentation": "none", "mixup": 0.4}, "can't be joined with mixup"),
        ({"neural_augmentation": "sharp"}, "loss"),
        ({"neural_augmentation": {"beta": 0.5}}, "beta is the weight of the loss content or style"),
        ({"every_view": True, "views": {"none": 0.7, "color": 0.3}}, "list them without shares"),
    ],
)
def test_a_wrong_configuration_is_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        config(**changed)


@pytest.mark.slow
def test_the_command_keeps_the_augmentation_network(small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(
        SMALL.replace("{none: 0.5, color: 0.5}", "none").replace("epochs: 3", "epochs: 1")
        + "neural_augmentation: content\n"
    )
    result = featurecache.train_network(
        tmp_path / "net.yaml", data=small_data, cache=tmp_path / "cache", runs=tmp_path / "runs",
        workers=0, device="cpu",
    )  # fmt: skip
    saved = load_generator(result.run)
    assert isinstance(saved, FrozenAugNet) and len(saved.images) == 36
    assert featurecache.evaluate(result.run).top1 == result.last["top1"]
