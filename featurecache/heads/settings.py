"""The parts of a schedule of a head: its input, augmentation of vectors, pruning, sweeps.

A setting that is None, or a block that is absent, is not used at all.
"""

from __future__ import annotations

from typing import Any

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


class Drawn(pydantic.BaseModel):
    """The distribution of a setting in a random sweep; exactly one of the fields. `range` [a, b] is
    uniform, `log` [a, b] uniform in the logarithm, `choice` picks from a list."""

    model_config = STRICT

    range: list[float] | None = None
    log: list[float] | None = None
    choice: list[Any] | None = Field(default=None, min_length=1)

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Drawn:
        names = [n for n in ("range", "log", "choice") if getattr(self, n) is not None]
        if len(names) != 1:
            listed = " and ".join(names) or "none of them"
            raise ValueError(f"give exactly one of range, log, choice, not {listed}")
        ends = self.range or self.log
        if ends is not None and (len(ends) != 2 or ends[0] >= ends[1]):
            raise ValueError(f"{names[0]} takes two numbers, low then high: [a, b]")
        if self.log is not None and self.log[0] <= 0:
            raise ValueError("log takes numbers above 0")
        return self


class Sweep(pydantic.BaseModel):
    """Many settings trained in one command, each with every seed of `seeds`.

    Settings are named by their dotted key, such as `optimizer.lr`. `grid` lists values and trains
    every combination. `random` is the number of settings drawn, with `seed`, from the distributions
    in `over`.
    """

    model_config = STRICT

    seeds: list[int] | None = Field(default=None, min_length=1)  # None: the schedule's seed
    grid: dict[str, list[Any]] | None = Field(default=None, min_length=1)
    random: int | None = Field(default=None, ge=1)
    over: dict[str, Drawn] | None = Field(default=None, min_length=1)
    seed: int = Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _grid_or_random(self) -> Sweep:
        if (self.random is None) != (self.over is None):
            raise ValueError(
                "random and over belong together: the number of draws and their distributions"
            )
        if self.grid is not None and self.random is not None:
            raise ValueError("use grid or random, not both")
        if self.grid is None and self.random is None and self.seeds is None:
            raise ValueError("nothing to sweep; give grid, random with over, or seeds")
        if any(not values for values in (self.grid or {}).values()):
            raise ValueError("every list of the grid needs at least one value")
        if len(set(self.seeds or ())) < len(self.seeds or ()):
            raise ValueError(f"a seed is listed twice in {self.seeds}")
        if any(not 0 <= seed < 2**32 for seed in self.seeds or ()):
            raise ValueError("seeds must be from 0 to 2**32 - 1")
        return self
