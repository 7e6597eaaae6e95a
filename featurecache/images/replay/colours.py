"""The augmenters that change the values of pixels without moving them, replayed.

Reading or running a step raises Unknown if its result is not known to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from featurecache.images.replay.draws import (
    Draw,
    Numbers,
    Read,
    Step,
    Unknown,
    check_values,
    draw_of,
    entry_for,
)
from featurecache.images.replay.seeds import Stream

# The lookup table of a function on 0..255, (256, 1) or (256, C) uint8, for an image's shape.
Table = Callable[[tuple[int, ...], np.ndarray], np.ndarray]
COLOURS = {  # conversion from RGB, conversion to RGB, index of the brightness channel
    "YCrCb": (cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB, 0),
    "HSV": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
    "HLS": (cv2.COLOR_RGB2HLS, cv2.COLOR_HLS2RGB, 1),
    "Lab": (cv2.COLOR_RGB2Lab, cv2.COLOR_Lab2RGB, 0),
    "Luv": (cv2.COLOR_RGB2Luv, cv2.COLOR_Luv2RGB, 0),
    "YUV": (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB, 0),
}
LEVELS = np.arange(256, dtype=np.uint8)[:, np.newaxis]
FLOATS = LEVELS.astype(np.float32)
LOWEST, HIGHEST = np.float32(0), np.float32(255)
# Adding a number n in -255..255 to 0..255, and clipping to 8 bits or wrapping around 180 hues,
# gives the 256 entries of one of these tables from index 255 + n on.
SUMS = np.clip(np.arange(-255, 511), 0, 255).astype(np.uint8)
HUES = np.mod(np.arange(-255, 511), 180).astype(np.uint8)


def _apply_table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, table[:, 0] if table.shape[1] == 1 else table[np.newaxis])


def _bytes(values: np.ndarray) -> np.ndarray:
    """Values, which are overwritten, clipped to 0..255 and truncated. np.clip takes much longer for
    small arrays, and so does a limit that is a Python integer."""
    np.maximum(np.minimum(values, HIGHEST, values), LOWEST, values)
    return values.astype(np.uint8)


def _three_channels(values: np.ndarray) -> np.ndarray:
    """(H, W, 3): values, (H, W, 1), once for each channel."""
    made = np.empty((*values.shape[:2], 3), values.dtype)
    cv2.mixChannels([values], [made], [0, 0, 0, 1, 0, 2])
    return made


def _point(numbers: Numbers, node: Any) -> Step:
    table: Table = entry_for(node, TABLES)(numbers, node)
    return lambda image, states: _apply_table(image, table(image.shape, states))


def _identity(numbers: Numbers, node: Any) -> Table:
    return lambda shape, states: LEVELS


def _channels(node: Any, value: Any) -> Callable[[tuple[int, ...], Stream], np.ndarray]:
    """One value for the image, or one per channel if `per_channel` is drawn true."""
    draw_apart, draw = draw_of(node.per_channel), draw_of(value)

    def values(shape: tuple[int, ...], stream: Stream) -> np.ndarray:
        is_apart = draw_apart(stream, ()) > 0.5
        drawn_values: np.ndarray = draw(stream, (shape[2],))
        return drawn_values if is_apart else drawn_values[:1]

    return values


def _multiply(numbers: Numbers, node: Any) -> Table:
    number, values = numbers[id(node)], _channels(node, node.mul)

    def table(shape: tuple[int, ...], states: np.ndarray) -> np.ndarray:
        factors = values(shape, Stream(states[number])).astype(np.float32)
        if shape[0] * shape[1] * shape[2] >= 224 * 224 * 3:  # from here imgaug truncates
            return _bytes(FLOATS * factors)
        return _bytes(np.rint(FLOATS * factors))

    return table


def _add(numbers: Numbers, node: Any) -> Table:
    number, values = numbers[id(node)], _channels(node, node.value)

    def table(shape: tuple[int, ...], states: np.ndarray) -> np.ndarray:
        if shape[:2] == (4, 1):
            raise Unknown("OpenCV mistakes a scalar for the four pixels of such an image")
        terms = [
            255 + max(min(round(term), 255), -255)
            for term in values(shape, Stream(states[number])).tolist()
        ]
        if len(terms) == 1:
            return SUMS[terms[0] :][:256, np.newaxis]
        return np.stack([SUMS[term:][:256] for term in terms], axis=1)

    return table


def _brightness(numbers: Numbers, node: Any) -> Step:
    if node.from_colorspace != "RGB":
        raise Unknown(node.from_colorspace)
    check_values(node.to_colorspace, COLOURS)
    tables: list[Table] = [entry_for(child, TABLES)(numbers, child) for child in node.children]
    number, inner = numbers[id(node)], numbers[id(node.children)]
    draw_colours, shuffled = draw_of(node.to_colorspace), node.children.random_order

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        from_rgb, to_rgb, channel = COLOURS[draw_colours(Stream(states[number]), ())]
        order: Any = range(len(tables))
        if shuffled:
            order = Stream(states[inner]).generator(halves=True).permutation(len(tables))
        table = LEVELS
        for i in order:
            made = tables[i]((*image.shape[:2], 1), states)
            table = made if table is LEVELS else _apply_table(table, made)
        converted = cv2.cvtColor(image, from_rgb)
        # extractChannel, insertChannel and merge take about 9 us of any image before they begin.
        brightness = np.empty(image.shape[:2], np.uint8)
        cv2.mixChannels([converted], [brightness], [channel, 0])
        cv2.mixChannels([_apply_table(brightness, table)], [converted], [0, channel])
        return cv2.cvtColor(converted, to_rgb)

    return step


def _linear_contrast(numbers: Numbers, node: Any) -> Step:
    number = numbers[id(node)]
    draw_apart, draw_alpha = draw_of(node.per_channel), draw_of(node.params1d[0])
    centred = FLOATS - 127

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        channels = 3 if draw_apart(stream, ()) > 0.5 else 1
        alphas = draw_alpha(stream, (channels,)).astype(np.float32)
        return _apply_table(image, _bytes(127 + alphas * centred))

    return step


def _add_elementwise(numbers: Numbers, node: Any) -> Step:
    number = numbers[id(node)]
    draw_apart, draw = draw_of(node.per_channel), draw_of(node.value)

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        channels = 3 if draw_apart(stream, ()) > 0.5 else 1
        values = draw(stream, (*image.shape[:2], channels))
        if channels == 1:
            values = _three_channels(values)
        return cv2.add(image, values, dtype=cv2.CV_8U)

    return step


def _add_to_hue_and_saturation(numbers: Numbers, node: Any) -> Step:
    if node.from_colorspace != "RGB":
        raise Unknown(node.from_colorspace)
    number = numbers[id(node)]
    levels = np.repeat(LEVELS, 3, axis=1)
    draw_apart = draw_of(node.per_channel)
    draw_both, hue, saturation = (
        None if value is None else draw_of(value)
        for value in (node.value, node.value_hue, node.value_saturation)
    )

    def values(stream: Stream) -> tuple[int, int]:
        if draw_both is not None:
            apart = draw_apart(stream, ()) > 0.5
            first, second = draw_both(stream, (2,)).tolist()
            return first, second if apart else first
        return _first(hue, stream), _first(saturation, stream)

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        by_hue, by_saturation = values(Stream(states[number]))
        turn = int(np.float32(by_hue) / np.float32(255) * np.float32(180))
        table = levels.copy()
        table[:, 0] = HUES[255 + turn :][:256]
        table[:, 1] = SUMS[255 + by_saturation :][:256]
        converted = _apply_table(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table)
        return cv2.cvtColor(converted, cv2.COLOR_HSV2RGB)

    return step


def _first(draw: Draw | None, stream: Stream) -> int:
    return 0 if draw is None else int(draw(stream, ()))


def _cutout(numbers: Numbers, node: Any) -> Step:
    if not isinstance(node.position, tuple):
        raise Unknown("one parameter for both positions")
    check_values(node.fill_mode, {"constant", "gaussian"})
    number = numbers[id(node)]
    draw_count, draw_size, draw_squared = (
        draw_of(parameter) for parameter in (node.nb_iterations, node.size, node.squared)
    )
    draw_x, draw_y = (draw_of(parameter) for parameter in node.position)
    draw_mode, draw_value, draw_apart = (
        draw_of(parameter) for parameter in (node.fill_mode, node.cval, node.fill_per_channel)
    )

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        height, width = image.shape[:2]
        count = int(draw_count(stream, ()))
        many = (count,)
        centres = zip(draw_x(stream, many), draw_y(stream, many), strict=True)
        halves = draw_size(stream, (count, 2)) / 2
        squared, modes = draw_squared(stream, many), draw_mode(stream, many)
        values, apart = draw_value(stream, (count, 3)), draw_apart(stream, many)
        image = image.copy()
        for i, (x, y) in enumerate(centres):
            down, across = halves[i]
            top, bottom = (y - down) * height, (y + down) * height
            left, right = (x - across) * width, (x + across) * width
            if squared[i] >= 0.5:
                half = (bottom - top) / 2
                middle = left + (right - left) / 2
                left, right = middle - half, middle + half
            rows = slice(*(min(max(int(v), 0), height) for v in (top, bottom)))
            columns = slice(*(min(max(int(v), 0), width) for v in (left, right)))
            hole = image[rows, columns]
            if hole.size == 0:
                continue
            if modes[i] == "gaussian":
                shape = hole.shape if apart[i] >= 0.5 else hole.shape[:2]
                noise = _bytes(stream.generator().normal(127.5, 42.5, shape))
                hole[...] = noise if noise.ndim == 3 else cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB)
            else:
                hole[...] = np.array(values[i] if apart[i] >= 0.5 else values[i][0], np.uint8)
        return image

    return step


STEPS: dict[str, Read] = {
    "augmenters.arithmetic.Add": _point,
    "augmenters.arithmetic.AddElementwise": _add_elementwise,
    "augmenters.arithmetic.AdditiveGaussianNoise": _add_elementwise,
    "augmenters.arithmetic.Cutout": _cutout,
    "augmenters.arithmetic.Multiply": _point,
    "augmenters.color.AddToBrightness": _brightness,
    "augmenters.color.AddToHue": _add_to_hue_and_saturation,
    "augmenters.color.AddToHueAndSaturation": _add_to_hue_and_saturation,
    "augmenters.color.AddToSaturation": _add_to_hue_and_saturation,
    "augmenters.color.MultiplyAndAddToBrightness": _brightness,
    "augmenters.color.MultiplyBrightness": _brightness,
    "augmenters.contrast.LinearContrast": _linear_contrast,
}
TABLES: dict[str, Callable[[Numbers, Any], Table]] = {
    "augmenters.arithmetic.Add": _add,
    "augmenters.arithmetic.Multiply": _multiply,
    "augmenters.meta.Identity": _identity,
}
