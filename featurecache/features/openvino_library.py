"""OpenVINO itself: how it is imported, and its Core."""

from __future__ import annotations

import functools
import sys
from typing import Any


def openvino() -> Any:
    """The library, which would report its import and each conversion to its maker.

    `openvino_telemetry` sends such reports unless a file in the user's home forbids it, and this
    package sends nothing that nobody asked for (law 7, "Silence is an error"). OpenVINO works
    without that module. A process that imported OpenVINO before keeps what it has.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it fails
    import openvino

    return openvino


@functools.cache
def core() -> Any:
    """OpenVINO's Core, created once per process and never closed.

    Each Core sets a signal stack for its thread, and restores the previous one when it is closed.
    If two Cores are closed in the order of their creation, the second restores the freed stack of
    the first, and the next signal that Python handles (a worker exits, Ctrl-C) kills the process.
    """
    return openvino().Core()
