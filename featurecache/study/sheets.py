"""Sheets of pictures, saliency maps and filters, drawn with matplotlib as in figures.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurecache.study.figures import drawing, label

if TYPE_CHECKING:
    from featurecache.study.figures import Figure

_CELL = 1.5  # inches
_SCALE_PERCENTILE = 99.5  # not 100, since a few extreme pixels would darken all others


def _short(names: str, max_length: int) -> str:
    """The first of several comma-separated names, cut to `max_length` characters."""
    return label(names.split(",")[0], max_length)


class SaliencyRow(NamedTuple):
    """A row of `saliency`. `maps` has for each run the absolute and the signed map (H, W), the name
    and the probability of the class, and the share of the absolute map in the boxes, or None."""

    name: str
    truth: str | None
    pixels: np.ndarray  # (H, W, 3) uint8
    boxes: Sequence[tuple[int, int, int, int]]  # x0, y0, x1, y1, all inclusive
    area: float | None  # the share of the pixels inside the boxes
    maps: Sequence[tuple[np.ndarray, np.ndarray, str, float, float | None]]


def saliency(title: str, runs: Sequence[str], rows: Sequence[SaliencyRow]) -> Figure:
    """One row per image: the image, then for every run its absolute map (white is the maximum) and
    its signed map (red is for the class, blue against it). Each map is scaled separately."""
    with drawing(_CELL * (1 + 2 * len(runs)), 0.6 + (_CELL + 0.4) * len(rows)) as figure:
        figure.suptitle(title)
        grid = figure.subplots(len(rows), 1 + 2 * len(runs), squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            _picture(line[0], row.pixels, row.boxes)
            truth = "" if row.truth is None else f"\n{_short(row.truth, 20)}"
            line[0].set_title(_short(row.name.rpartition("/")[2], 20) + truth, fontsize=7)
            for index, (absolute, signed, name, probability, inside) in enumerate(row.maps):
                left, right = line[1 + 2 * index : 3 + 2 * index]
                scale = float(np.percentile(absolute, _SCALE_PERCENTILE)) or 1.0
                _picture(left, absolute, row.boxes, cmap="gray", vmin=0, vmax=scale)
                scale = float(np.percentile(np.abs(signed), _SCALE_PERCENTILE)) or 1.0
                _picture(right, signed, row.boxes, cmap="RdBu_r", vmin=-scale, vmax=scale)
                head = f"{_short(runs[index], 40)}\n" if row is rows[0] else ""
                box_share = ""
                if inside is not None and row.area is not None:
                    box_share = (
                        f"\n{100 * inside:.0f}% in the box ({100 * row.area:.0f}% of the picture)"
                    )
                prediction = f"{_short(name, 30)}, {100 * probability:.0f}%"
                left.set_title(head + prediction + box_share, fontsize=7, loc="left")
    return figure


def mosaics(title: str, names: Sequence[str], pictures: Sequence[np.ndarray]) -> Figure:
    """Pictures (H, W, 3) in 0..1 side by side."""
    with drawing(4.5 * len(pictures), 5.2) as figure:
        figure.suptitle(title)
        for axes, name, picture in zip(
            figure.subplots(1, len(pictures), squeeze=False)[0], names, pictures, strict=True
        ):
            _picture(axes, picture)
            axes.set_title(name, fontsize=8)
    return figure


def _picture(
    axes: Any, picture: np.ndarray, boxes: Sequence[tuple[int, int, int, int]] = (), **options: Any
) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_axis_off()
    for x0, y0, x1, y1 in boxes:
        corner, size = (x0 - 0.5, y0 - 0.5), (x1 - x0 + 1, y1 - y0 + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#00c853", linewidth=1.2))
