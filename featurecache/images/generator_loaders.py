"""Loading generators: generated_pictures.py installs the function, which images/ does not know.

Every command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

# From the folder and the digest of a generator: makes of a picture (H, W, 3) uint8, with a random
# generator of numpy, and the item of the image, a picture (H, W, 3) of floats.
Load = Callable[[Path, str], Callable[..., Any]]

_installed: list[Load] = []


def install(load: Load) -> None:
    """Set the function that loads generators."""
    _installed[:] = [load]


def installed() -> Load:
    """The function that was set last. Raises IndexError if none was."""
    return _installed[0]
