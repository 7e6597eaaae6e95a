"""Our own augmenters: operations of published policies that imgaug lacks.

Only policies.py and this module import imgaug; this module is imported when a policy is built. Each
class is an imgaug augmenter that a policy can name; policies.OWN_AUGMENTERS has their names and
versions. They change only the image, keep its size, and have no state: all random numbers for an
image come from the generator that imgaug passes in.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from imgaug import parameters
from imgaug.augmenters.meta import Augmenter
from PIL import Image, ImageEnhance, ImageOps
from scipy import fft, ndimage

from featurecache.images.generator_nodes import Forward
from featurecache.images.styles import Style

FILLS = {"constant", "nearest", "reflect", "wrap"}  # modes of scipy.ndimage


class PerImage(Augmenter):  # type: ignore[misc]
    """An augmenter that maps each image to one image; a subclass implements `image`.

    A subclass stores its parameters in attributes with the names that they have in a policy.
    """

    @abstractmethod
    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        """The new image, of the same shape (H, W, 3) uint8; `random` is imgaug's RNG."""

    def _augment_batch_(self, batch: Any, random_state: Any, parents: Any, hooks: Any) -> Any:
        for i, random in enumerate(random_state.derive_rngs_(len(batch.images))):
            batch.images[i] = self.image(batch.images[i], random)
        return batch

    def get_parameters(self) -> list[Any]:
        return [vars(self)[name] for name in inspect.signature(type(self)).parameters]


class Generated(PerImage):
    """What a generator makes of the image, mixed with the image: `strength` is its share."""

    def __init__(self, forward: Forward, strength: Any = 1.0) -> None:
        super().__init__()
        self.forward = forward
        self.item = b""  # of the image; set before each
        self.strength = _parameter(strength, "strength", (0.0, 1.0))

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        share = _number(self.strength, random)
        mixed = pixels + share * (self.forward(pixels, random.generator, self.item) - pixels)
        made: np.ndarray = np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)
        return made


class ChannelShift(PerImage):
    """Add one number to all channels, and clip to the range of values in the original image.

    This is the `channel_shift_range` of Keras (keras_preprocessing, `apply_channel_shift`), which
    despite its name shifts all channels by the same number. Here the sum is rounded to 8 bits.
    """

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = _parameter(value, "value")

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        shifted = np.clip(pixels + _number(self.value, random), pixels.min(), pixels.max())
        return np.rint(shifted).astype(np.uint8)


class KerasAffine(PerImage):
    """Rotate, shift, shear and zoom in one step, as Keras' ImageDataGenerator does.

    Each pixel of the result is sampled from the image, bilinearly, at its own coordinates
    transformed by rotation · shift · shear · zoom about the centre (keras_preprocessing,
    `apply_affine_transform`). A zoom above 1 therefore makes things smaller, and `shear` is an
    angle whose sine and cosine enter the matrix.

    rotation, shear: degrees. width_shift, height_shift: share of the side. zoom: drawn separately
    for each side. fill_mode: how to fill beyond an edge, a mode of scipy.ndimage; `constant` is
    black.
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
            raise ValueError(
                f"fill_mode must be one of {', '.join(sorted(FILLS))}, not {fill_mode!r}"
            )
        self.rotation = _parameter(rotation, "rotation")
        self.width_shift = _parameter(width_shift, "width_shift")
        self.height_shift = _parameter(height_shift, "height_shift")
        self.shear = _parameter(shear, "shear")
        self.zoom = _parameter(zoom, "zoom", (0.01, None))
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
    """Crop a window at a uniformly drawn position, and scale it to the image's size.

    size: the window's share of each side. order: the order of the interpolating spline, 0 to 5; 1
    is linear. Scales as scikit-image's `resize` does, with the edge repeated.
    """

    def __init__(self, size: Any, order: int = 1) -> None:
        super().__init__()
        if order not in range(6):
            raise ValueError(f"order must be an integer from 0 to 5, not {order!r}")
        self.size = _parameter(size, "size", (0.01, 1.0))
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


class LabTransfer(PerImage):
    """Give the image the mean and the deviation of each Lab channel of a random style image
    (Reinhard et al., "Color Transfer between Images", 2001; here in CIE Lab).

    strength: the share of the change, 0 to 1.
    """

    def __init__(self, style: Style, strength: Any = 1.0) -> None:
        super().__init__()
        self.style = style
        self.strength = _parameter(strength, "strength", (0.0, 1.0))

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        drawn = self.style[int(random.integers(0, len(self.style)))].pixels()
        share = np.float32(_number(self.strength, random))
        lab, style = _to_lab(pixels), _to_lab(drawn)
        mean, deviation = lab.mean((0, 1)), lab.std((0, 1))
        # A channel without contrast has nothing to stretch.
        ratio = style.std((0, 1)) / np.maximum(deviation, 1e-3)
        moved = (lab - mean) * ratio + style.mean((0, 1))
        mixed = (lab + share * (moved - lab)).astype(np.float32)
        rgb = cv2.cvtColor(mixed, cv2.COLOR_LAB2RGB)
        made: np.ndarray = np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
        return made


class FourierMix(PerImage):
    """Mix the amplitudes of low frequencies with those of a random style image, and keep the phases
    (Yang and Soatto, "FDA", CVPR 2020; Xu et al., "A Fourier-based Framework", CVPR 2021).

    beta: low frequencies are those up to this share of the shorter side, 0 to 0.5. strength: the
    share of the style's amplitudes, 0 to 1.
    """

    def __init__(self, style: Style, beta: Any = 0.1, strength: Any = 1.0) -> None:
        super().__init__()
        self.style = style
        self.beta = _parameter(beta, "beta", (0.0, 0.5))
        self.strength = _parameter(strength, "strength", (0.0, 1.0))

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        drawn = self.style[int(random.integers(0, len(self.style)))].pixels()
        height, width = pixels.shape[:2]
        limit = int(_number(self.beta, random) * min(height, width))
        share = np.float32(_number(self.strength, random))
        style = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        rows = np.abs(fft.fftfreq(height, 1 / height)) <= limit
        columns = fft.rfftfreq(width, 1 / width) <= limit
        low = np.ix_(rows, columns)
        out = np.empty(pixels.shape, np.uint8)
        for channel in range(3):
            spectrum = fft.rfft2(pixels[..., channel].astype(np.float32))
            wanted = np.abs(fft.rfft2(style[..., channel].astype(np.float32))[low])
            part = spectrum[low]
            mixed = (1 - share) * np.abs(part) + share * wanted
            spectrum[low] = mixed * np.exp(1j * np.angle(part))
            plane = fft.irfft2(spectrum, s=(height, width))
            out[..., channel] = np.rint(np.clip(plane, 0, 255))
        return out


def _to_lab(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 in CIE Lab."""
    lab: np.ndarray = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return lab


# --- the operations of AutoAugment, RandAugment and TrivialAugment -----------------------------

# Each takes an image and a strength. At strength 0 those that use the strength leave the image
# unchanged. Pixels from outside the image are black; sampling is nearest-neighbour.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, strength: ImageOps.autocontrast(image),
    "Brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + strength),
    "Color": lambda image, strength: ImageEnhance.Color(image).enhance(1 + strength),
    "Contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + strength),
    "Equalize": lambda image, strength: ImageOps.equalize(image),
    "Identity": lambda image, strength: image,
    "Invert": lambda image, strength: ImageOps.invert(image),
    "Posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(strength)),
    "Rotate": lambda image, strength: image.rotate(strength),
    "Sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + strength),
    "ShearX": lambda image, strength: _transform(image, (1, strength, 0, 0, 1, 0)),
    "ShearY": lambda image, strength: _transform(image, (1, 0, 0, strength, 1, 0)),
    "Solarize": lambda image, strength: ImageOps.solarize(image, 256 - int(strength)),
    "TranslateX": lambda image, strength: _transform(image, (1, 0, int(strength), 0, 1, 0)),
    "TranslateY": lambda image, strength: _transform(image, (1, 0, 0, 0, 1, int(strength))),
}
# The full strength: in AutoAugment and RandAugment, and in TrivialAugment's wide space.
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
    "TranslateX": (150 / 331, 32),  # a share of the width; pixels
    "TranslateY": (150 / 331, 32),
}
ONE_SIDED = {"Posterize", "Solarize"}  # the sign of the strength of the others is random
CHOSEN = sorted(OPERATIONS.keys() - {"Invert"})  # the choices of RandAugment and TrivialAugment


class AutoAugmentOp(PerImage):
    """One operation of an AutoAugment policy (Cubuk et al. 2019), with probability `p`.

    op: the name of the operation in the paper. level: 0 to 9, from no change to the end of the
    published range. If the range has two ends, one is drawn.
    """

    def __init__(self, op: str, p: Any = 1.0, level: int = 0) -> None:
        super().__init__()
        if op not in OPERATIONS:
            raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, not {op!r}")
        if level not in range(10):
            raise ValueError(f"level must be an integer from 0 to 9, not {level!r}")
        self.op = op
        self.p = parameters.handle_probability_param(p, "p", prefetch=False)
        self.level = level

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        if _number(self.p, random) < 0.5:
            return pixels
        return np.array(_apply(Image.fromarray(pixels), self.op, self.level / 9, 0, random))


class RandAugmentOps(PerImage):
    """RandAugment (Cubuk et al. 2020): `n` operations in sequence, each drawn from the same 14, at
    strength `m`, 0 to 30."""

    def __init__(self, n: Any = 2, m: Any = 9) -> None:
        super().__init__()
        self.n = _integer_parameter(n, "n", (0, None))
        self.m = _integer_parameter(m, "m", (0, 30))

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        image = Image.fromarray(pixels)
        share = _number(self.m, random) / 30
        for _ in range(int(_number(self.n, random))):
            image = _apply(image, CHOSEN[int(random.integers(0, len(CHOSEN)))], share, 0, random)
        return np.array(image)


class TrivialAugmentOp(PerImage):
    """TrivialAugment (Müller and Hutter 2021) with the wide space: one of the 14 operations, at one
    of 31 equally likely strengths."""

    def __init__(self) -> None:
        super().__init__()

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        op = CHOSEN[int(random.integers(0, len(CHOSEN)))]
        share = int(random.integers(0, 31)) / 30
        return np.array(_apply(Image.fromarray(pixels), op, share, 1, random))


def _apply(image: Image.Image, op: str, share: float, space: int, random: Any) -> Image.Image:
    """The image after an operation at a share of its full strength. `space` is 1 for the wide
    space, else 0."""
    strength = share * FULL[op][space] if op in FULL else 0.0
    if space == 0 and op.startswith("Translate"):
        strength *= image.width if op == "TranslateX" else image.height
    if op not in ONE_SIDED and int(random.integers(0, 2)):
        strength = -strength
    return OPERATIONS[op](image, strength)


def _transform(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _integer_parameter(value: Any, name: str, limits: tuple[int, int | None]) -> Any:
    """An integer parameter, without imgaug's prefetching, which would be state."""
    return parameters.handle_discrete_param(
        value, name, value_range=limits, allow_floats=False, prefetch=False
    )


def _parameter(value: Any, name: str, limits: tuple[float, float | None] | None = None) -> Any:
    """A parameter, constant or random, without imgaug's prefetching, which would be state."""
    return parameters.handle_continuous_param(value, name, value_range=limits, prefetch=False)


def _number(parameter: Any, random: Any) -> float:
    return float(parameter.draw_sample(random))
