"""The random parameters of imgaug, replayed from a node's generator.

imgaug draws through layers of objects that own, wrap, validate and copy generators. Few calls reach
the generator. A `Draw` asks NumPy for the same numbers, of the same type and in the same order,
without the layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from featurecache.images.replay.seeds import Stream


class Unknown(Exception):
    """The result is not known here to the last bit, so imgaug itself must compute it."""


# The result must not be written to. The size () gives one value, in a fourth of an array's time.
Draw = Callable[[Stream, tuple[int, ...]], Any]
Numbers = Mapping[int, int]  # the number of each node of a tree, by its id()
# A step takes a contiguous image, (H, W, 3) uint8, and the state of each `Stream`. It returns the
# next image and does not change the given one.
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
Read = Callable[[Numbers, Any], Step]  # reads the step of a node; raises Unknown


def entry_for(node: Any, table: Mapping[str, Any]) -> Any:
    """The entry of `table` for the class of an imgaug object, by `module.Class`. Raises Unknown."""
    name = f"{type(node).__module__}.{type(node).__name__}"
    if not name.startswith("imgaug.") or name.removeprefix("imgaug.") not in table:
        raise Unknown(name)
    return table[name.removeprefix("imgaug.")]


def draw_of(parameter: Any) -> Draw:
    """The draws of an imgaug parameter. Raises Unknown."""
    steps = 1  # numbers skipped after a draw
    while type(parameter).__name__ == "AutoPrefetcher":
        # It prefetches only from the second draw per image on, and there is one draw per parameter.
        parameter = parameter.other_param
        steps += 1
    draw: Draw = entry_for(parameter, _DRAWS)(parameter, steps)
    return draw


def check_values(parameter: Any, allowed: Container[Any]) -> None:
    """Raise Unknown unless a parameter is a constant or a choice of only allowed values."""
    kind = type(parameter).__name__
    if kind == "AutoPrefetcher":
        check_values(parameter.other_param, allowed)
    elif kind not in ("Deterministic", "Choice"):
        raise Unknown(kind)
    else:
        for value in [parameter.value] if kind == "Deterministic" else parameter.a:
            if isinstance(value, bool) or value not in allowed:
                raise Unknown(str(value))


def _array(values: Any) -> np.ndarray:
    """Values in the type of imgaug's parameters: numbers have 32 bits."""
    made = np.array(values)
    kinds = {"i": np.int32, "f": np.float32}
    return made.astype(kinds[made.dtype.kind]) if made.dtype.kind in kinds else made


def _constant(parameter: Any) -> np.ndarray:
    """The value of a constant parameter, as an array without dimensions. Raises Unknown."""
    if type(parameter).__name__ != "Deterministic" or isinstance(parameter.value, bool):
        raise Unknown(type(parameter).__name__)
    return _array(parameter.value)


def _deterministic(parameter: Any, steps: int) -> Draw:
    value = _constant(parameter)
    single = value[()]

    @functools.lru_cache(maxsize=4)
    def full(size: tuple[int, ...]) -> np.ndarray:
        return np.full(size, value)

    def draw(stream: Stream, size: tuple[int, ...]) -> Any:
        stream.advance(steps)
        return full(size) if size else single

    return draw


def _uniform(parameter: Any, steps: int) -> Draw:
    low, high = sorted((float(_constant(parameter.a)), float(_constant(parameter.b))))

    def draw(stream: Stream, size: tuple[int, ...]) -> Any:
        stream.advance(2)  # imgaug draws the two ends of the range first
        values: Any
        if low == high:
            values = np.full(size, low, np.float32)[()]
        else:
            generator, skips = stream.generator_and_skips()
            numbers = generator.uniform(low, high, skips + math.prod(size))
            if size:
                values = numbers[skips:].astype(np.float32).reshape(size)
            else:
                values = np.float32(numbers[skips])
        stream.advance(steps)
        return values

    return draw


def _discrete_uniform(parameter: Any, steps: int) -> Draw:
    low, high = sorted((int(_constant(parameter.a)), int(_constant(parameter.b))))

    def draw(stream: Stream, size: tuple[int, ...]) -> Any:
        stream.advance(2)
        if low == high:
            values = np.full(size, low, np.int32)[()]
        else:
            generator = stream.generator(halves=True)
            values = generator.integers(low, high + 1, size or None, dtype=np.int32)
        stream.advance(steps)
        return values

    return draw


def _choice(parameter: Any, steps: int) -> Draw:
    kinds = {type(value) for value in parameter.a}
    if kinds not in ({int}, {float}, {int, float}, {str}) or not parameter.replace or parameter.p:
        raise Unknown(f"a choice of {parameter.a}")
    values = _array(parameter.a)

    def draw(stream: Stream, size: tuple[int, ...]) -> Any:
        picks = stream.generator(halves=True).integers(0, len(values), size or None)
        stream.advance(steps)
        return values[picks]

    return draw


def _binomial(parameter: Any, steps: int) -> Draw:
    p = float(_constant(parameter.p))

    def draw(stream: Stream, size: tuple[int, ...]) -> Any:
        stream.advance()
        values: Any = stream.generator().binomial(1, p, size or None)
        stream.advance(steps)
        return values.astype(np.int32) if size else values

    return draw


def _normal(parameter: Any, steps: int) -> Draw:
    loc, scale = draw_of(parameter.loc), draw_of(parameter.scale)

    def draw(stream: Stream, size: tuple[int, ...]) -> Any:
        mean, deviation = loc(stream, ()), scale(stream, ())
        if deviation == 0:
            values = np.full(size, mean, np.float32)
        else:
            values = _normals(stream.generator(), float(mean), float(deviation), size)
        stream.advance(steps)
        return values

    return draw


def _normals(
    generator: np.random.Generator, mean: float, deviation: float, size: tuple[int, ...]
) -> np.ndarray:
    if mean != 0:
        return generator.normal(mean, deviation, size).astype(np.float32)
    # With mean 0 nothing is added, so rounding is the same, and this takes an eighth less time.
    numbers = generator.standard_normal(size)
    numbers *= deviation
    return numbers.astype(np.float32)


_DRAWS: dict[str, Callable[[Any, int], Draw]] = {
    "parameters.Binomial": _binomial,
    "parameters.Choice": _choice,
    "parameters.Deterministic": _deterministic,
    "parameters.DiscreteUniform": _discrete_uniform,
    "parameters.Normal": _normal,
    "parameters.Uniform": _uniform,
}
