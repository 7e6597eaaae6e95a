"""What people see: progress, tables, errors. Everything here goes to stderr but results."""

from __future__ import annotations

import atexit
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from featurecache.errors import printable as printable
from featurecache.executors import Progress, silent

LINE_EVERY = 10.0  # seconds between lines when the output is no terminal
NARROW = 60  # columns below which numbers take the place of a bar


def escape_what_cannot_be_shown() -> None:
    """A name that the output's encoding lacks (a Windows code page) is printed with escapes.

    Python would raise, after the work was done. stderr does so already.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def progress(quiet: bool) -> Progress:
    """A bar with rate and time left on a terminal, a plain line now and then elsewhere."""
    if quiet:
        return silent
    moves = os.environ.get("TERM", "") not in ("dumb", "unknown")  # else nothing can be redrawn
    return _Bar() if sys.stderr.isatty() and moves else _Lines()


class _Lines:
    """`featurize (0 hits): 512 of 5,391, 170.2/s, 28 s left`, at most every ten seconds."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()
        self._what = ""
        self._first = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        kind = what.split(" (")[0]
        if kind != self._what:
            self._what, self._first = kind, done
            self._started = self._shown = now
        if done < total and now - self._shown < LINE_EVERY:
            return
        self._shown = now
        line = f"{what}: {done:,} of {total:,}"
        if now - self._started > 1 and done > self._first:
            rate = (done - self._first) / (now - self._started)
            line += f", {rate:,.1f}/s"
            line += f", {(total - done) / rate:,.0f} s left" if done < total else ""
        print(line, file=sys.stderr, flush=True)


class _Bar:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TimeRemainingColumn,
        )
        from rich.table import Column
        from rich.text import Text

        class What(ProgressColumn):
            """Cut where there is no room: the numbers beside it stay whole."""

            def render(self, task: Task) -> Text:
                return Text(task.description, no_wrap=True, overflow="ellipsis")

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed or 0:,.1f}/s")

        def whole() -> Column:
            return Column(no_wrap=True)

        console = Console(stderr=True)
        columns = (
            What(), *([] if console.width < NARROW else [BarColumn()]),
            MofNCompleteColumn(table_column=whole()), Rate(table_column=whole()),
            TimeRemainingColumn(table_column=whole()),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console)
        atexit.register(self._progress.stop)  # an error on the way must not leave the cursor hidden
        self._task: Any = None
        self._what = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        kind = what.split(" (")[0]
        if kind != self._what:
            self._what = kind
            self._task = self._progress.add_task(what, total=total or None)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total or None, description=what)
        if done >= total > 0:
            self._progress.stop()


def table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Rows of the same keys as a table on stdout. Text is shown as it is, markup and all."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    wide = None if sys.stdout.isatty() else 200  # a pipe has no width to fit into
    shown = Table(title=None if title is None else Text(_text(title)))
    for name, value in rows[0].items():
        number = isinstance(value, int | float)
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(_text(value)) for value in row.values()))
    Console(width=wide).print(shown)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    encoding = sys.stdout.encoding or "utf-8"
    text = "" if value is None else printable(str(value))
    return text.encode(encoding, "backslashreplace").decode(encoding)  # before it is measured
