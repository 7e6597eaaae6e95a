"""Augmenters of our own: what published policies do and imgaug lacks.

Beside policies.py the only file that imports imgaug; it is imported when a policy is built. Each
class is an augmenter of imgaug that a policy may name; policies.OWN has their names and versions.
They change images alone, keep each image's size, and hold no state: all that is drawn for an image
comes from the generator that imgaug hands them.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from imgaug import parameters
from imgaug.augmenters.meta import Augmenter
from scipy import ndimage

FILLS = {"constant", "nearest", "reflect", "wrap"}  # what scipy.ndimage does beyond an edge


class PerImage(Augmenter):  # type: ignore[misc]
    """An augmenter that makes one image of each; a subclass has `image`.

    A subclass keeps its parameters under the names that they have in a policy.
    """

    def image(self, pixels: np.ndarray, random: Any) -> np.ndarray:
        """The new image, of the same shape, (H, W, 3) uint8; `random` is an RNG of imgaug."""
        raise NotImplementedError

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


def _drawn(value: Any, name: str, within: tuple[float, float | None] | None = None) -> Any:
    """A parameter: a number, or what draws one; not one that draws ahead, which would be state."""
    return parameters.handle_continuous_param(value, name, value_range=within, prefetch=False)


def _number(parameter: Any, random: Any) -> float:
    return float(parameter.draw_sample(random))
