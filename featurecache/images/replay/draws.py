"""Draws: the random parameters of imgaug, replayed from a node's own generator.

imgaug draws through layers of objects that hold, wrap, validate and copy generators. What reaches
the generator is little; a `Draw` asks NumPy for the same numbers, in the same order, of the same
type, and leaves out the layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from featurecache.images.replay.seeds import Stream


class Unknown(Exception):
    """What is asked for is not known here to the last bit; the library itself must do it."""


Draw = Callable[[Stream, tuple[int, ...]], np.ndarray]  # the result is not to be written to
Numbers = Mapping[int, int]  # of the nodes of a tree, by the id of each
# A step takes an image, (H, W, 3) uint8 in one piece, and the stream of each node; it gives the
# next image and leaves the first as it was.
Step = Callable[[np.ndarray, list[Stream]], np.ndarray]
Read = Callable[[Numbers, Any], Step]  # how a node's step is read; raises Unknown


def known(thing: Any, of: Mapping[str, Any]) -> Any:
    """What is known of an object of imgaug's, by `module.Class`. Raises Unknown."""
    name = f"{type(thing).__module__}.{type(thing).__name__}"
    if not name.startswith("imgaug.") or name.removeprefix("imgaug.") not in of:
        raise Unknown(name)
    return of[name.removeprefix("imgaug.")]


def drawn(parameter: Any) -> Draw:
    """The draws of a parameter of imgaug. Raises Unknown."""
    draw: Draw = known(parameter, _DRAWS)(parameter)
    return draw


def only(parameter: Any, allowed: Container[Any]) -> None:
    """Raise Unknown unless all that a parameter gives, a constant or a choice, is `allowed`."""
    kind = type(parameter).__name__
    if kind == "AutoPrefetcher":
        only(parameter.other_param, allowed)
    elif kind not in ("Deterministic", "Choice"):
        raise Unknown(kind)
    else:
        for value in [parameter.value] if kind == "Deterministic" else parameter.a:
            if isinstance(value, bool) or value not in allowed:
                raise Unknown(str(value))


def _array(values: Any) -> np.ndarray:
    """Values as imgaug's parameters give them: numbers in 32 bits."""
    made = np.array(values)
    kinds = {"i": np.int32, "f": np.float32}
    return made.astype(kinds[made.dtype.kind]) if made.dtype.kind in kinds else made


def _constant(parameter: Any) -> np.ndarray:
    """The one value of a parameter, of no dimensions."""
    if type(parameter).__name__ != "Deterministic" or isinstance(parameter.value, bool):
        raise Unknown(type(parameter).__name__)
    return _array(parameter.value)


def _deterministic(parameter: Any) -> Draw:
    value = _constant(parameter)

    @functools.lru_cache(maxsize=4)
    def full(size: tuple[int, ...]) -> np.ndarray:
        return np.full(size, value)

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        stream.advance()
        return full(size)

    return draw


def _uniform(parameter: Any) -> Draw:
    low, high = sorted((float(_constant(parameter.a)), float(_constant(parameter.b))))

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        stream.advance(2)  # of the two ends
        if low == high:
            values = np.full(size, low, np.float32)
        else:
            generator, behind = stream.behind()
            numbers = generator.uniform(low, high, behind + math.prod(size))[behind:]
            values = numbers.astype(np.float32).reshape(size)
        stream.advance()
        return values

    return draw


def _discrete_uniform(parameter: Any) -> Draw:
    low, high = sorted((int(_constant(parameter.a)), int(_constant(parameter.b))))

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        stream.advance(2)
        if low == high:
            values = np.full(size, low, np.int32)
        else:
            values = stream.generator(halves=True).integers(low, high + 1, size, dtype=np.int32)
        stream.advance()
        return values

    return draw


def _choice(parameter: Any) -> Draw:
    kinds = {type(value) for value in parameter.a}
    if not (kinds <= {int, float} or kinds == {str}) or not parameter.replace or parameter.p:
        raise Unknown(f"a choice of {parameter.a}")
    values = _array(parameter.a)

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        generator = stream.generator(halves=True)
        # NumPy takes four times as long for an array of one.
        picks = [generator.integers(0, len(values)) for _ in range(math.prod(size))]
        stream.advance()
        return values[picks].reshape(size)

    return draw


def _binomial(parameter: Any) -> Draw:
    p = float(_constant(parameter.p))

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        stream.advance()
        values = stream.generator().binomial(1, p, size).astype(np.int32)
        stream.advance()
        return values

    return draw


def _normal(parameter: Any) -> Draw:
    loc, scale = drawn(parameter.loc), drawn(parameter.scale)

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        mean, deviation = loc(stream, (1,))[0], scale(stream, (1,))[0]
        if deviation == 0:
            values = np.full(size, mean, np.float32)
        else:
            values = stream.generator().normal(mean, deviation, size).astype(np.float32)
        stream.advance()
        return values

    return draw


def _prefetched(parameter: Any) -> Draw:
    """imgaug draws ahead only from the second draw of a parameter on; there is one an image."""
    inner = drawn(parameter.other_param)

    def draw(stream: Stream, size: tuple[int, ...]) -> np.ndarray:
        values = inner(stream, size)
        stream.advance()
        return values

    return draw


_DRAWS: dict[str, Callable[[Any], Draw]] = {
    "parameters.AutoPrefetcher": _prefetched,
    "parameters.Binomial": _binomial,
    "parameters.Choice": _choice,
    "parameters.Deterministic": _deterministic,
    "parameters.DiscreteUniform": _discrete_uniform,
    "parameters.Normal": _normal,
    "parameters.Uniform": _uniform,
}
