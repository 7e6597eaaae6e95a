"""Trees: which steps an imgaug tree takes, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from featurecache.images.replay import colours, geometry
from featurecache.images.replay.draws import Numbers, Read, Step, Unknown, draw_of, entry_for
from featurecache.images.replay.seeds import Seeds, Stream

VERSIONS = {"0.4.3"}  # versions of imaug whose source is reproduced here


def read(
    root: Any, nodes: Sequence[Any], version: str
) -> Callable[[np.ndarray, np.ndarray], np.ndarray | None] | None:
    """The replay of the built tree `root` of imaug `version`, or None if the tree is not known.

    `nodes` are its augmenters, in the order of the numbers that seed them. The replay takes an
    image, (H, W, 3) uint8, and the image's entropy, (8,) uint32. It returns None for an image that
    imgaug itself must process.
    """
    if version not in VERSIONS:
        return None
    try:
        step = _step({id(node): number for number, node in enumerate(nodes)}, root)
    except Unknown:
        return None
    seeds = Seeds(len(nodes))

    def replay(image: np.ndarray, entropy: np.ndarray) -> np.ndarray | None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            return None
        try:
            made = step(np.ascontiguousarray(image), seeds.states(entropy))
        except (Unknown, cv2.error, ArithmeticError, LookupError, TypeError, ValueError):
            return None  # imgaug will raise the error, with its own message
        return made.copy() if np.may_share_memory(made, image) else made

    return replay


def _step(numbers: Numbers, node: Any) -> Step:
    read_step: Read = entry_for(node, STEPS)
    return read_step(numbers, node)


def _identity(numbers: Numbers, node: Any) -> Step:
    return lambda image, states: image


def _sequential(numbers: Numbers, node: Any) -> Step:
    steps = [_step(numbers, child) for child in node]
    number, shuffled = numbers[id(node)], node.random_order

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        if shuffled:
            order = Stream(states[number]).generator(halves=True).permutation(len(steps))
            chosen = [steps[i] for i in order]
        else:
            chosen = steps
        for child_step in chosen:
            image = child_step(image, states)
        return image

    return step


def _some_of(numbers: Numbers, node: Any) -> Step:
    steps = [_step(numbers, child) for child in node]
    number, shuffled, count, mode = numbers[id(node)], node.random_order, node.n, node.n_mode
    if mode not in ("deterministic", "None", "stochastic"):
        raise Unknown(mode)
    draw_count = draw_of(count) if mode == "stochastic" else None

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        order: Any = range(len(steps))
        if shuffled:
            order = stream.generator(halves=True).permutation(len(steps))
        n = len(steps) if mode == "None" else count
        if draw_count is not None:
            n = draw_count(stream, ())
        active = np.zeros(len(steps), bool)
        active[: max(n, 0)] = True
        stream.generator(halves=True).shuffle(active)
        for i in order:
            if active[i]:
                image = steps[i](image, states)
        return image

    return step


def _sometimes(numbers: Numbers, node: Any) -> Step:
    then_step, else_step = (
        _step(numbers, children) if children is not None else None
        for children in (node.then_list, node.else_list)
    )
    number, draw = numbers[id(node)], draw_of(node.p)

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        chosen = then_step if draw(Stream(states[number]), ()) == 1 else else_step
        return image if chosen is None else chosen(image, states)

    return step


STEPS: dict[str, Read] = {
    "augmenters.meta.Identity": _identity,
    "augmenters.meta.Noop": _identity,
    "augmenters.meta.OneOf": _some_of,
    "augmenters.meta.Sequential": _sequential,
    "augmenters.meta.SomeOf": _some_of,
    "augmenters.meta.Sometimes": _sometimes,
    **geometry.STEPS,
    **colours.STEPS,
}
