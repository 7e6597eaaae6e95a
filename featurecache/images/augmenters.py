"""Our own augmenters: operations of published policies that imgaug lacks.

Only policies.py and this module import imgaug; this module is imported when a policy is built. Each
class is an augmenter of imgaug that a policy may name; policies.OWN_AUGMENTERS has their names and
versions. They change images only, keep the size of an image, and hold no state: all random numbers
for an image come from the generator that imgaug passes to them.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from imgaug import parameters
from imgaug.augmenters.meta import Augmenter
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

FILLS = {"constant", "nearest", "reflect", "wrap"}  # what scipy.ndimage does beyond an edge


class PerImage(Augmenter):  # type: ignore[misc]
    """An augmenter that makes one image of each; a subclass has `image`.

    A subclass keeps its parameters under the names that they have in a policy.
    """

    @abstractmethod
    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        """The new image, of the same shape, (H, W, 3) uint8; `random` is an RNG of imgaug."""

    def _augment_batch_(self, batch: Any, random_state: Any, parents: Any, hooks: Any) -> Any:
        for i, random in enumerate(random_state.derive_rngs_(len(batch.images))):
            batch.images[i] = self.image(batch.images[i], random)
        return batch

    def get_parameters(self) -> list[Any]:
        return [vars(self)[name] for name in inspect.signature(type(self)).parameters]


class ChannelShift(PerImage):
    """Add one number to all channels, and cut to the range that the image had before.

    So does Keras' `channel_shift_range` (keras_preprocessing, `apply_channel_shift`), which in
    spite of its name shifts the channels together; the sum is rounded here to 8 bits.
    """

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = _drawn(value, "value")

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        shifted = np.clip(pixels + _number(self.value, random), pixels.min(), pixels.max())
        return np.rint(shifted).astype(np.uint8)


class KerasAffine(PerImage):
    """Rotate, shift, shear and zoom in one step, as Keras' ImageDataGenerator does.

    A pixel of the result is looked up in the image at rotation · shift · shear · zoom of its place,
    about the centre, between four pixels (keras_preprocessing, `apply_affine_transform`). So a zoom
    above 1 makes things smaller, and `shear` is an angle whose sine and cosine are taken.

    rotation, shear: degrees. width_shift, height_shift: share of the side. zoom: drawn once for
    each side. fill_mode: what lies beyond an edge, in scipy's words; black for `constant`.
    """

    def __init__(
        self,
        rotation: Any = 0,
        width_shift: Any = 0,
        height_shift: Any = 0,
        shear: Any = 0,
        zoom: Any = 1,
        fill_mode: str = "nearest",
    ) -> None:
        super().__init__()
        if fill_mode not in FILLS:
            raise ValueError(f"fill_mode is one of {', '.join(sorted(FILLS))}, not {fill_mode!r}")
        self.rotation = _drawn(rotation, "rotation")
        self.width_shift = _drawn(width_shift, "width_shift")
        self.height_shift = _drawn(height_shift, "height_shift")
        self.shear = _drawn(shear, "shear")
        self.zoom = _drawn(zoom, "zoom", (0.01, None))
        self.fill_mode = fill_mode

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        sides = np.array(pixels.shape[:2])
        turn = np.deg2rad(_number(self.rotation, random))
        down = _number(self.height_shift, random) * sides[0]
        across = _number(self.width_shift, random) * sides[1]
        slant = np.deg2rad(_number(self.shear, random))
        tall, wide = _number(self.zoom, random), _number(self.zoom, random)
        rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shear = np.array([[1, -np.sin(slant)], [0, np.cos(slant)]])
        matrix = rotate @ shear @ np.diag([tall, wide])
        centre = (sides - 1) / 2
        offset = centre + rotate @ [down, across] - matrix @ centre
        out = np.empty(pixels.shape, np.float32)
        for channel in range(pixels.shape[2]):
            ndimage.affine_transform(
                pixels[..., channel].astype(np.float32),
                matrix,
                offset,
                output=out[..., channel],
                order=1,
                mode=self.fill_mode,
            )
        return np.rint(out).astype(np.uint8)


class CropAndScale(PerImage):
    """Cut a window out of the image, at a place drawn uniformly, and scale it to the image's size.

    size: the window's share of each side. order: of the splines between pixels, 0 to 5; 1 is
    linear. Scaled as scikit-image's `resize` does, with the edge repeated.
    """

    def __init__(self, size: Any, order: int = 1) -> None:
        super().__init__()
        if order not in range(6):
            raise ValueError(f"order is a whole number from 0 to 5, not {order!r}")
        self.size = _drawn(size, "size", (0.01, 1.0))
        self.order = int(order)

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        share = _number(self.size, random)
        height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
        top = int(random.integers(0, pixels.shape[0] - height + 1))
        left = int(random.integers(0, pixels.shape[1] - width + 1))
        window = pixels[top : top + height, left : left + width].astype(np.float32)
        factors = (pixels.shape[0] / height, pixels.shape[1] / width)
        out = np.empty(pixels.shape, np.float32)
        for channel in range(pixels.shape[2]):
            ndimage.zoom(
                window[..., channel],
                factors,
                output=out[..., channel],
                order=self.order,
                mode="nearest",
                grid_mode=True,
            )
        made: np.ndarray = np.rint(np.clip(out, 0, 255)).astype(np.uint8)
        return made


# --- what AutoAugment, RandAugment and TrivialAugment are made of ------------------------------

# Each takes an image and by how much, and leaves the image as it is for 0, if it can. Pixels that
# come from outside are black; nothing is drawn between pixels.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, by: ImageOps.autocontrast(image),
    "Brightness": lambda image, by: ImageEnhance.Brightness(image).enhance(1 + by),
    "Color": lambda image, by: ImageEnhance.Color(image).enhance(1 + by),
    "Contrast": lambda image, by: ImageEnhance.Contrast(image).enhance(1 + by),
    "Equalize": lambda image, by: ImageOps.equalize(image),
    "Identity": lambda image, by: image,
    "Invert": lambda image, by: ImageOps.invert(image),
    "Posterize": lambda image, by: ImageOps.posterize(image, 8 - round(by)),
    "Rotate": lambda image, by: image.rotate(by),
    "Sharpness": lambda image, by: ImageEnhance.Sharpness(image).enhance(1 + by),
    "ShearX": lambda image, by: _looked_up(image, (1, by, 0, 0, 1, 0)),
    "ShearY": lambda image, by: _looked_up(image, (1, 0, 0, by, 1, 0)),
    "Solarize": lambda image, by: ImageOps.solarize(image, 256 - int(by)),
    "TranslateX": lambda image, by: _looked_up(image, (1, 0, int(by), 0, 1, 0)),
    "TranslateY": lambda image, by: _looked_up(image, (1, 0, 0, 0, 1, int(by))),
}
# By how much at full strength: in AutoAugment and RandAugment, and in TrivialAugment's wide space.
FULL = {
    "Brightness": (0.9, 0.99),
    "Color": (0.9, 0.99),
    "Contrast": (0.9, 0.99),
    "Posterize": (4, 6),  # bits
    "Rotate": (30, 135),  # degrees
    "Sharpness": (0.9, 0.99),
    "ShearX": (0.3, 0.99),
    "ShearY": (0.3, 0.99),
    "Solarize": (256, 256),
    "TranslateX": (150 / 331, 32),  # of the width; pixels
    "TranslateY": (150 / 331, 32),
}
ONE_SIDED = {"Posterize", "Solarize"}  # the others go up or down, left or right
CHOSEN = sorted(OPERATIONS.keys() - {"Invert"})  # what RandAugment and TrivialAugment choose from


class AutoAugmentOp(PerImage):
    """One operation of an AutoAugment policy (Cubuk et al. 2019), with probability `p`.

    op: its name there. level: 0 to 9, from no change to the end of the published range; to which of
    two ends is drawn.
    """

    def __init__(self, op: str, p: Any = 1.0, level: int = 0) -> None:
        super().__init__()
        if op not in OPERATIONS:
            raise ValueError(f"op is one of {', '.join(OPERATIONS)}, not {op!r}")
        if level not in range(10):
            raise ValueError(f"level is a whole number from 0 to 9, not {level!r}")
        self.op = op
        self.p = parameters.handle_probability_param(p, "p", prefetch=False)
        self.level = level

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        if _number(self.p, random) < 0.5:
            return pixels
        return np.array(_operated(Image.fromarray(pixels), self.op, self.level / 9, 0, random))


class RandAugmentOps(PerImage):
    """RandAugment (Cubuk et al. 2020): `n` operations one after another, each drawn from the same
    14, at strength `m`, 0 to 30."""

    def __init__(self, n: Any = 2, m: Any = 9) -> None:
        super().__init__()
        self.n = _counted(n, "n", (0, None))
        self.m = _counted(m, "m", (0, 30))

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        image = Image.fromarray(pixels)
        share = _number(self.m, random) / 30
        for _ in range(int(_number(self.n, random))):
            image = _operated(image, CHOSEN[int(random.integers(0, len(CHOSEN)))], share, 0, random)
        return np.array(image)


class TrivialAugmentOp(PerImage):
    """TrivialAugment (Müller and Hutter 2021), wide: one of the 14 operations, at one of 31 equally
    likely strengths."""

    def __init__(self) -> None:
        super().__init__()

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        op = CHOSEN[int(random.integers(0, len(CHOSEN)))]
        share = int(random.integers(0, 31)) / 30
        return np.array(_operated(Image.fromarray(pixels), op, share, 1, random))


def _operated(image: Image.Image, op: str, share: float, space: int, random: Any) -> Image.Image:
    """The image after an operation at a share of its full strength in a space (0, or 1: wide)."""
    by = share * FULL[op][space] if op in FULL else 0.0
    if space == 0 and op.startswith("Translate"):
        by *= image.width if op == "TranslateX" else image.height
    if op not in ONE_SIDED and int(random.integers(0, 2)):
        by = -by
    return OPERATIONS[op](image, by)


def _looked_up(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _counted(value: Any, name: str, within: tuple[int, int | None]) -> Any:
    """A parameter of whole numbers; not one that draws ahead, which would be state."""
    return parameters.handle_discrete_param(
        value, name, value_range=within, allow_floats=False, prefetch=False
    )


def _drawn(value: Any, name: str, within: tuple[float, float | None] | None = None) -> Any:
    """A parameter: a number, or what draws one; not one that draws ahead, which would be state."""
    return parameters.handle_continuous_param(value, name, value_range=within, prefetch=False)


def _number(parameter: Any, random: Any) -> float:
    return float(parameter.draw_sample(random))
