"""Figures from arrays, as matplotlib figures or as encoded bytes. Only this module and sheets.py
draw with matplotlib.

Figures are drawn without pyplot, which keeps figures in a global list and may need a display. The
same arrays give the same bytes: files have no dates, and ids follow from the content.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

FORMATS = ("svg", "png")
DPI = 150  # of PNG
SOFTWARE = "featurecache"  # recorded in a PNG, so that datasets skip our own figures
INK = "#010203"  # of text and axes; `inline` replaces it by the page's colour
ACCENT, MUTED = "#d9622b", "#7f8fa6"  # visible on light and dark backgrounds
COLOURS = (  # of classes and runs
    ACCENT, "#3f7fbf", "#3d9a6b", "#a865b5", "#b8902a", "#44a5a5", "#d4679a", "#9a6b3f", "#8a9a3f",
    MUTED,
)  # fmt: skip
MARKERS = ("o", "s", "^", "D")  # of the first ten classes, the next ten, …
Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
Strip = tuple[str, Sequence[tuple[Pixels, Pixels, str]]]  # title; picture, the one below, caption
PART_NAMES = {"train": "training", "val": "validation"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and needs no embedded font
    "svg.hashsalt": "featurecache",
    "font.size": 9,
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "boxplot.boxprops.color",
            "boxplot.whiskerprops.color",
            "boxplot.capprops.color",
        ),
        INK,
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # class names may contain a $
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A context with the style of all figures: draw inside it."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        yield


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size in inches, to draw on in the style of all figures."""
    from matplotlib.figure import Figure

    with style():
        yield Figure(figsize=(width, height))


def rendered(figure: Figure, form: str) -> bytes:
    """The bytes of a figure as `svg` or `png`."""
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": SOFTWARE}
    with style(), warnings.catch_warnings():
        # matplotlib's font may lack glyphs of a class name. The browser that shows the SVG has them
        warnings.filterwarnings("ignore", message="Glyph")
        _settle(figure)
        figure.savefig(file, format=form, dpi=DPI, metadata=metadata)
    return file.getvalue()


def _settle(figure: Figure) -> None:
    """Fix the layout of a figure, rounded. The layout solver may differ in the last bits from run
    to run, and the ids in an SVG depend on them."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        bounds = axes.get_position(original=True).bounds
        left, bottom, width, height = (round(value, 6) for value in bounds)
        axes.set_position((left, bottom, width, height))


def label(name: str, max_length: int = 32) -> str:
    """An untrusted name as a label in a figure: one line of at most `max_length` characters, all of
    which XML can represent."""
    plain = printable(name)
    return plain if len(plain) <= max_length else plain[: max_length - 1] + "…"


def inline(figure: Figure) -> str:
    """A figure as SVG to put in a page: it takes the page's colours and scales to any width."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = rendered(figure, "svg").decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"'
                  r' width="[^"]*"', r"\1\2", text, count=1)  # fmt: skip
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # unused, and would repeat in a page of figures
    return text.replace(INK, "currentColor")


_DARK = (  # rules for the colours that every figure has, in a reader's dark theme
    "<style>@media screen and (prefers-color-scheme: dark) {"
    f'[style*="fill: {INK}"] {{ fill: #e4e8ee !important }} '
    f'[style*="stroke: {INK}"] {{ stroke: #e4e8ee !important }} '
    '[style*="fill: #ffffff"] { fill: #14181e !important }}</style>'
)


def themed(svg: bytes) -> bytes:
    """A figure's SVG with rules for dark themes. Programs that know no such rules, and printers,
    draw it as before."""
    rules = _DARK.encode()
    return svg if rules in svg else svg.replace(b"<defs>", rules + b"<defs>", 1)


def curves(epochs: Sequence[Mapping[str, float]], phases: Sequence[tuple[int, int, str]]) -> Figure:
    """Accuracy and loss by epoch, over bands of the phases (paper 000's figure).

    A row of `epochs` is {epoch, train_top1, val_top1, train_loss, val_loss}. If several folds have
    the same epoch, the line is their mean and the band spans their minimum and maximum. A phase is
    (first epoch, last epoch, name).
    """
    with drawing(6.2, 4.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        numbers = sorted({int(row["epoch"]) for row in epochs})
        for axes, metric in ((top, "top1"), (bottom, "loss")):
            for part, colour in (("train", MUTED), ("val", ACCENT)):
                cells = [
                    [row[f"{part}_{metric}"] for row in epochs if row["epoch"] == number]
                    for number in numbers
                ]
                means = [sum(cell) / len(cell) for cell in cells]
                axes.plot(numbers, means, ".-", color=colour, label=PART_NAMES[part], linewidth=1.5)
                if max(map(len, cells)) > 1:
                    lowest, highest = [min(c) for c in cells], [max(c) for c in cells]
                    axes.fill_between(
                        numbers, lowest, highest, color=colour, alpha=0.25, linewidth=0
                    )
            for index, (first, last, _) in enumerate(phases):
                if index % 2:
                    axes.axvspan(first - 0.5, last + 0.5, color=INK, alpha=0.08, linewidth=0)
            axes.set_ylabel({"top1": "top-1", "loss": "loss, nats"}[metric])
        for first, last, name in phases:
            top.annotate(
                label(name, 24), ((first + last) / 2, 1.02), xycoords=("data", "axes fraction"),
                rotation=30, ha="left", fontsize=7.5,
            )  # fmt: skip
        bottom.set_xlabel("epoch")
        bottom.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
        bottom.xaxis.get_major_locator().set_params(integer=True)
        bottom.legend(loc="upper right")
    return figure


def reliability(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Accuracy against confidence, in the bins of `metrics.calibration`, for each run. The diagonal
    is perfect calibration. A dot's area grows with the number of images in its bin."""
    with drawing(4.2, 3.6) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color=INK, alpha=0.5, linewidth=1)
        for index, (name, bins) in enumerate(runs.items()):
            full = [row for row in bins if row["n"]]
            max_n = max(row["n"] for row in full)
            x, y = [row["confidence"] for row in full], [row["top1"] for row in full]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(x, y, "-", color=colour, linewidth=1.5, label=label(name))
            sizes = [6 + 60 * row["n"] / max_n for row in full]
            axes.scatter(x, y, s=sizes, color=colour)
        axes.set(xlabel="confidence", ylabel="top-1", xlim=(0, 1), ylim=(0, 1))
        if len(runs) > 1:
            axes.legend(loc="upper left", fontsize=7)
    return figure


def retained(curves: Mapping[str, npt.NDArray[np.float64]], shares: Sequence[float]) -> Figure:
    """Named curves (K,): the share of variance that the first 1, 2, … K components retain. `shares`
    are drawn as horizontal lines."""
    colours = {"red": "#cc4444", "green": "#3d9a6b", "blue": "#3f7fbf"}
    with drawing(6.2, 4) as figure:
        axes = figure.subplots()
        for index, (name, curve) in enumerate(curves.items()):
            colour = colours.get(name.rpartition(" ")[2], COLOURS[index % len(COLOURS)])
            axes.plot(
                np.arange(1, len(curve) + 1), curve, color=colour, label=label(name), linewidth=1.5
            )
        for share in shares:
            axes.axhline(share, color=INK, alpha=0.4, linewidth=0.8, linestyle="--")
        axes.set(xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="components", ylabel="variance kept", ylim=(0, 1.02))
        axes.legend(loc="lower right")
    return figure


def scatter(points: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Figure:
    """Points {x, y, class} in the colours of their classes. The axes have no units and no ticks."""
    with drawing(6.2, 5.2) as figure:
        axes = figure.subplots()
        for index, (name, colour) in enumerate(colours.items()):
            marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
            class_points = [point for point in points if point["class"] == name]
            xs, ys = [point["x"] for point in class_points], [point["y"] for point in class_points]
            axes.scatter(
                xs, ys, s=14, color=colour, marker=marker, label=label(name), alpha=0.8,
                linewidths=0,
            )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)
    return figure


def colours_of(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A colour for each class of points {class, …}, in the order of the class names. From the
    eleventh class on, colours repeat."""
    names = sorted({str(point["class"]) for point in points})
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def scaled_points(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points {x, y, …} scaled to 0..1000, with y pointing down, as a page draws them."""
    if not points:
        return []
    coordinates = np.array([(point["x"], -point["y"]) for point in points])
    low = coordinates.min(0)
    scaled = 1000 * (coordinates - low) / max(float((coordinates.max(0) - low).max()), 1e-9)
    return [
        {**point, "x": round(float(x), 1), "y": round(float(y), 1)}
        for point, (x, y) in zip(points, scaled, strict=True)
    ]


def drift(
    cosines: Mapping[str, npt.NDArray[np.float64]],
    agreement: Mapping[str, float],
    strips: Sequence[Strip],
) -> Figure:
    """The drift of views: cosines as boxes, agreement as bars, and the most changed pictures.

    `cosines` has (N,) for each view; a box shows the quartiles, and its whiskers reach from 5% to
    95%. `agreement` has the share for each view and for `none`, which is drawn as a line. `strips`
    has for each view its most changed pictures: (clean, view, caption).
    """
    chart_height = 0.6 + 0.32 * len(cosines)
    with drawing(7.6, chart_height + 1.7 * len(strips)) as figure:
        heights = [chart_height, *[1.7] * len(strips)]
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        top, strip_parts = parts[0], parts[1:]
        left, right = top.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        names = list(cosines)
        left.boxplot(
            [cosines[name] for name in names], orientation="horizontal", whis=(5, 95),
            showfliers=False, tick_labels=[label(name) for name in names], widths=0.6,
            medianprops={"color": ACCENT},
        )  # fmt: skip
        left.set(xlabel="cosine to the clean vector")
        left.invert_yaxis()
        right.barh(range(1, len(names) + 1), [agreement[n] for n in names], 0.6, color=MUTED)
        right.axvline(agreement["none"], color=ACCENT, linewidth=1.2)
        right.set(xlabel="neighbours agree (line: clean)", xlim=(0, 1))
        for part, (name, pairs) in zip(strip_parts, strips, strict=True):
            _strip(part, f"{label(name)}: lowest cosines", pairs)
    return figure


def _strip(part: Any, title: str, pairs: Sequence[tuple[Pixels, Pixels, str]]) -> None:
    """Draw pairs of pictures, one above the other."""
    part.suptitle(title, fontsize=8)
    cells = part.subplots(2, max(10, len(pairs)), squeeze=False)
    for cell in cells.flat:
        cell.axis("off")
    for column, (upper, lower, caption) in enumerate(pairs):
        cells[0, column].imshow(upper)
        cells[1, column].imshow(lower)
        cells[0, column].set_title(caption, fontsize=7, pad=2)


def realism(
    measures: Mapping[str, Mapping[str, tuple[float, float, float]]], strips: Sequence[Strip]
) -> Figure:
    """Measures of generated and of real images with their intervals, and strips of pictures.

    `measures` has for each set of images (value, low, high) by name; `kid` and `distance` have
    scales of their own. The pictures of a strip are (generated, nearest real one, caption).
    """
    scales = ("kid", "distance")
    first = next(iter(measures.values()))
    panels = [[name for name in first if name not in scales], *([name] for name in scales)]
    with drawing(7.6, 2.6 + 1.7 * len(strips)) as figure:
        parts = figure.subfigures(
            1 + len(strips), 1, height_ratios=[2.6, *[1.7] * len(strips)], squeeze=False
        )[:, 0]
        axes = parts[0].subplots(1, len(panels), width_ratios=(3, 1.5, 1.5))
        for panel, names in zip(axes, panels, strict=True):
            for number, (set_name, by_name) in enumerate(measures.items()):
                values = np.array([by_name[name] for name in names])
                panel.errorbar(
                    values[:, 0], np.arange(len(names)) + 0.2 * number,
                    xerr=np.abs(values[:, 1:] - values[:, :1]).T, fmt="o", markersize=4,
                    color=(ACCENT, MUTED)[number], label=label(set_name),
                )  # fmt: skip
            panel.set_yticks(range(len(names)), names)
            panel.set_ylim(len(names) - 0.4, -0.4)
        axes[0].legend(fontsize=7.5)
        for part, (title, pairs) in zip(parts[1:], strips, strict=True):
            _strip(part, label(title, 60), pairs)
    return figure


def tiles(pictures: Sequence[tuple[Pixels, str, str]]) -> Figure:
    """Pictures (H, W, 3) with two lines of text each, in rows of five."""
    columns = 5
    lines = -(-len(pictures) // columns)
    with drawing(1.5 * columns, 1.85 * lines) as figure:
        cells = figure.subplots(lines, columns, squeeze=False)
        for cell in cells.flat:
            cell.axis("off")
        for cell, (pixels, first, second) in zip(cells.flat, pictures, strict=False):
            cell.imshow(pixels)
            cell.set_title(f"{label(first, 20)}\n{second}", fontsize=7.5)
    return figure
