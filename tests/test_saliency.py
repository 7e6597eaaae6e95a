"""Saliency maps: against finite differences, a hand formula, and what stays the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.features.preprocess import INTERPOLATIONS, Preprocess
from featurecache.study import saliency
from featurecache.study.saliency import ImageClassifier

AS_IS = Preprocess(8, "bilinear", 1.0, "center", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
PIXELS = np.random.default_rng(0).integers(40, 216, (8, 8, 3)).astype(np.uint8)


def smooth_network(width: int = 4) -> nn.Module:
    """Without a kink, so that differences are of the second order."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.Tanh(), nn.Conv2d(width, width, 3), nn.Tanh(), nn.Flatten()
    )


def frozen(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


@pytest.fixture
def model() -> ImageClassifier:
    head = nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))
    other = nn.Sequential(nn.Linear(64, 3))
    return ImageClassifier(
        [frozen(smooth_network(), 1)], [AS_IS], [frozen(head, 2), frozen(other, 3)]
    )


def test_gradient_is_that_of_finite_differences(model: ImageClassifier) -> None:
    found = saliency.gradient(model, PIXELS, 1)
    assert found.shape == (8, 8, 3)
    exact = model.double()
    step = 1e-4
    picture = torch.tensor(PIXELS, dtype=torch.float64).permute(2, 0, 1)[None] / 255
    for y, x, channel in [(0, 0, 0), (3, 4, 1), (7, 2, 2), (5, 5, 0)]:
        scores = []
        for sign in (1, -1):
            moved = picture.clone()
            moved[0, channel, y, x] += sign * step
            scores.append(float(exact.score([moved], 1)))
        assert found[y, x, channel] == pytest.approx((scores[0] - scores[1]) / (2 * step), rel=1e-3)


def test_several_networks_add_up_on_the_pixels_of_the_picture() -> None:
    """Networks of other sizes, crops and filters, over a picture that is not square; linear, so
    that a step of one pixel's value is the gradient."""
    preprocesses = [
        Preprocess(6, "bicubic", 0.8, "center", (0.5,) * 3, (0.5,) * 3),
        Preprocess(9, "bilinear", 1.0, "squash", (0.4,) * 3, (0.2,) * 3),
    ]
    networks = [frozen(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), n) for n in (1, 2)]
    head = frozen(nn.Sequential(nn.Linear(2 * 4 * 4 + 2 * 7 * 7, 3)), 3)
    model = ImageClassifier(networks, preprocesses, [head])
    pixels = np.random.default_rng(1).integers(90, 160, (12, 17, 3)).astype(np.uint8)
    found = saliency.gradient(model, pixels, 2)

    def score(values: np.ndarray) -> float:
        given = []
        for preprocess in preprocesses:
            down, across = preprocess.matrices(12, 17)
            channels = np.stack([down @ values[..., c] @ across.T for c in range(3)])
            given.append(torch.tensor(channels)[None])
        return float(model.double().score(given, 2))

    values = pixels / 255
    for y, x, channel in [(0, 0, 0), (6, 8, 1), (11, 16, 2), (5, 3, 0)]:
        moved = values.copy()
        moved[y, x, channel] += 0.5
        expected = (score(moved) - score(values)) / 0.5
        assert found[y, x, channel] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("shape", [(64, 64), (30, 41), (9, 7)])
def test_matrices_do_what_preprocessing_does(
    interpolation: str, mode: str, shape: tuple[int, int]
) -> None:
    preprocess = Preprocess(20, interpolation, 0.8, mode, (0.0,) * 3, (1.0,) * 3)
    pixels = np.random.default_rng(0).integers(70, 180, (*shape, 3)).astype(np.uint8)
    down, across = preprocess.matrices(*shape)
    linear = np.stack([down @ pixels[..., c] @ across.T for c in range(3)], 2)
    assert np.abs(linear - preprocess(pixels)).max() < 1.5  # twice rounded to bytes


def test_what_is_cropped_away_is_not_looked_at() -> None:
    preprocess = Preprocess(8, "nearest", 0.5, "center", (0.0,) * 3, (1.0,) * 3)
    network = frozen(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AvgPool2d(2)), 0)
    model = ImageClassifier([nn.Sequential(network, nn.Flatten())], [preprocess], [nn.Flatten()])
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    border = np.ones((16, 16), bool)
    border[4:12, 4:12] = False
    for found in (
        saliency.absolute(saliency.gradient(model, pixels, 0)),
        saliency.class_activations(model, pixels, 0),
    ):
        assert np.all(found[border] == 0) and np.any(found[~border] != 0)


def test_probabilities_are_those_of_the_mean_over_members(model: ImageClassifier) -> None:
    found = saliency.probabilities(model, PIXELS)
    with torch.no_grad():
        each = model(model.ready(PIXELS)).softmax(2)
    assert found.shape == (3,) and found.sum() == pytest.approx(1)
    assert found == pytest.approx(((each[0] + each[1]) / 2)[0].numpy())


def test_smoothgrad_follows_from_its_seed(model: ImageClassifier) -> None:
    def smooth(seed: int, samples: int = 7, noise: float = 0.15) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return saliency.smooth_gradient(model, PIXELS, 0, rng, samples, noise)

    assert np.array_equal(smooth(0), smooth(0))
    assert not np.allclose(smooth(0), smooth(1))
    plain = saliency.gradient(model, PIXELS, 0)
    assert np.allclose(smooth(0, noise=1e-6), plain, rtol=1e-3, atol=1e-5)
    assert not np.allclose(smooth(0), plain, rtol=1e-3, atol=1e-5)


def test_smoothgrad_is_the_mean_of_the_gradients_at_its_copies(model: ImageClassifier) -> None:
    found = saliency.smooth_gradient(model, PIXELS, 0, np.random.default_rng(3), 6, 0.2)
    (x,) = model.ready(PIXELS)
    rng = np.random.default_rng(3)
    span = float(x.max() - x.min())
    each = []
    for _ in range(6):
        noisy = x + 0.2 * span * torch.from_numpy(rng.standard_normal((1, 3, 8, 8), np.float32))
        noisy.requires_grad_()
        model.score([noisy], 0).backward()
        assert noisy.grad is not None
        each.append(noisy.grad[0].permute(1, 2, 0).numpy())
    assert np.allclose(found, np.mean(each, 0), rtol=1e-4, atol=1e-6)


def test_grad_cam_is_the_hand_formula() -> None:
    """Maps, their mean, a linear head: the weight of a channel is its weight in the head over the
    number of cells (Selvaraju et al., equation 1; Zhou et al.'s CAM)."""
    maps = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU(inplace=True))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = frozen(nn.Linear(4, 3), 5)
    network = frozen(nn.Sequential(maps, pool), 4)
    model = ImageClassifier([network], [AS_IS], [nn.Sequential(head)])
    found = saliency.class_activations(model, PIXELS, 2)
    assert isinstance(head, nn.Linear)
    (x,) = model.ready(PIXELS)
    mean, std = torch.tensor(AS_IS.mean), torch.tensor(AS_IS.std)
    activations = maps((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))[0]  # (4, 4, 4)
    cells = torch.einsum("k,khw->hw", head.weight[2], activations) / 16
    drawn = nn.functional.interpolate(cells[None, None], size=(8, 8), mode="bilinear")[0, 0]
    assert np.allclose(found, drawn.numpy(), rtol=1e-5, atol=1e-7)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 2, stride=2)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.patches(x).flatten(2).transpose(1, 2)).mean(1)


def test_grad_cam_refuses_what_has_no_map() -> None:
    model = ImageClassifier([frozen(Tokens(), 0)], [AS_IS], [nn.Linear(4, 3)])
    with pytest.raises(BadInput, match="Tokens does not; use --method gradient"):
        saliency.class_activations(model, PIXELS, 0)
    assert saliency.gradient(model, PIXELS, 0).any()


def test_absolute_and_signed_and_share() -> None:
    gradient = np.zeros((2, 2, 3))
    gradient[0, 0] = 1, -3, 1
    gradient[1, 1] = 0, 0, 1
    assert saliency.absolute(gradient).tolist() == [[3, 0], [0, 1]]
    assert saliency.signed(gradient).tolist() == [[-1, 0], [0, 1]]
    mask = np.array([[True, True], [False, False]])
    assert saliency.share_inside(saliency.absolute(gradient), mask) == 0.75
    assert saliency.share_inside(np.zeros((2, 2)), mask) is None
