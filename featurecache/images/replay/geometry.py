"""The augmenters that move pixels, replayed.

Reading or running a step raises Unknown if its result is not known to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from featurecache.images.picture_checks import check_pixels, check_size
from featurecache.images.replay.draws import Numbers, Read, Step, Unknown, check_values, draw_of
from featurecache.images.replay.seeds import Stream

BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "symmetric": cv2.BORDER_REFLECT,
    "reflect": cv2.BORDER_REFLECT_101,
    "wrap": cv2.BORDER_WRAP,
}
ORDERS = {0: cv2.INTER_NEAREST, 1: cv2.INTER_LINEAR, 3: cv2.INTER_CUBIC}
INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
}
EYE = np.eye(3, dtype=np.float32)
NEAR = 0.0001  # imgaug treats smaller changes of a matrix as none
RADIANS = 3.141592653589793 / 180


def _flip(axis: int) -> Read:
    def read(numbers: Numbers, node: Any) -> Step:
        number, draw = numbers[id(node)], draw_of(node.p)

        def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
            if draw(Stream(states[number]), ()) >= 0.5:
                return cv2.flip(image, axis)
            return image

        return step

    return read


def _resized(image: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    if height < 1 or width < 1:
        raise Unknown("an image of no size")
    check_size(height, width)
    return cv2.resize(image, (int(width), int(height)), interpolation=interpolation)


def _kept_size(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image resized to its earlier size, as imgaug does for `keep_size`."""
    larger = height > image.shape[0] or width > image.shape[1]
    return _resized(image, height, width, cv2.INTER_AREA if larger else cv2.INTER_LINEAR)


def _resize(numbers: Numbers, node: Any) -> Step:
    check_values(node.interpolation, INTERPOLATIONS)
    number, pair = numbers[id(node)], isinstance(node.size, tuple)
    draws = [draw_of(size) for size in (node.size if pair else (node.size,))]
    draw_interpolation = draw_of(node.interpolation)

    @functools.lru_cache(maxsize=64)
    def size_of(shape: tuple[int, ...], first: Any, last: Any) -> tuple[int, int]:
        height, width = node._compute_height_width(shape, first, last, node.size_order)
        return height, width

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        sizes = [draw(stream, ()) for draw in draws]
        interpolation = INTERPOLATIONS[draw_interpolation(stream, ())]
        height, width = size_of(image.shape, sizes[0], sizes[-1])
        return _resized(image, height, width, interpolation)

    return step


def _crop_and_pad(numbers: Numbers, node: Any) -> Step:
    check_values(node.pad_mode, set(BORDERS) - {"wrap"})
    number, percent = numbers[id(node)], node.mode == "percent"
    if node.mode != "noop" and node.all_sides is None:
        raise Unknown("a parameter for each side")
    draw_edges = None if node.mode == "noop" else draw_of(node.all_sides)
    size = (4,) if node.sample_independently else (1,)
    draw_mode, draw_value = draw_of(node.pad_mode), draw_of(node.pad_cval)

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        height, width = image.shape[:2]
        if draw_edges is not None:
            edges = draw_edges(stream, size)
            if percent:
                edges = np.rint(np.array((height, width) * 2, np.float32) * edges)
            top, right, bottom, left = map(int, edges.tolist() * (4 // len(edges)))
        else:
            top = right = bottom = left = 0
        y1, y2 = _cropped(height, max(-top, 0), max(-bottom, 0))
        x1, x2 = _cropped(width, max(-left, 0), max(-right, 0))
        image_cropped = image[y1:y2, x1:x2]
        top, right, bottom, left = max(top, 0), max(right, 0), max(bottom, 0), max(left, 0)
        height_made, width_made = y2 - y1 + top + bottom, x2 - x1 + left + right
        check_pixels(height_made, width_made)
        if top or right or bottom or left:
            border = BORDERS[draw_mode(stream, ())]
            value = max(min(int(draw_value(stream, ())), 255), 0)
            made = cv2.copyMakeBorder(
                image_cropped, top, bottom, left, right, border, value=(value, value, value)
            )
        else:
            made = np.ascontiguousarray(image_cropped)
        if node.keep_size:
            return _kept_size(made, height, width)
        check_size(height_made, width_made)
        return made

    return step


def _cropped(length: int, start: int, end: int) -> tuple[int, int]:
    """The start and the end of a crop, which leaves at least one pixel, as in imgaug."""
    missing = 1 - (length - (start + end))
    if missing > 0:
        start, end = start - (missing + 1) // 2, end - missing // 2
        if start < 0:
            start, end = 0, end + start
        if end < 0:
            start, end = max(start + end, 0), 0
    if length - (start + end) < 1:
        raise Unknown("a crop of all pixels")
    return start, length - end


def _affine(numbers: Numbers, node: Any) -> Step:
    if node.fit_output or node.backend not in ("auto", "cv2"):
        raise Unknown("fit_output" if node.fit_output else node.backend)
    check_values(node.order, ORDERS)
    check_values(node.mode, BORDERS)
    number, per_image = numbers[id(node)], node.translate[2] == "percent"
    kind = node._shear_param_type
    draw_scale = _pair(node.scale if isinstance(node.scale, tuple) else (node.scale, None))
    draw_translate, draw_rotate = _pair(node.translate[:2]), draw_of(node.rotate)
    draw_shear = _pair(node.shear if kind == "dict" else (node.shear, None))
    draw_value, draw_mode, draw_order = draw_of(node.cval), draw_of(node.mode), draw_of(node.order)

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        height, width = image.shape[:2]
        scale, (across, down) = draw_scale(stream), draw_translate(stream)
        if per_image:
            across, down = across * width, down * height
        else:
            across, down = across / width * width, down / height * height
        rotate = draw_rotate(stream, ())
        shear = draw_shear(stream)
        if kind == "single-number":
            shear = (shear[0], shear[0].dtype.type(0))
        matrix = _affine_matrix(height, width, rotate, scale, shear, (across, down))
        value = tuple(map(int, draw_value(stream, (1, 3))[0].tolist()))
        mode, order = draw_mode(stream, ()), draw_order(stream, ())
        if abs(matrix[0, 1]) < 9.1 * NEAR and np.abs(matrix - EYE).mean() <= NEAR:
            return image
        return cv2.warpAffine(
            image,
            matrix[:2],
            dsize=(width, height),
            flags=ORDERS[order],
            borderMode=BORDERS[mode],
            borderValue=value,
        )

    return step


def _pair(parameters: tuple[Any, Any]) -> Callable[[Stream], tuple[Any, Any]]:
    """Two draws, or one draw used twice if the second parameter is None."""
    first = draw_of(parameters[0])
    if parameters[1] is None:
        return lambda stream: (first(stream, ()),) * 2
    second = draw_of(parameters[1])
    return lambda stream: (first(stream, ()), second(stream, ()))


def _affine_matrix(
    height: int,
    width: int,
    rotate: Any,
    scale: tuple[Any, Any],
    shear: tuple[Any, Any],
    translate: tuple[Any, Any],
) -> np.ndarray:
    """The product of matrices that imgaug computes in single precision, (3, 3) float32.

    Multiplying by a translation only adds to the last column, so it is done by addition. The first
    two matrices are combined into one, which is exact. A shear or a translation by 0 changes
    nothing but the sign of zeros, and is left out.
    """
    matrix = _matrix(1, 0, 0, 1)
    matrix[0, 2], matrix[1, 2] = 0.5 - width / 2, 0.5 - height / 2
    radians = rotate * RADIANS
    if radians < NEAR or radians > NEAR:
        cos, sin = np.cos(-radians), np.sin(-radians)
        matrix = np.matmul(_matrix(cos, sin, -sin, cos), matrix)
    x, y = scale
    if x < 1.0 - NEAR or x > 1.0 + NEAR or y < 1.0 - NEAR or y > 1.0 + NEAR:
        matrix = np.matmul(_matrix(x, 0, 0, y), matrix)
    x, y = (degrees * RADIANS for degrees in shear)
    if (x or y) and (x < NEAR or x > NEAR or y < NEAR or y > NEAR):
        matrix = np.matmul(_matrix(1, np.tanh(-x), np.tanh(y), 1), matrix)
    across, down = matrix[0, 2], matrix[1, 2]
    x, y = translate
    if (x or y) and (x < NEAR or x > NEAR or y < NEAR):
        across, down = across + np.float32(x), down + np.float32(y)
    half = np.float32(0.5)
    matrix[0, 2] = across - half + np.float32(width / 2)
    matrix[1, 2] = down - half + np.float32(height / 2)
    return matrix


def _matrix(a: Any, b: Any, c: Any, d: Any) -> np.ndarray:
    """(3, 3) float32: the linear map [[a, b], [c, d]]."""
    matrix = EYE.copy()
    matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1] = a, b, c, d
    return matrix


def _perspective(numbers: Numbers, node: Any) -> Step:
    borders: dict[Any, int] = {"replicate": cv2.BORDER_REPLICATE, "constant": cv2.BORDER_CONSTANT}
    borders |= {number: number for number in borders.values()}
    check_values(node.mode, borders)
    number = numbers[id(node)]
    draw_value, draw_mode, draw_jitter = (
        draw_of(node.cval),
        draw_of(node.mode),
        draw_of(node.jitter),
    )

    def step(image: np.ndarray, states: np.ndarray) -> np.ndarray:
        stream = Stream(states[number])
        stream.advance()
        height, width = image.shape[:2]
        value = draw_value(stream, (1, 3))[0].tolist()
        mode = borders[draw_mode(stream, (1,)).tolist()[0]]
        # As numbers in single precision: eight of them take less time than calls for arrays.
        jitter = np.mod(np.abs(draw_jitter(stream, (1, 4, 2))[0]), 1)
        (x1, y1), (x2, y2), (x3, y3), (x4, y4) = jitter
        shares = (x1, y1), (1.0 - x2, y2), (1.0 - x3, 1.0 - y3), (x4, 1.0 - y4)
        points = [[x * width, y * height] for x, y in shares]
        corners = [
            [*min(points, key=sum)], [*min(points, key=_difference)],
            [*max(points, key=sum)], [*max(points, key=_difference)],
        ]  # fmt: skip
        new_width = _side(corners, 0, node.min_width, ((1, 0), (2, 3)))
        new_height = _side(corners, 1, node.min_height, ((1, 2), (0, 3)))
        made = np.array(
            [[0, 0], [new_width, 0], [new_width, new_height], [0, new_height]], np.float32
        )
        matrix = cv2.getPerspectiveTransform(np.array(corners, np.float32), made)
        if node.fit_output:
            matrix, new_width, new_height = node._expand_transform(matrix, (height, width))
        check_pixels(new_height, new_width)
        warped = cv2.warpPerspective(
            image, matrix, (new_width, new_height), borderValue=value, borderMode=mode
        )
        if node.keep_size:
            return _kept_size(warped, height, width)
        check_size(new_height, new_width)
        return warped

    return step


def _difference(point: list[Any]) -> Any:
    return point[1] - point[0]


def _side(
    corners: list[list[Any]],
    axis: int,
    min_length: int,
    pairs: tuple[tuple[int, int], tuple[int, int]],
) -> int:
    """The longer of the two sides between `pairs` of corners (tl, tr, br, bl).

    The corners are moved apart in place, along `axis`, until the shorter side has at least
    `min_length`.
    """
    far_corners = (1, 2) if axis == 0 else (2, 3)
    while True:
        lengths = []
        for a, b in pairs:
            x, y = corners[a][0] - corners[b][0], corners[a][1] - corners[b][1]
            lengths.append(np.sqrt(x**2 + y**2))
        shorter = int(min(lengths))
        if shorter >= min_length:
            return int(max(lengths))
        half = (min_length - shorter) / 2
        for i in range(4):
            corners[i][axis] += half if i in far_corners else -half


STEPS: dict[str, Read] = {
    "augmenters.flip.Fliplr": _flip(1),
    "augmenters.flip.Flipud": _flip(0),
    "augmenters.geometric.Affine": _affine,
    "augmenters.geometric.PerspectiveTransform": _perspective,
    "augmenters.geometric.Rotate": _affine,
    "augmenters.geometric.ScaleX": _affine,
    "augmenters.geometric.ScaleY": _affine,
    "augmenters.geometric.ShearX": _affine,
    "augmenters.geometric.ShearY": _affine,
    "augmenters.geometric.TranslateX": _affine,
    "augmenters.geometric.TranslateY": _affine,
    "augmenters.size.Crop": _crop_and_pad,
    "augmenters.size.CropAndPad": _crop_and_pad,
    "augmenters.size.Pad": _crop_and_pad,
    "augmenters.size.Resize": _resize,
}
