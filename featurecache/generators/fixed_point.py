"""Matrix products whose result does not depend on the order of sums.

Both factors are rounded to multiples of a power of two, so that each product and each sum of
products is exact in float64. The result is the same for a row alone and in any batch, with any
number of threads and any library of linear algebra (law 1, "A view depends on its image alone").
The normal numbers are those of NumPy's version.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_MANTISSA = 53  # bits that float64 represents exactly
_FRACTION = 12  # bits of an activation after the point
NOISE_LIMIT = 8.0  # deviations; beyond that no normal number is drawn in practice


def rounded(values: np.ndarray, limit: float) -> Array:
    """Activations as multiples of 2**-12, clipped to `limit` on both sides."""
    scale = 2.0**_FRACTION
    clipped: Array = np.clip(np.asarray(values, np.float64), -limit, limit)
    return np.rint(clipped * scale) / scale


def coarse(matrix: np.ndarray, limit: float) -> Array:
    """A matrix (K, D) with as many bits as leave its products with `rounded` activations exact."""
    weights = np.asarray(matrix, np.float64)
    largest = float(np.abs(weights).max(initial=0.0))
    if largest == 0.0:
        return weights
    terms = math.ceil(math.log2(max(2, weights.shape[0])))
    bits = _MANTISSA - terms - _FRACTION - math.ceil(math.log2(limit))
    step = 2.0 ** (math.frexp(largest)[1] - bits)
    return np.rint(weights / step) * step


def noise(numbers: np.ndarray, width: int) -> Array:
    """(N, width) normal numbers, each row drawn from its own noise number, (N,) uint64."""
    rows = np.empty((len(numbers), width), np.float64)
    for row, number in enumerate(numbers.tolist()):
        np.random.Generator(np.random.Philox(key=number)).standard_normal(out=rows[row])
    return rounded(rows, NOISE_LIMIT)


def noise_number(fingerprint: bytes, item: bytes) -> int:
    """The noise number of an image in a view: the first 8 bytes of SHA-256(view key, item)."""
    return int.from_bytes(hashlib.sha256(fingerprint + item).digest()[:8], "big")
