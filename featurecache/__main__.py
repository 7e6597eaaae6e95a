"""The entry point of the program: `python -m featurecache` is the command `featurecache`."""

import os
import signal

from featurecache.errors import INTERRUPTED


def _leave(number: int, _frame: object) -> None:
    """End the process at once: nothing has begun."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(128 + number)


def main() -> None:
    """Run the program. Ctrl-C is handled before `cli` is imported, which takes a moment, and
    seconds on a busy machine."""
    signal.signal(signal.SIGINT, _leave)
    from featurecache import cli

    cli.main()


if __name__ == "__main__":
    main()
