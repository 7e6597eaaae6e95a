"""The part of a page in docs/ that a command writes; what stands around it is written by hand."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"


def measured(page: Path) -> str:
    """What stands between the markers of a page."""
    return page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write_measured(page: Path, text: str) -> None:
    """Put `text` between the markers of a page; the rest of the page stays."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", encoding="utf-8")
