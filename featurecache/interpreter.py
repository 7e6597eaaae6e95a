"""Python's interpreter in our own processes: how often it collects garbage, and how it ends."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

# New objects between two collections of garbage. With the 700 of Python 3.11, collections are a
# fifth of the time that torch takes to import.
GARBAGE_THRESHOLD = 10_000


def end_process(code: int) -> NoReturn:
    """End the process without freeing its objects. After an import of torch, Python would take
    about as long for that as for a third of the import."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # cli.main has reported lost output
            stream.flush()
    os._exit(code)
