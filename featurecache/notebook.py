"""The small HTML table that a notebook shows for a run, a space or a dataset.

All text is escaped, since names of classes, files and folders are untrusted.
"""

from __future__ import annotations

import html
from collections.abc import Mapping


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """The HTML of a table of names and values with a title; rows with value None are omitted."""
    lines = [
        f"<tr><th style='text-align:left'>{html.escape(_text(name))}</th>"
        f"<td style='text-align:left'>{html.escape(_text(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    ]
    return f"<table><caption>{html.escape(_text(title))}</caption>{''.join(lines)}</table>"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).encode("utf-8", "backslashreplace").decode()  # a page is UTF-8
