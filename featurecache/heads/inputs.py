"""What is fitted on training vectors before a head: standardisation, PCA, whitening.

All of it is affine, so it disappears into the first layer of a trained head, which then takes the
vectors as they are: a saved head is a plain network, and nothing can be forgotten beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.decomposition import PCA
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads.perturb import spread
from featurecache.heads.settings import Input

# Whitening divides by no deviation below this share of the first component's.
_MIN_DEVIATION = 1e-4


@dataclass(frozen=True)
class Fitted:
    """The map of vectors (N, D) to (N, K): (x - mean) @ matrix, or (x - mean) * scale where there
    is no matrix and K is D."""

    mean: torch.Tensor  # (D,)
    scale: torch.Tensor  # (D,)
    matrix: torch.Tensor | None  # (D, K), which has `scale` in it

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - self.mean
        return centred * self.scale if self.matrix is None else centred @ self.matrix

    def within(self, head: nn.Sequential) -> nn.Sequential:
        """The head of (N, K) as one of (N, D), by another first layer; summed in float64."""
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
    """Fit to the training vectors (N, D), which `Schedule.check_fits` has found enough.

    Raises BadInput for a PCA of vectors that are all the same.
    """
    mean, deviation = spread(rows)
    if wanted.pca is not None and not (deviation > 0).any():
        raise BadInput(
            "input.pca: all training vectors are the same, so they have no components; look at the "
            "weights and the layer that they were made with"
        )
    if not wanted.standardise:
        deviation = torch.ones_like(deviation)
    scale = torch.where(deviation > 0, 1 / deviation, 1.0)
    if wanted.pca is None:
        return Fitted(mean, scale, None)
    scaled = ((rows - mean) * scale).cpu().numpy()
    pca = PCA(wanted.pca, whiten=wanted.whiten, svd_solver="covariance_eigh").fit(scaled)
    components = torch.from_numpy(pca.components_.T.copy()).to(rows)
    if wanted.whiten:
        deviations = torch.from_numpy(pca.explained_variance_).to(rows).clamp_min(0).sqrt()
        # What has no variance but of rounding is not blown up to as much as the rest.
        components = components / deviations.clamp_min(float(deviations[0]) * _MIN_DEVIATION)
    return Fitted(mean, scale, scale[:, None] * components)
