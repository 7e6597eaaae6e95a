"""The shape of a head: the layers between a vector and the logits. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from featurecache.text import counted
from featurecache.training.settings import YamlModel

MAX_WIDTH = 1 << 20  # of a hidden layer: 5 GB of weights for vectors of width 1,280
_MAPS = ("queries", "channels")
_OF_HIDDEN_LAYERS = ("dropout", "norm", "activation", "drop_connect")


def _per_layer(below: float) -> pydantic.PlainValidator:
    """One number for all layers or a list with one per layer, from 0 to less than `below`."""

    def checked(value: Any) -> Any:
        numbers = value if isinstance(value, list) else [value]
        if not all(type(n) in (int, float) and 0 <= n < below for n in numbers):
            upper = "" if below == float("inf") else f" and below {below:g}"
            raise ValueError(f"expected a number from 0{upper}, or a list of such numbers")
        return [float(n) for n in value] if isinstance(value, list) else float(value)

    return pydantic.PlainValidator(checked)


Shares = Annotated[float | list[float], _per_layer(1)]

Penalties = Annotated[float | list[float], _per_layer(float("inf"))]


class HeadSpec(YamlModel):
    """Shape of a head: optional input dropout, [linear, norm, activation, dropout] for each of
    `hidden`, then linear.

    `hidden` lists the widths; if it is empty the head is linear (logistic regression). `l1` and
    `l2` apply to the weights of every linear layer, including the last: l1 * sum(|w|) +
    l2 * sum(w**2) is added to the training loss, as in Keras. `drop_connect` drops weights of the
    hidden layers during training, as dropout drops features (Wan et al. 2013). With `queries` the
    input is a flattened map of so many `channels`, which is pooled first (heads/attention.py) and
    normalized.
    """

    hidden: list[int] = Field(default=[1024])
    dropout: Shares = 0.5
    input_dropout: float | None = Field(default=None, gt=0, lt=1)
    drop_connect: Shares | None = None
    l1: Penalties | None = None
    l2: Penalties | None = None
    norm: Literal["batch", "layer", "none"] = "batch"
    activation: Literal["relu", "gelu", "silu"] = "relu"
    queries: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    channels: int | None = Field(default=None, ge=1, le=MAX_WIDTH)

    @pydantic.model_validator(mode="after")
    def _queries_of_channels(self) -> HeadSpec:
        if (self.queries is None) != (self.channels is None):
            raise ValueError("queries and channels are of attention: give both or none")
        if self.queries is not None and self.channels is not None and self.channels % self.queries:
            raise ValueError(
                f"{self.channels} channels can't be shared equally by {self.queries} queries; "
                "choose a divisor"
            )
        return self

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, dump: pydantic.SerializerFunctionWrapHandler) -> Any:
        # A head without attention is written as it was before there was any.
        written = dump(self)
        return written if self.queries else {k: v for k, v in written.items() if k not in _MAPS}

    @pydantic.field_validator("hidden")
    @classmethod
    def _widths(cls, value: list[int]) -> list[int]:
        if any(not 1 <= width <= MAX_WIDTH for width in value):
            raise ValueError(f"every width must be from 1 to {MAX_WIDTH}, not {value}")
        return value

    @pydantic.model_validator(mode="after")
    def _as_many_as_layers(self) -> HeadSpec:
        hidden = len(self.hidden)
        lengths = {"dropout": hidden, "drop_connect": hidden, "l1": hidden + 1, "l2": hidden + 1}
        for name, layers in lengths.items():
            values = getattr(self, name)
            if isinstance(values, list) and len(values) != layers:
                raise ValueError(
                    f"{name} has {counted(len(values), 'number')} for {counted(layers, 'layer')}"
                )
        return self

    def per_layer(self, name: Literal["dropout", "drop_connect", "l1", "l2"]) -> list[float]:
        """The setting `name` for each layer it applies to: hidden layers, or all for l1 and l2."""
        layers = len(self.hidden) + (name in ("l1", "l2"))
        values = getattr(self, name)
        return values if isinstance(values, list) else [values or 0.0] * layers


def unused_settings(head: HeadSpec, keys: Iterable[str], trained: Sequence[HeadSpec]) -> list[str]:
    """A note about settings of hidden layers, written in a head or as dotted `keys` of a sweep or
    of options, if none of the `trained` heads has such a layer. (A sweep over `hidden` may have
    settings without.)"""
    written = head.model_fields_set | {key.removeprefix("head.") for key in keys}
    unused = [name for name in _OF_HIDDEN_LAYERS if name in written]
    if not unused or any(shape.hidden for shape in trained):
        return []
    others = "; input_dropout is the dropout of a linear head" if "dropout" in unused else ""
    verb = "has" if len(unused) == 1 else "have"
    return [f"head: {', '.join(unused)} {verb} no effect without hidden layers{others}"]


def without_unused(head: Mapping[str, Any]) -> dict[str, Any]:
    """A head as a file has it, without the defaults of hidden layers if it has no such layer:
    whoever trains it again gets no note about them."""
    defaults = HeadSpec().model_dump()
    is_linear = head.get("hidden") == []
    return {
        name: value
        for name, value in head.items()
        if not (is_linear and name in _OF_HIDDEN_LAYERS and value == defaults[name])
    }
