"""The parts of a schedule of a head: its input, augmentation of vectors, pruning.

A setting that is None, or a block that is absent, is not used at all.
"""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field

from featurecache.training.head_shapes import MAX_WIDTH, HeadSpec
from featurecache.training.settings import YamlModel

RANDOM_FEATURES = 5000  # unless `width` says another number
QUERIES = 8  # of attention, unless `queries` says another number
TRAINED_KINDS = (None, "attention")  # heads of the other kinds are solved


class HeadSettings(HeadSpec):
    """The head of a schedule: a shape to train, or the `kind` of one that is solved from sums over
    the rows (heads/closed_forms.py), which has no setting but the `width` of random features. The
    kind `attention` is trained, on maps of so many `channels`."""

    kind: Literal["ridge", "logistic", "lda", "ncm", "random_features", "attention"] | None = None
    width: int | None = Field(default=None, ge=1, le=MAX_WIDTH)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _shape_of_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("kind") is None:
            return value
        kind, usual = value["kind"], HeadSpec().model_dump()
        if kind == "attention":
            if "channels" not in value:
                raise ValueError("kind: attention needs channels, the number that its maps have")
            return {"hidden": [], "dropout": 0.0, "queries": QUERIES, **value}
        for name, number in usual.items():
            if value.get(name, number) != number:
                raise ValueError(f"kind: {kind} has no {name}; remove one of them")
        shape = {"hidden": [], "dropout": 0.0, "norm": "none", "activation": "relu"}
        if kind == "random_features":
            width = RANDOM_FEATURES if value.get("width") is None else value["width"]
            shape |= {"hidden": [width]} if type(width) is int and width > 0 else {}
            value = {**value, "width": width}
        return {**{k: v for k, v in value.items() if k not in usual}, **shape}

    @pydantic.model_validator(mode="after")
    def _width_of_random_features(self) -> HeadSettings:
        if self.width is not None and self.kind != "random_features":
            raise ValueError("width is for kind: random_features; remove it, or write hidden")
        if self.queries is not None and self.kind != "attention":
            raise ValueError("queries and channels are for kind: attention; remove them")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, dump: pydantic.SerializerFunctionWrapHandler) -> Any:
        # A head is written as it was before there were kinds and attention.
        written = dump(self)
        if self.is_solved:
            return {name: value for name, value in written.items() if name in ("kind", "width")}
        names = {"width"} if self.kind else {"kind", "width", "queries", "channels"}
        return {name: value for name, value in written.items() if name not in names}

    @property
    def is_solved(self) -> bool:
        """Whether it is computed from sums over the rows, without epochs."""
        return self.kind not in TRAINED_KINDS

    @property
    def shape(self) -> HeadSpec:
        """The shape of the trained or solved head."""
        return HeadSpec(**{name: getattr(self, name) for name in HeadSpec.model_fields})


class Input(YamlModel):
    """Preprocessing of vectors, fitted only on the training rows of a fold.

    `standardise` scales features to mean 0 and deviation 1. `pca` then keeps this number of
    components, or enough to explain this share of the variance (paper 001 uses 0.9). `whiten`
    scales the components to deviation 1.
    """

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


class Features(YamlModel):
    """Augmentation of vectors during training (frozen feature augmentation, Bär et al. 2024).

    Draws are made for every row of every minibatch, in units of each feature's deviation over the
    training rows. `brightness` b adds one number from [-b, b] to all features. `contrast` c
    multiplies their distance from the mean by one number from [1 - c, 1 + c]. `noise` adds a normal
    number of deviation `noise` to each feature.
    """

    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)

    @pydantic.model_validator(mode="after")
    def _something(self) -> Features:
        # Zeros may be written: they are one setting of a sweep.
        if not self.model_fields_set:
            raise ValueError("the block has no effect; set one of its keys, or remove it")
        return self


class Pruning(YamlModel):
    """Pruning after the phases: in each linear layer the `share` of smallest weights is set to zero
    and stays zero for `epochs` more epochs, on the views of the last phase (paper 003's plan, after
    Han et al.)."""

    share: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1)
