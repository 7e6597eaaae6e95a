"""What keeps the pictures of a projected GAN apart: fixed statistics, the spread of a minibatch,
augmented pictures, and a mean of weights that soon forgets the first ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.generators import projected
from featurecache.generators.generator import batch
from tests.test_generators import CPU, config, images


def gan(**changed: object) -> projected.ProjectedGan:
    torch.manual_seed(0)
    made = projected.ProjectedGan(config("projected", **changed), images(16))
    made.modules.train()
    return made


def test_maps_have_fixed_statistics_of_real_images() -> None:
    """Those of a minibatch would hide that its pictures are pale or alike."""
    maps = gan().modules["critic"].maps  # type: ignore[union-attr, operator]
    real = batch(images(16).pictures, CPU)
    for mixed, pale, alone in zip(maps(real), maps(real / 10), maps(real[:1]), strict=True):
        assert float(mixed.mean().abs()) < 0.2 and float(mixed.std()) == pytest.approx(1, abs=0.1)
        assert float(pale.std(0).mean()) < 0.2 * float(mixed.std(0).mean())
        torch.testing.assert_close(mixed[:1], alone, rtol=1e-3, atol=1e-3)


def test_a_judge_sees_whether_the_pictures_of_a_minibatch_differ() -> None:
    judge = gan().modules["critic"].judges[0]  # type: ignore[union-attr, index]
    x, labels = torch.randn(4, 64, 2, 2), torch.zeros(4, dtype=torch.long)
    judge.eval()  # type: ignore[union-attr]
    same = judge(x[:1].expand(4, -1, -1, -1), labels)[0]  # type: ignore[operator]
    assert (same - judge(x, labels)[0]).abs().max() > 1e-3  # type: ignore[operator]


def test_augmented_pictures_differ_and_pass_gradients() -> None:
    x = torch.ones(6, 3, 16, 16, requires_grad=True)
    made = projected._augmented(x)
    assert made.shape == x.shape and len({each.sum().item() for each in made}) == 6
    holes = (made == 0).all(1).float().mean((1, 2))
    assert float(holes.min()) > 0 and float(holes.max()) < 0.7
    made.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


@pytest.mark.slow
def test_different_noise_gives_different_pictures_after_some_steps() -> None:
    made = gan(channels=4, noise_size=8, batch_size=8, steps=40)
    data, noise = images(16), torch.randn(32, 8)
    labels = torch.zeros(32, dtype=torch.long)

    def spread(name: str) -> float:
        network = made.modules[name]
        with torch.no_grad():
            pictures = network.eval()(noise, labels).flatten(1)  # type: ignore[operator]
        network.train()
        return float(torch.pdist(pictures).mean())

    real = batch(data.pictures, CPU).flatten(1)
    for step in range(40):
        made.step(data, step, np.random.default_rng(step))
    assert spread("generator") > 0.1 * float(torch.pdist(real).mean())
    assert 0.5 < spread("mean") / spread("generator") < 2
