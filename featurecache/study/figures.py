"""Figures: the only room that draws with matplotlib. Arrays in, a figure or its bytes out.

Figures are drawn without pyplot, which keeps figures in a global list and may want a screen. The
same arrays give the same bytes: no dates, and ids that follow from the content.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

FORMATS = ("svg", "png")
DPI = 150  # of PNG
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and needs no font here
    "svg.hashsalt": "featurecache",
    "font.size": 9,
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
    with style():
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(file, format=form, dpi=DPI, metadata=metadata)
    return file.getvalue()
