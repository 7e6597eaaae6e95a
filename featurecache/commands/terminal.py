"""What users see: progress, tables, errors. Everything but results goes to stderr."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurecache.commands.spinner import spinner
from featurecache.text import printable as printable

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200  # width of tables in a pipe, which has none of its own
CONSOLE_LINES = 25  # rich wants a height; tables do not depend on it
LIST_COLUMNS = ("", "value")  # of a single row that is printed as a list
MAX_UNBROKEN = 16  # columns; longer text may wrap, to this width or more
MAX_WORD = 26  # longer words may be broken
MAX_NAME = 32  # the same for the first column, which names the row: a run, a view, a space


class _Output(io.TextIOWrapper):
    """Standard output or error that discards what is printed once it can't be written (a closed
    terminal, a full disk, a pipe without a reader), and keeps the reason in `lost`: a command must
    not lose its work because its output can't be shown."""

    def __init__(self, number: int, replaced: io.TextIOWrapper) -> None:
        raw = io.BufferedWriter(io.FileIO(number, "wb", closefd=False))
        # Escape characters that the encoding lacks (a Windows code page): Python would raise.
        super().__init__(raw, replaced.encoding, "backslashreplace", line_buffering=number == 2)
        self.number = number
        self.replaced = replaced  # it would close the descriptor if it were garbage collected
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        spinner.before_output(is_result=self.number == 1)
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        _discard(self.number)


def prepare_streams() -> None:
    """Make standard input, output and error usable, even if the caller closed them.

    A closed stream is opened on the null device. Otherwise the next file to be opened, perhaps a
    cache file, would get its descriptor, and a library that prints would write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        elif number and type(stream) is io.TextIOWrapper and stream.fileno() == number:
            setattr(sys, name, _Output(number, stream))


def start_spinner() -> None:
    """Show a spinner on a terminal while nothing else is shown."""
    if can_redraw():
        spinner.start()


def can_redraw() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def lost_output() -> OSError | None:
    """The error that stopped output to stdout; None if everything was written."""
    sys.stdout.flush()
    return sys.stdout.lost if isinstance(sys.stdout, _Output) else None


def _discard(number: int) -> None:
    """Point a file descriptor to the null device, here and in child processes."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def minute(time: str) -> str:
    """A time in ISO 8601 to the minute, as tables show it."""
    return time[:16].replace("T", " ")


def table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print rows with the same keys as a table on stdout. Markup in text is printed literally.

    Numbers and short words are never broken. If the columns do not all fit, a single row is printed
    as a list of names and values, and several rows as tables below each other, each starting with
    the first column.
    """
    from rich.console import Console

    if not rows:
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(width=width, height=CONSOLE_LINES)  # both, or a dumb terminal has 80 columns
    names = list(rows[0])
    parts = _fitting(rows, names, width)
    if len(parts) > 1 and len(rows) == 1:
        rows = [{"": name, "value": _text(rows[0][name])} for name in names]
        parts = [list(LIST_COLUMNS)]
    for number, part in enumerate(parts):
        _print_table(console, rows, part, None if number else title)


def _fitting(rows: Sequence[Mapping[str, Any]], names: list[str], width: int) -> list[list[str]]:
    """The columns split into parts that each fit into a width and start with the first column."""
    minimum = {name: _minimum(rows, name, names[0], width) for name in names}

    def needed(part: Sequence[str]) -> int:
        return sum(minimum[name] + 3 for name in part) + 1  # a space on each side, and a line

    parts = [names[:1]]
    for name in names[1:]:
        if needed([*parts[-1], name]) > width and len(parts[-1]) > 1:
            parts.append(names[:1])
        parts[-1].append(name)
    return parts


def _minimum(rows: Sequence[Mapping[str, Any]], name: str, first: str, table_width: int) -> int:
    """The width that a column needs in a table of this width. Only text may need less than it
    has."""
    width = _width(rows, name)
    max_name = min(MAX_NAME, table_width // 2)
    if not _is_text(rows, name):
        return width
    if name == first:
        return min(width, max_name)
    cells = [str(row[name]) for row in rows]
    word = max((len(word) for cell in [name, *cells] for word in cell.split()), default=0)
    max_word = min(MAX_WORD, table_width - max_name - 7)  # the lines and spaces of two columns
    return max(min(width, MAX_UNBROKEN), min(word, width, max_word))


def _print_table(
    console: Console,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    title: str | None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    is_list = tuple(names) == LIST_COLUMNS
    grid = Table(title=None if title is None else Text(_text(title)), show_header=not is_list)
    for name in names:
        is_text, width = _is_text(rows, name), _width(rows, name)
        header = _text(name)
        grid.add_column(
            Text(header if len(header) <= width else header.replace(" ", "\n")),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=width <= _minimum(rows, name, names[0], console.width),
        )
    for row in rows:
        grid.add_row(*(Text(_text(row[name])) for name in names))
    console.print(grid)


def _width(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    """The width of a column's widest cell, or of the longest word of its name if that is wider."""
    from rich.cells import cell_len

    cells = [*(_text(row[name]) for row in rows), *_text(name).split()]
    return max(map(cell_len, cells), default=0)


def _is_text(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Does a column hold text? Text may wrap, numbers may not."""
    values = [row[name] for row in rows if row[name] is not None]
    return not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    encoding = sys.stdout.encoding or "utf-8"
    text = "" if value is None else printable(str(value))
    return text.encode(encoding, "backslashreplace").decode(encoding)  # before it is measured
