"""Figures: well-formed, the same for the same arrays, and strangers' names as text."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.study import figures

HOSTILE = "<b>&\"' $x^2$ \u202e\x01 \u05e9 \u4e2d"
RNG = np.random.default_rng(0)
EPOCHS = [
    {"epoch": e, "fold": f, "train_top1": e / 4, "val_top1": e / 5, "train_loss": 1 / e,
     "val_loss": 1.5 / e}
    for f in (1, 2) for e in (1, 2, 3)
]  # fmt: skip
BINS = [{"n": 3, "confidence": 0.2, "top1": 0.3}, {"n": 0, "confidence": None, "top1": None},
        {"n": 9, "confidence": 0.8, "top1": 0.9}]  # fmt: skip
PIXELS = RNG.integers(0, 255, (6, 5, 3), np.uint8)
POINTS = [{"x": float(i), "y": -float(i), "class": c} for i, c in enumerate([HOSTILE, "cat", "ox"])]
DRAWN: dict[str, Callable[[], Any]] = {
    "curves": lambda: figures.curves(EPOCHS, [(1, 2, HOSTILE), (3, 3, "none")]),
    "reliability": lambda: figures.reliability({HOSTILE: BINS, "b": BINS}),
    "retained": lambda: figures.retained({HOSTILE: np.array([0.5, 0.8, 1])}, (0.9, 0.95)),
    "scatter": lambda: figures.scatter(POINTS, figures.colours_of(POINTS)),
    "drift": lambda: figures.drift(
        {"spatial_1": RNG.random(9)}, {"none": 0.5, "spatial_1": 0.25},
        [(HOSTILE, [(PIXELS, PIXELS, "0.10")])],
    ),
    "realism": lambda: figures.realism(
        {HOSTILE: dict.fromkeys(("kid", "recall", "distance"), (0.5, 0.4, 0.7))},
        [("nearest", [(PIXELS, PIXELS, "0.10")])],
    ),
    "tiles": lambda: figures.tiles([(PIXELS, HOSTILE, "0.5")] * 7),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_one_svg_and_one_png(name: str) -> None:
    figure = DRAWN[name]()
    tree = ElementTree.fromstring(figures.rendered(figure, "svg"))
    texts = ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert any("<b>&" in text for text in texts)
    picture = Image.open(io.BytesIO(figures.rendered(figure, "png")))
    assert picture.format == "PNG" and min(picture.size) > 200


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DRAWN if name not in ("drift", "realism")])
def test_the_same_arrays_give_the_same_bytes(name: str) -> None:
    for form in figures.FORMATS:
        assert figures.rendered(DRAWN[name](), form) == figures.rendered(DRAWN[name](), form)


def test_a_figure_in_a_page_takes_its_colours_and_its_width() -> None:
    text = figures.inline(DRAWN["curves"]())
    root = ElementTree.fromstring(text)
    assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
    assert figures.INK not in text and "currentColor" in text
    assert not [group for group in root.iter("{http://www.w3.org/2000/svg}g") if group.get("id")]


def test_a_label_is_one_short_line() -> None:
    assert figures.label("a\nb\x00\u202e\u200d") == "a\\nb\\x00\\u202e\u200d"
    assert figures.label("x" * 33) == "x" * 31 + "…" and figures.label("x" * 32) == "x" * 32


def test_points_fill_a_square_with_y_upward() -> None:
    found = figures.scaled_points([{"x": 0, "y": 0}, {"x": 10, "y": 5, "class": "a"}])
    assert found == [{"x": 0, "y": 500}, {"x": 1000, "y": 0, "class": "a"}]
    assert figures.scaled_points([{"x": 3, "y": 4}] * 2) == [{"x": 0, "y": 0}] * 2
    assert figures.scaled_points([]) == []


def test_classes_have_colours_of_their_own_as_long_as_there_are_some() -> None:
    found = figures.colours_of([{"class": str(n)} for n in range(12)])
    ordered = [found[name] for name in sorted(found)]
    assert len(set(ordered[:10])) == 10 and ordered[10] == ordered[0]
