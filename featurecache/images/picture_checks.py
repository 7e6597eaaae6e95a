"""Limits on the size of a picture, for files and after every step of an augmentation.

A larger picture could take all memory or minutes of time, either here or when it is scaled to the
input size of a network. Cached records and pixel canaries contain these messages, so their wording
must not change.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featurecache.errors import FeatureCacheError
from featurecache.text import one_line

MAX_PIXELS = 100_000_000
MAX_SCANS = 32  # at MAX_PIXELS, about a second. Encoders write 1 to 12; a megabyte can hold 50,000
MAX_RATIO = 256  # the shorter side is scaled up for a network: a line of pixels would fill memory
# The largest absolute value of a number in a policy. A blur of this width, or this many cutouts,
# takes a second per image; imgaug accepts larger numbers, and then takes hours or all memory.
MAX_NUMBER = 4096


class Undecodable(Exception):
    """The bytes are not a picture by the decode rule, or the view can't be made of it. The message
    is the reason, on one line."""


class UnfitImage(FeatureCacheError, Undecodable):
    """The policy can't be applied to this image, but can be applied to others."""


class UnseenImage(Undecodable):
    """A generator of the policy knows the classes of other images, and can't be given this one."""


def augmented(
    policy: str, step: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray
) -> np.ndarray:
    """What `step` of the policy of this name makes of an image, (H, W, 3) uint8.

    Raises Undecodable if that is beyond the limits or can't be made of this image, and
    FeatureCacheError if it is not an RGB picture or another image may succeed.
    """
    try:
        out = step(pixels)
    except (Undecodable, FeatureCacheError):
        raise
    except Exception as error:
        error_text = one_line(error)
        # An error that may be temporary, or the machine's fault, must not mark the image as failed.
        is_passing = isinstance(error, MemoryError | OSError) or "nsufficient memory" in error_text
        raise (FeatureCacheError if is_passing else UnfitImage)(
            f"policy {policy!r} failed on an image of shape {pixels.shape}: "
            f"{type(error).__name__}: {error_text}"
        ) from error
    if out.size == 0:
        raise UnfitImage(
            f"policy {policy!r} left nothing of an image of shape {pixels.shape}; "
            "its augmenters must cut off or shrink less"
        )
    if out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] != 3:
        raise FeatureCacheError(
            f"policy {policy!r} gave a {out.dtype} array of shape {out.shape}, "
            "not an RGB image; its augmenters must keep three 8-bit channels"
        )
    check_size(*out.shape[:2])
    return np.ascontiguousarray(out)


def size_refusal(width: int, height: int, scans: int = 1) -> str | None:
    """Why a picture of this size is refused; None if it is not."""
    width, height = int(width), int(height)  # the product of NumPy integers may overflow
    if width * height > MAX_PIXELS:
        return f"{width}x{height} is more than {MAX_PIXELS:,} pixels"
    if width * height == 0:
        return f"{width}x{height} has no pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is longer than {MAX_RATIO} times its width"
    if scans * width * height > MAX_SCANS * MAX_PIXELS:
        return f"{scans:,} scans of {width}x{height} pixels take too long"
    return None


def check_size(height: int, width: int) -> None:
    """Raise Undecodable if a file of this size would be refused."""
    refusal = size_refusal(width, height)
    if refusal is not None:
        raise Undecodable(refusal)


def check_pixels(height: int, width: int) -> None:
    """Raise Undecodable if this is more than MAX_PIXELS. Call before allocating."""
    if int(height) * int(width) > MAX_PIXELS:
        raise Undecodable(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")


def jpeg_refusal(data: bytes, width: int, height: int) -> str | None:
    """Why a JPEG of this size is refused; None if it is not."""
    # An upper bound, since other segments and trailing bytes may contain the marker too.
    max_scans = data.count(b"\xff\xda")
    refusal = size_refusal(width, height, max_scans)
    return refusal and size_refusal(width, height, _count_scans(data, max_scans))


def _count_scans(data: bytes, max_scans: int) -> int:
    """The number of scans of a JPEG up to its end marker, where a decoder stops; never too few.

    It follows the lengths of the segments. If a segment has an implausible length, it is
    `max_scans`.
    """
    scans, position = 0, 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:  # in scan data, or padding
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return scans
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker < 0xC0 or marker == 0xD8 or length < 2:
            return max_scans
        scans += marker == 0xDA
        position += 2 + length
    return scans
