"""Preprocessing that is fitted on training vectors: standardisation, PCA, whitening.

It is affine, so it is folded into the first layer of a trained head. A saved head is therefore a
plain network that takes unprocessed vectors, and there is no separate scaler to lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads.mixup_and_noise import mean_and_deviation
from featurecache.heads.settings import Input

# Whitening never divides by less than this share of the first component's deviation.
_MIN_DEVIATION = 1e-4


@dataclass(frozen=True)
class Fitted:
    """A fitted map from vectors (N, D) to (N, K): (x - mean) @ matrix, or without a matrix, and
    with K = D, (x - mean) * scale."""

    mean: torch.Tensor  # (D,)
    scale: torch.Tensor  # (D,)
    matrix: torch.Tensor | None  # (D, K), includes `scale`

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - self.mean
        return centred * self.scale if self.matrix is None else centred @ self.matrix

    @property
    def width(self) -> int:
        """K, the numbers per vector after the map."""
        return len(self.mean) if self.matrix is None else int(self.matrix.shape[1])

    def within(self, head: nn.Sequential) -> nn.Sequential:
        """`head`, which takes (N, K), with this map folded into its first layer; takes (N, D).

        The sums are computed in float64.
        """
        layers = list(head.children())
        index = next(n for n, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        first = layers[index]
        assert isinstance(first, nn.Linear)
        matrix = torch.diag(self.scale) if self.matrix is None else self.matrix
        weight = first.weight.detach().double() @ matrix.cpu().double().T
        bias = first.bias.detach().double() - weight @ self.mean.cpu().double()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        layers[index] = layer
        return nn.Sequential(*layers).eval()


def fit(wanted: Input, rows: torch.Tensor) -> Fitted:
    """Fit to the training vectors (N, D). `Schedule.check_fits` has checked that there are enough.

    Raises BadInput for a PCA of vectors that are all the same.
    """
    mean, deviation = mean_and_deviation(rows)
    if wanted.pca is not None and not (deviation > 0).any():
        raise BadInput(
            "input.pca: all training vectors are the same, so they have no components; check the "
            "weights and the layer they were computed with"
        )
    if not wanted.standardise:
        deviation = torch.ones_like(deviation)
    scale = torch.where(deviation > 0, 1 / deviation, 1.0)
    if wanted.pca is None:
        return Fitted(mean, scale, None)
    from sklearn.decomposition import PCA

    scaled = ((rows - mean) * scale).cpu().numpy()
    pca = PCA(wanted.pca, whiten=wanted.whiten, svd_solver="covariance_eigh").fit(scaled)
    components = torch.from_numpy(pca.components_.T.copy()).to(rows)
    if wanted.whiten:
        deviations = torch.from_numpy(pca.explained_variance_).to(rows).clamp_min(0).sqrt()
        # Components that vary only by rounding errors must not be scaled up to unit deviation.
        components = components / deviations.clamp_min(float(deviations[0]) * _MIN_DEVIATION)
    return Fitted(mean, scale, scale[:, None] * components)
