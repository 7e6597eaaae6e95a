"""The entry point of the program: `python -m featurecache` is the command `featurecache`."""

import atexit
import gc
import os
import signal

from featurecache.errors import INTERRUPTED
from featurecache.interpreter import GARBAGE_THRESHOLD, end_process


def _leave(number: int, _frame: object) -> None:
    """End the process at once: nothing has begun."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(128 + number)


def main() -> None:
    """Run the program. Ctrl-C is handled before `cli` is imported, which takes a moment, and
    seconds on a busy machine."""
    signal.signal(signal.SIGINT, _leave)
    gc.set_threshold(GARBAGE_THRESHOLD)
    code = 1  # of an error that nothing handles
    # The first function to be registered runs last. Those that were registered before the program
    # began, as by a tool that measures it, do not run.
    atexit.register(lambda: end_process(code))
    from featurecache import cli

    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        code = 130
        raise


if __name__ == "__main__":
    main()
