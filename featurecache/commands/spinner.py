"""A spinner on a terminal while nothing else is shown there: during imports, while weights are
loaded, and while an engine opens."""

from __future__ import annotations

import os
import threading
import time

DELAY = 0.3  # seconds without output before it appears
INTERVAL = 0.1  # seconds between two frames
FRAMES = "|/-\\"
ERASE = b"\r\x1b[K"


class Spinner:
    """`| working, 3 s` on standard error, whenever nothing was written for DELAY seconds.

    `before_output` takes it away before anything else is written. While `is_paused`, a bar is
    drawn. It writes to the descriptor: the streams call it.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self._lock = threading.RLock()  # a finaliser may write in the middle of a write
        self._has_ended = threading.Event()
        self._is_visible = False
        self._started = self._last_output = time.monotonic()

    def start(self) -> None:
        self._started = self._last_output = time.monotonic()
        threading.Thread(target=self._run, name="spinner", daemon=True).start()

    def before_output(self, is_result: bool = False) -> None:
        """Erase it; after the first part of a result it does not return, since a pager may own the
        terminal then."""
        if is_result:
            self._has_ended.set()
        with self._lock:
            self._last_output = time.monotonic()
            if self._is_visible:
                self._is_visible = False
                os.write(2, ERASE)

    def _run(self) -> None:
        number = 0
        while not self._has_ended.wait(INTERVAL):
            with self._lock:
                now = time.monotonic()
                if self.is_paused or now - self._last_output < DELAY or self._has_ended.is_set():
                    continue
                number += 1
                frame = FRAMES[number % len(FRAMES)]
                text = f"{frame} working, {now - self._started:.0f} s"
                self._is_visible = True
                try:
                    os.write(2, ERASE + text.encode())
                except OSError:  # the terminal was closed; what is printed next reports it
                    return


spinner = Spinner()
