"""The parts of a schedule: the head, its optimizer, and what is done to rates, rows and weights.

Every setting that is None, or a block that is not written, is not used at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from featurecache.training.settings import STRICT

MAX_WIDTH = 1 << 20  # of a hidden layer: 5 GB of weights over vectors of 1,280 numbers


def _each_layer(below: float) -> pydantic.PlainValidator:
    """One number for all layers, or a list with one for each; from 0 to less than `below`."""

    def checked(value: Any) -> Any:
        numbers = value if isinstance(value, list) else [value]
        if not all(type(n) in (int, float) and 0 <= n < below for n in numbers):
            upper = "" if below == float("inf") else f" and below {below:g}"
            raise ValueError(f"expected a number from 0{upper}, or a list of such numbers")
        return [float(n) for n in value] if isinstance(value, list) else float(value)

    return pydantic.PlainValidator(checked)


Shares = Annotated[float | list[float], _each_layer(1)]

Penalties = Annotated[float | list[float], _each_layer(float("inf"))]


class HeadSpec(pydantic.BaseModel):
    """Shape of a head: dropout of its input, if wanted, [linear, norm, activation, dropout] for
    each of `hidden`, then linear.

    `hidden` holds the widths; with none of them the head is linear (logistic regression). `l1` and
    `l2` are of the weights of each linear layer, the last one's too: the loss that is trained on
    gets l1 * sum(|w|) + l2 * sum(w**2), as Keras counts them. `drop_connect` drops weights of the
    hidden layers, in training, as dropout drops features (Wan et al. 2013).
    """

    model_config = STRICT

    hidden: list[int] = [1024]
    dropout: Shares = 0.5
    input_dropout: float | None = Field(default=None, gt=0, lt=1)
    drop_connect: Shares | None = None
    l1: Penalties | None = None
    l2: Penalties | None = None
    norm: Literal["batch", "layer", "none"] = "batch"
    activation: Literal["relu", "gelu", "silu"] = "relu"

    @pydantic.field_validator("hidden")
    @classmethod
    def _widths(cls, value: list[int]) -> list[int]:
        if any(not 1 <= width <= MAX_WIDTH for width in value):
            raise ValueError(f"every width must be at least 1, at most {MAX_WIDTH}, not {value}")
        return value

    @pydantic.model_validator(mode="after")
    def _as_many_as_layers(self) -> HeadSpec:
        hidden = len(self.hidden)
        layers_of = {"dropout": hidden, "drop_connect": hidden, "l1": hidden + 1, "l2": hidden + 1}
        for name, layers in layers_of.items():
            values = getattr(self, name)
            if isinstance(values, list) and len(values) != layers:
                raise ValueError(f"{name} has {len(values)} numbers, for {layers} layers")
        return self

    def per_layer(self, name: Literal["dropout", "drop_connect", "l1", "l2"]) -> list[float]:
        """The setting `name` for each layer it is of: hidden ones, or for l1 and l2 all."""
        layers = len(self.hidden) + (name in ("l1", "l2"))
        values = getattr(self, name)
        return values if isinstance(values, list) else [values or 0.0] * layers


class Input(pydantic.BaseModel):
    """What is done to vectors before the head, fitted on the training rows of a fold alone.

    `standardise` to mean 0 and deviation 1; then `pca` to so many components, or to as many as
    keep this share of the variance (paper 001 keeps 0.9); `whiten` brings those to deviation 1.
    """

    model_config = STRICT

    standardise: bool = False
    pca: int | float | None = None
    whiten: bool = False

    @pydantic.model_validator(mode="after")
    def _something(self) -> Input:
        if isinstance(self.pca, float) and not 0 < self.pca < 1:
            raise ValueError("pca is a share of the variance between 0 and 1, or a whole number")
        if isinstance(self.pca, int) and self.pca < 1:
            raise ValueError("pca needs at least 1 component")
        if self.whiten and self.pca is None:
            raise ValueError("whiten is of principal components; give pca too")
        if not self.standardise and self.pca is None:
            raise ValueError("nothing is asked for; give standardise: true or pca, or take it out")
        return self


class Features(pydantic.BaseModel):
    """Augmentation of vectors in training (frozen feature augmentation, Bär et al. 2024).

    In units of each feature's deviation over the training rows, drawn for every row of every
    minibatch: `brightness` b adds one number from [-b, b] to all features, `contrast` c multiplies
    their distance from the mean by one number from [1 - c, 1 + c], `noise` adds a normal number of
    deviation `noise` to each.
    """

    model_config = STRICT

    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)


class Pruning(pydantic.BaseModel):
    """After the phases: the `share` of smallest weights of each linear layer becomes zero and stays
    so for `epochs` more, on the views of the last phase (paper 003's plan, after Han et al.)."""

    model_config = STRICT

    share: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1)


class Order(pydantic.BaseModel):
    """Which training rows a phase begins with: a share `start` of them, more in every epoch, and
    all in its last.

    The first are the `easy` or the `hard` ones by their loss: under a linear head trained before
    (`reference`) or the head itself before each epoch (`self`: self-paced learning). `random`
    takes any, and is what the others are to be compared with.
    """

    model_config = STRICT

    by: Literal["reference", "self", "random"]
    first: Literal["easy", "hard"] | None = None
    start: float = Field(default=0.3, gt=0, le=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _easy_first(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("by") in ("reference", "self"):
            return {"first": "easy", **value}
        return value

    @pydantic.model_validator(mode="after")
    def _random_has_no_first(self) -> Order:
        if self.by == "random" and self.first is not None:
            raise ValueError("a random order has no `first`; take it out")
        return self


class Drawn(pydantic.BaseModel):
    """What a random sweep draws a setting from; exactly one of these. `range` [a, b] is even, `log`
    [a, b] even in the logarithm, `choice` one of a list."""

    model_config = STRICT

    range: list[float] | None = None
    log: list[float] | None = None
    choice: list[Any] | None = Field(default=None, min_length=1)

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Drawn:
        names = [n for n in ("range", "log", "choice") if getattr(self, n) is not None]
        if len(names) != 1:
            raise ValueError(f"give one of range, log, choice; there is {' and '.join(names)}")
        ends = self.range or self.log
        if ends is not None and (len(ends) != 2 or ends[0] >= ends[1]):
            raise ValueError(f"{names[0]} takes two numbers, low then high: [a, b]")
        if self.log is not None and self.log[0] <= 0:
            raise ValueError("log takes numbers above 0")
        return self


class Sweep(pydantic.BaseModel):
    """Many settings trained in one command, each with every one of `seeds`.

    Settings go by their dotted key, as `optimizer.lr`. `grid` lists values and takes every
    combination; `over` says what `random` settings are drawn from, by `seed`.
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
            raise ValueError("random and over go together: how many, and drawn from what")
        if self.grid is not None and self.random is not None:
            raise ValueError("take grid or random, not both")
        if self.grid is None and self.random is None and self.seeds is None:
            raise ValueError("nothing to sweep; give grid, random with over, or seeds")
        if any(not values for values in (self.grid or {}).values()):
            raise ValueError("every list of the grid needs a value")
        if len(set(self.seeds or ())) < len(self.seeds or ()):
            raise ValueError(f"a seed is listed twice in {self.seeds}")
        if any(not 0 <= seed < 2**32 for seed in self.seeds or ()):
            raise ValueError("seeds must be 0 or more, and below 2**32")
        return self
