"""Figures: the room that draws with matplotlib, sheets.py beside it. Arrays in, a figure or its
bytes out.

Figures are drawn without pyplot, which keeps figures in a global list and may want a screen. The
same arrays give the same bytes: no dates, and ids that follow from the content.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

FORMATS = ("svg", "png")
DPI = 150  # of PNG
INK = "#010203"  # of text and axes; a page puts its own colour in its place
ACCENT, MUTED = "#d9622b", "#7f8fa6"  # to be seen on light and on dark
COLOURS = (ACCENT, "#3f7fbf", "#3d9a6b", "#a865b5", "#b8902a", MUTED)
SHOWN = {"train": "training", "val": "validation"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and needs no font here
    "svg.hashsalt": "featurecache",
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # class names may hold a $
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw within this."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        yield


def rendered(figure: Figure, form: str) -> bytes:
    """The bytes of a figure as `svg` or `png`."""
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    with style(), warnings.catch_warnings():
        # The browser has the glyphs of a class name; matplotlib's own font need not.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=form, dpi=DPI, metadata=metadata)
    return file.getvalue()


def inline(figure: Figure) -> str:
    """A figure as SVG to stand in a page: it takes the page's colours, and any width."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = rendered(figure, "svg").decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"'
                  r' width="[^"]*"', r"\1\2", text, count=1)  # fmt: skip
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and pages have several
    return text.replace(INK, "currentColor")


def curves(epochs: Sequence[Mapping[str, float]], phases: Sequence[tuple[int, int, str]]) -> Figure:
    """Accuracy and loss by epoch, over bands of the phases (paper 000's figure).

    An epoch is {epoch, train_top1, val_top1, train_loss, val_loss}; where folds share an epoch the
    line is their mean and the band reaches from the least to the greatest. A phase is (its first
    epoch, its last, its name).
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.2, 4.6))
        top, bottom = figure.subplots(2, 1, sharex=True)
        numbers = sorted({int(row["epoch"]) for row in epochs})
        for axes, what in ((top, "top1"), (bottom, "loss")):
            for part, colour in (("train", MUTED), ("val", ACCENT)):
                cells = [
                    [row[f"{part}_{what}"] for row in epochs if row["epoch"] == number]
                    for number in numbers
                ]
                means = [sum(cell) / len(cell) for cell in cells]
                axes.plot(numbers, means, ".-", color=colour, label=SHOWN[part], linewidth=1.5)
                if max(map(len, cells)) > 1:
                    least, most = [min(c) for c in cells], [max(c) for c in cells]
                    axes.fill_between(numbers, least, most, color=colour, alpha=0.25, linewidth=0)
            for place, (first, last, _) in enumerate(phases):
                if place % 2:
                    axes.axvspan(first - 0.5, last + 0.5, color=INK, alpha=0.08, linewidth=0)
            axes.set_ylabel({"top1": "top-1", "loss": "loss, nats"}[what])
        for first, last, name in phases:
            top.annotate(
                name, ((first + last) / 2, 1.02), xycoords=("data", "axes fraction"),
                rotation=30, ha="left", fontsize=7.5,
            )  # fmt: skip
        bottom.set_xlabel("epoch")
        bottom.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
        bottom.xaxis.get_major_locator().set_params(integer=True)
        bottom.legend(loc="upper right")
    return figure


def reliability(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Accuracy against confidence, by the bins of `metrics.calibration` of each run; the diagonal
    is a perfect calibration. Dots grow with the images in a bin."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.2, 3.6))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color=INK, alpha=0.5, linewidth=1)
        for place, (name, bins) in enumerate(runs.items()):
            full = [row for row in bins if row["n"]]
            most = max(row["n"] for row in full)
            x, y = [row["confidence"] for row in full], [row["top1"] for row in full]
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(x, y, "-", color=colour, linewidth=1.5, label=name)
            sizes = [6 + 60 * (row["n"]) / most for row in full]
            axes.scatter(x, y, s=sizes, color=colour)
        axes.set(xlabel="confidence", ylabel="top-1", xlim=(0, 1), ylim=(0, 1))
        if len(runs) > 1:
            axes.legend(loc="upper left", fontsize=7)
    return figure
