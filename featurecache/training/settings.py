"""Settings that every training shares: optimizer, lr schedule, early stopping."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field

# Strict: `epochs: yes` or `lr: "1"` is a mistake to be told, not a number to be guessed.
STRICT = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

DEFAULT_MOMENTUM = 0.9


class Optimizer(pydantic.BaseModel):
    """The optimizer and its settings; `momentum` is of sgd (0.9 where it isn't given) and rmsprop,
    `nesterov` of sgd. What can't be set is torch.optim's default."""

    model_config = STRICT

    name: Literal["adamw", "adam", "sgd", "rmsprop", "adadelta"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    nesterov: bool | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _sgd_has_momentum(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") == "sgd":
            return {"momentum": DEFAULT_MOMENTUM, **value}
        return value

    @pydantic.model_validator(mode="after")
    def _others_have_none(self) -> Optimizer:
        if self.name not in ("sgd", "rmsprop") and self.momentum is not None:
            raise ValueError(f"momentum is for sgd and rmsprop, not for {self.name}; take it out")
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov is for sgd with a momentum above 0; take it out")
        return self


class LrSchedule(pydantic.BaseModel):
    """What becomes of the learning rate that the optimizer, or a phase, sets. In YAML a name alone,
    or a mapping.

    `cosine`: at every step times (1 + cos(pi * done)) / 2, `done` being the share of the epochs of
    the training, or of the phase, that are over, and of the steps in this one. `step`: times
    `factor` after every `every` epochs.
    `plateau`: times `factor` when the validation loss was not the lowest so far for `patience`
    epochs, counted anew after that (Keras' ReduceLROnPlateau, without a least change).
    """

    model_config = STRICT

    name: Literal["constant", "cosine", "step", "plateau"]
    over: Literal["training", "phase"] | None = None
    every: int | None = Field(default=None, ge=1)
    factor: float | None = Field(default=None, gt=0, lt=1)
    patience: int | None = Field(default=None, ge=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _own_keys(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        defaults: dict[str, dict[str, Any]] = {
            "constant": {},
            "cosine": {"over": "training"},
            "step": {"every": 10, "factor": 0.1},
            "plateau": {"factor": 0.1, "patience": 10},
        }
        if not isinstance(value, dict) or value.get("name") not in defaults:
            return value  # refused below, with the names there are
        own_defaults = defaults[value["name"]]
        for key in value:
            if key in ("over", "every", "factor", "patience") and key not in own_defaults:
                raise ValueError(f"{value['name']} has no {key}; take it out")
        return {**own_defaults, **value}


class EarlyStopping(pydantic.BaseModel):
    """End when the validation loss was not the lowest so far for `patience` epochs, and keep the
    weights of the epoch in which it was lowest."""

    model_config = STRICT

    patience: int = Field(default=10, ge=1)
