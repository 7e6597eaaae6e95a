"""Settings shared by all trainings: optimizer, learning-rate schedule, early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import Field

from featurecache.errors import BadInput, UnknownName

DEFAULT_MOMENTUM = 0.9
DEVICES = ("auto", "cpu", "cuda")


class YamlModel(pydantic.BaseModel):
    """Base of what users write in YAML: `epochs: yes` or `lr: "1"` is an error to report, not a
    number to guess."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )

    def as_json(self, **choice: Any) -> dict[str, Any]:
        """The settings as JSON has them, without those that are not written (docs/design.md, note
        30). `choice` is `include` or `exclude`."""
        return self.model_dump(mode="json", exclude_none=True, **choice)


class Optimizer(YamlModel):
    """The optimizer and its settings. `momentum` is for sgd (default 0.9) and rmsprop, `nesterov`
    for sgd. Other settings have torch.optim's defaults. `lbfgs` solves a linear head to
    its minimum (logistic regression): it has a weight decay, and no learning rate."""

    name: Literal["adamw", "adam", "sgd", "rmsprop", "adadelta", "lbfgs"] = "adamw"
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
            raise ValueError(f"momentum is for sgd and rmsprop, not for {self.name}; remove it")
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov is for sgd with a momentum above 0; remove it")
        return self


class LrSchedule(YamlModel):
    """Changes over time to the learning rate of the optimizer or the phase. In YAML a name or a
    mapping.

    `cosine`: at every step, times (1 + cos(pi * done)) / 2, where `done` is the share of the
    training, or of the phase, that is over, counted in steps. `step`: times `factor` after every
    `every` epochs. `plateau`: times `factor` when the validation loss has not been the lowest so
    far for `patience` epochs, after which the count restarts (Keras' ReduceLROnPlateau with
    min_delta 0).
    """

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
            return value  # the field's own validation lists the names
        own_defaults = defaults[value["name"]]
        for key in value:
            if key in ("over", "every", "factor", "patience") and key not in own_defaults:
                raise ValueError(f"{value['name']} has no {key}; remove it")
        return {**own_defaults, **value}


class EarlyStopping(YamlModel):
    """Stop when the validation loss has not been the lowest so far for `patience` epochs, and keep
    the weights of the epoch with the lowest loss."""

    patience: int = Field(default=10, ge=1)


Configuration = TypeVar("Configuration", bound=YamlModel)


def with_seed(configuration: Configuration, seed: int | None) -> Configuration:
    """The configuration with its `seed` overridden, unless that is None. Raises BadInput."""
    if seed is None:
        return configuration
    if not 0 <= seed < 2**32:  # scikit-learn takes no others
        raise BadInput(f"seed {seed}: must be from 0 to 2**32 - 1")
    return configuration.model_copy(update={"seed": seed})


def check_device(device: str) -> None:
    """Raise UnknownName for a word that is not a device, BadInput for one that is not there."""
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("device cuda: torch finds no CUDA device; use cpu or auto")


@dataclass(frozen=True)
class Rate:
    """The settings of an optimizer that a schedule changes from step to step."""

    lr: float
    weight_decay: float
