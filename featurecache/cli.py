"""The command line: its commands, and how it handles signals and errors.

A command imports its stage when it is called, so `--help`, `inspect` and `ls` do not import torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import warnings
from typing import Any

import click

from featurecache import __version__
from featurecache.commands import (
    cache,
    generators,
    heads,
    looking,
    networks,
    recipes,
    study,
    terminal,
)
from featurecache.commands.spinner import spinner
from featurecache.errors import (
    INTERRUPTED,
    FeatureCacheError,
    FeatureCacheWarning,
    is_out_of_memory,
)
from featurecache.settings import unknown_variables
from featurecache.storage.local import working_folder
from featurecache.text import one_line, reason_of

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Look": (
        looking.inspect,
        looking.policies,
        looking.backbones,
        looking.list_runs,
        looking.doctor,
    ),
    "Cache": (
        cache.plan,
        cache.augment,
        cache.featurize,
        cache.list_spaces,
        cache.why,
        cache.export,
        cache.index,
        cache.verify,
        cache.retry,
        cache.diff,
        cache.gc,
    ),
    "Train and predict": (
        heads.train_head,
        networks.train_network,
        generators.fit_generator,
        generators.generate,
        heads.predict,
        heads.submit,
    ),
    "Measure": (
        heads.evaluate,
        heads.ensemble,
        heads.baselines,
        heads.worth,
        heads.search,
        looking.report,
    ),
    "Study": (study.study,),
    "Recipes": (recipes.quickstart, recipes.run),
}


MAX_SENTENCE = 100  # characters of a command's line in the list; a narrow terminal wraps it


class _Program(click.Group):
    """The commands, listed by what one does with them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(str(name)) for name in self.commands)
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(f"{c.name:{width}}", c.get_short_help_str(MAX_SENTENCE)) for c in commands]
                formatter.write_dl(rows)


@click.group(
    cls=_Program,
    commands=[command for commands in SECTIONS.values() for command in commands],
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
    epilog="Set --data, --cache, --runs and --backbone once, in a featurecache.toml or in "
    "FEATURECACHE_DATA, _CACHE, _RUNS and _BACKBONE.",
)
@click.version_option(__version__, prog_name="featurecache")
def cli() -> None:
    """Augment once, run the frozen network once, keep the vector; train heads in seconds."""
    working_folder()  # before each command, except for --help
    for line in unknown_variables():
        warnings.warn(line, FeatureCacheWarning, stacklevel=2)


_MAX_CLEANUP = 8  # seconds that an interrupted command has to clean up


def _stop(number: int, _frame: object) -> None:
    """The first signal unwinds the command; a second signal, or a slow cleanup, ends it at once.

    Both are safe at any moment (law 4, "Committed or absent"). Workers are killed: a worker that is
    just starting would miss a request to stop, and the wait for it would never end.
    """
    for second in (signal.SIGTERM, signal.SIGINT):
        signal.signal(second, lambda second, _: _leave(second))
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: _leave(number))
        signal.alarm(_MAX_CLEANUP)
    for worker in multiprocessing.active_children():
        worker.kill()

    def handle_unraisable(unraisable: Any) -> None:
        # Python prints and drops exceptions raised in finalisers and weak reference callbacks,
        # which imports use: the command would continue after the signal.
        if isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
            _leave(number)
        sys.__unraisablehook__(unraisable)

    sys.unraisablehook = handle_unraisable
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _leave(number: int) -> None:
    """End the process at once, because of the signal `number`."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        if sys.stderr.isatty():
            os.write(2, b"\r\x1b[K\x1b[?25h")  # a spinner, or a progress bar that hides the cursor
        if number == signal.SIGINT:
            os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(128 + number)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
) -> None:
    if issubclass(category, FeatureCacheWarning):
        click.echo(terminal.printable(f"note: {message}"), err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def main() -> None:
    """The entry point: expected errors are printed on one line and set the exit code."""
    debug = "--debug" in sys.argv
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    terminal.prepare_streams()
    if "--quiet" not in sys.argv:
        terminal.start_spinner()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        code = _flush_output(_exit_code(debug))
    finally:
        spinner.before_output(is_result=True)
    sys.exit(code)


def _exit_code(debug: bool) -> int:
    """Run the command and return its exit code."""
    try:
        return cli.main(standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(INTERRUPTED, err=True)
        return 130
    except FeatureCacheError as error:
        if debug:
            raise
        click.echo(terminal.printable(f"featurecache: {error}"), err=True)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:  # torch has no error class for CPU memory
        if debug or not is_out_of_memory(error):
            raise
        message = (
            f"featurecache: out of memory ({one_line(error)}); committed work is kept. Rerun with "
            "fewer workers, a smaller batch or a narrower head, or on a larger machine"
        )
        click.echo(terminal.printable(message), err=True)
        return 1
    except OSError as error:  # a full disk, a folder without permission
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        message = f"featurecache: {where}{reason_of(error)}"
        click.echo(terminal.printable(message), err=True)
        return 1


def _flush_output(code: int) -> int:
    """`code`, or 1 if the command succeeded but its output could not be written. A reader that
    closed the pipe early (`| head`) causes no message."""
    error = terminal.lost_output()
    if error is None:
        return code
    if not isinstance(error, BrokenPipeError):
        message = f"featurecache: can't write the output ({reason_of(error)})"
        click.echo(terminal.printable(message), err=True)
    return code or 1
