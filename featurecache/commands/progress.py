"""Progress of long work on stderr: a bar, or lines when it is not a terminal."""

from __future__ import annotations

import atexit
import sys
import time
from typing import Any

from featurecache.commands.spinner import spinner
from featurecache.commands.terminal import can_redraw
from featurecache.executors import Progress, silent

LINE_EVERY = 10.0  # seconds between lines when stderr is not a terminal
NARROW = 60  # terminals with fewer columns show numbers without a bar


def open_progress(quiet: bool) -> Progress:
    """A bar with rate and remaining time on a terminal, else a plain line every ten seconds."""
    if quiet:
        return silent
    return _Bar() if can_redraw() else _Lines()


def _rate_text(rate: float) -> str:
    """What is done in a second, or how long each one takes."""
    return f"{rate:,.1f}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s each"


class _Lines:
    """`featurize (0 hits): 512 of 5,391, 170.2/s, 28 s left`, at most every ten seconds."""

    def __init__(self) -> None:
        self._started = self._last_line = time.monotonic()
        self._what = ""
        self._first = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        kind = what.split(" (")[0]
        if kind != self._what:
            self._what, self._first = kind, done
            self._started = self._last_line = now
        if done < total and now - self._last_line < LINE_EVERY:
            return
        self._last_line = now
        line = f"{what}: {done:,} of {total:,}"
        if now - self._started > 1 and done > self._first:
            rate = (done - self._first) / (now - self._started)
            line += f", {_rate_text(rate)}"
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
            """Truncated to fit, so that the numbers beside it are not."""

            def render(self, task: Task) -> Text:
                return Text(task.description, no_wrap=True, overflow="ellipsis")

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                rate = task.finished_speed or task.speed
                return Text(_rate_text(rate) if rate else "")

        def unbroken() -> Column:
            return Column(no_wrap=True)

        console = Console(stderr=True)
        columns = (
            What(), *([] if console.width < NARROW else [BarColumn()]),
            MofNCompleteColumn(table_column=unbroken()), Rate(table_column=unbroken()),
            TimeRemainingColumn(table_column=unbroken()),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console)
        atexit.register(self._progress.stop)  # an error must not leave the cursor hidden
        self._task: Any = None
        self._what = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        kind = what.split(" (")[0]
        if kind != self._what:
            self._what = kind
            if self._task is not None and not self._progress.tasks[-1].finished:
                self._progress.remove_task(self._task)  # another part of the work has begun
            self._task = self._progress.add_task(what, total=total or None)
            spinner.is_paused = True
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total or None, description=what)
        if done >= total > 0:
            self._progress.stop()
            spinner.is_paused = False
