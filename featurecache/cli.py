"""The command line: its commands, and what a signal or an error does to them.

Stages are imported when a command calls one, so that `--help`, `inspect` and `ls` cost no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from typing import Any

import click

from featurecache import __version__
from featurecache.commands import cache, heads, looking, recipes, study, terminal
from featurecache.errors import FeatureCacheError, FeatureCacheWarning, is_out_of_memory
from featurecache.storage import object_store
from featurecache.text import one_line


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="featurecache")
def cli() -> None:
    """Augment once, run the frozen network once, keep the vector; train heads in seconds."""
    object_store.working_folder()  # before each command, but for --help


for command in (
    cache.augment,
    cache.featurize,
    cache.plan,
    cache.why,
    cache.list_spaces,
    cache.verify,
    cache.retry,
    cache.diff,
    cache.gc,
    cache.export,
    heads.train_head,
    heads.worth,
    heads.evaluate,
    heads.ensemble,
    heads.baselines,
    heads.submit,
    heads.predict,
    recipes.run,
    recipes.quickstart,
    looking.inspect,
    cache.index,
    looking.policies,
    looking.backbones,
    looking.doctor,
    looking.report,
    study.study,
):
    cli.add_command(command)


_LEAVING = 8  # seconds that a stopped command has to tidy up


def _stop(number: int, _frame: object) -> None:
    """The first signal unwinds the command; a second one, or too long a wait, ends it on the spot.

    That is safe at any moment (law 4). Workers are killed: one that was just being started never
    hears that it is to end, and would be waited for without end.
    """
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, lambda again, _: _leave(128 + again))
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: _leave(128 + number))
        signal.alarm(_LEAVING)
    for worker in multiprocessing.active_children():
        worker.kill()

    def swallowed(found: Any) -> None:
        # Python prints and forgets what is raised in a finaliser or the callback of a weak
        # reference, and an import has those: the command would go on.
        if isinstance(found.exc_value, KeyboardInterrupt | SystemExit):
            _leave(128 + number)
        sys.__unraisablehook__(found)

    sys.unraisablehook = swallowed
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _leave(code: int) -> None:
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(code)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
) -> None:
    if issubclass(category, FeatureCacheWarning):
        click.echo(terminal.printable(f"note: {message}"), err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def main() -> None:
    """The entry point: errors that explain themselves get one line and their exit code."""
    debug = "--debug" in sys.argv
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    terminal.prepare_streams()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    sys.exit(_printed(_exit_code(debug)))


def _exit_code(debug: bool) -> int:
    """Run the command, and give its exit code."""
    try:
        return cli.main(standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what was committed stays, and the same command goes on", err=True)
        return 130
    except FeatureCacheError as error:
        if debug:
            raise
        click.echo(terminal.printable(f"featurecache: {error}"), err=True)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for a CPU's memory
        if debug or not is_out_of_memory(error):
            raise
        said = (
            f"featurecache: out of memory ({one_line(error)}); what was committed stays: run again "
            "with less at once (workers, batch, width of the head), or on a larger machine"
        )
        click.echo(terminal.printable(said), err=True)
        return 1
    except OSError as error:  # a full disk, a folder without permission
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        said = f"featurecache: {where}{error.strerror or error}"
        click.echo(terminal.printable(said), err=True)
        return 1


def _printed(code: int) -> int:
    """The exit code of a command whose own is `code`: 1 where its output could not be written. Of a
    reader that has seen enough (`| head`) nothing is said."""
    error = terminal.lost_output()
    if error is None:
        return code
    if not isinstance(error, BrokenPipeError):
        said = f"featurecache: the output can't be written ({error.strerror or error})"
        click.echo(terminal.printable(said), err=True)
    return code or 1
