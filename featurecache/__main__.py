"""The entry point of the program: `python -m featurecache` is the command `featurecache`."""

import atexit
import contextlib
import gc
import os
import signal
import sys
from typing import Any

from featurecache.errors import INTERRUPTED
from featurecache.machine import GARBAGE_THRESHOLD


def _leave(number: int, _frame: object) -> None:
    """End the process at once: nothing has begun."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(128 + number)


def _end(code: Any) -> None:
    """End the process without freeing its objects. After an import of torch, Python would take
    about as long for that as for a third of the import.

    This must be the last function of atexit. Those that were registered before this program began,
    as by a tool that measures it, do not run.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Run the program. Ctrl-C is handled before `cli` is imported, which takes a moment, and
    seconds on a busy machine."""
    signal.signal(signal.SIGINT, _leave)
    gc.set_threshold(GARBAGE_THRESHOLD)
    code: Any = 1  # of an error that nothing handles
    atexit.register(lambda: _end(code))  # the first function to be registered runs last
    from featurecache import cli

    try:
        cli.main()
    except SystemExit as end:
        code = end.code
        raise


if __name__ == "__main__":
    main()
