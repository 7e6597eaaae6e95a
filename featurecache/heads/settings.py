"""The parts of a schedule of a head: its input, augmentation of vectors, pruning.

A setting that is None, or a block that is absent, is not used at all.
"""

from __future__ import annotations

import pydantic
from pydantic import Field

from featurecache.training.settings import STRICT


class Input(pydantic.BaseModel):
    """Preprocessing of vectors, fitted only on the training rows of a fold.

    `standardise` scales features to mean 0 and deviation 1. `pca` then keeps this number of
    components, or enough to explain this share of the variance (paper 001 uses 0.9). `whiten`
    scales the components to deviation 1.
    """

    model_config = STRICT

    standardise: bool = False
    pca: int | float | None = None
    whiten: bool = False

    @pydantic.model_validator(mode="after")
    def _something(self) -> Input:
        if isinstance(self.pca, float) and not 0 < self.pca < 1:
            raise ValueError(
                "pca must be a share of the variance between 0 and 1, or a whole number"
            )
        if isinstance(self.pca, int) and self.pca < 1:
            raise ValueError("pca needs at least 1 component")
        if self.whiten and self.pca is None:
            raise ValueError("whiten scales principal components; set pca too")
        if not self.standardise and self.pca is None:
            raise ValueError("the block has no effect; set standardise: true or pca, or remove it")
        return self


class Features(pydantic.BaseModel):
    """Augmentation of vectors during training (frozen feature augmentation, Bär et al. 2024).

    Draws are made for every row of every minibatch, in units of each feature's deviation over the
    training rows. `brightness` b adds one number from [-b, b] to all features. `contrast` c
    multiplies their distance from the mean by one number from [1 - c, 1 + c]. `noise` adds a normal
    number of deviation `noise` to each feature.
    """

    model_config = STRICT

    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)


class Pruning(pydantic.BaseModel):
    """Pruning after the phases: in each linear layer the `share` of smallest weights is set to zero
    and stays zero for `epochs` more epochs, on the views of the last phase (paper 003's plan, after
    Han et al.)."""

    model_config = STRICT

    share: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1)
