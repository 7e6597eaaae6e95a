"""Signals during native code that calls back into Python."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def delay_signals() -> Iterator[None]:
    """Handle SIGINT and SIGTERM at the end of the block. A second signal ends the process at once,
    which is safe at any moment (law 4, "Committed or absent").

    Handlers raise exceptions. If C++ has called the Python code that runs at this moment, and
    expects no exception, the process aborts and dumps its memory.
    """
    if threading.current_thread() is not threading.main_thread():  # others handle no signals
        yield
        return
    pending: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if pending:
            os._exit(128 + number)
        pending.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if pending:
            signal.raise_signal(pending[0])
