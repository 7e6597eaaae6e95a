"""The memory that heads need which are solved from Gram matrices (closed_forms.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from featurecache import machine
from featurecache.byte_sizes import size_text
from featurecache.errors import BadInput
from featurecache.heads.schedules import Schedule

# Bytes per square of the width P at the peak, measured: the matrix of sums, a copy of it, and what
# its factorization takes. Ridge on grouped images needs no eigenvectors.
_BYTES = {"ridge": 48, "lda": 34, "random_features": 13}
_GROUPED_RIDGE = 20


def check_memory(schedules: Iterable[Schedule], width: int, is_grouped: bool = False) -> None:
    """Raise BadInput if the head of one of the schedules needs more memory than is available for
    vectors of this width. How many components are a share of the variance is not known yet."""
    for schedule in schedules:
        features, pca = width, None if schedule.input is None else schedule.input.pca
        if schedule.head.kind == "random_features":
            features = schedule.head.width or width
        elif pca is not None:
            features = pca if isinstance(pca, int) else 1
        check_width(schedule.head.kind or "", features, is_grouped)


def check_width(kind: str, width: int, is_grouped: bool = False) -> None:
    """Raise BadInput if a head of this kind on `width` features needs more memory than is
    available. The message has the largest width that fits."""
    available = machine.available_memory()
    per_square = _GROUPED_RIDGE if kind == "ridge" and is_grouped else _BYTES.get(kind, 0)
    needed = per_square * width**2
    if available is None or needed <= available:
        return
    largest = math.isqrt(available // per_square)
    largest -= largest % 10 ** max(0, len(str(largest)) - 2)  # two digits
    remedy = (
        f"write width: {largest}"
        if kind == "random_features"
        else f"take fewer backbones, write input: {{pca: {largest}}}, or head: {{kind: ncm}}"
    )
    raise BadInput(
        f"head: {kind} of width {width:,} needs about {size_text(needed)} of memory, "
        f"and {size_text(available)} are available; {remedy}, the largest that fits"
    )
