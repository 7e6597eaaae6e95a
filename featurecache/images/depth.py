"""How many bits a 16-bit picture really uses.

Cameras and microscopes often store 10, 12 or 14 bits in the lowest bits of 16. The high byte, which
the decode rule keeps, is then nearly black.
"""

from __future__ import annotations

import re

import numpy as np

from featurecache.images.tiffs import bits_of_tiff


def used_bits(data: bytes, pixels: np.ndarray) -> int | None:
    """The number of low bits that the brightest value of a 16-bit file needs. `pixels` are the
    decoded file. None for a file of another depth."""
    if _bits(data) != 16:
        return None
    brightest = int(pixels.max())
    if data.startswith(b"P") and brightest:  # scaled to 255, not cut to the high byte
        return (brightest * 257 - 128).bit_length()
    return 8 + brightest.bit_length()


def _bits(data: bytes) -> int:
    if data.startswith(b"\x89PNG"):
        return data[24]
    if data.startswith((b"II", b"MM")):
        return bits_of_tiff(data)
    match = re.match(rb"P[2356]\s+(?:#[^\n]*\s+)*\d+\s+(?:#[^\n]*\s+)*\d+\s+(\d+)\s", data[:512])
    return int(match[1]).bit_length() if match else 8
