"""Is there a CUDA device? Found out without importing torch where the answer is no."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path


def has_cuda() -> bool:
    """What `torch.cuda.is_available()` says. Importing torch takes more than a second, so it is
    asked only where there is a driver for it to find."""
    if "torch" not in sys.modules and not _has_driver():
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def _has_driver() -> bool:
    """Can the driver's library be loaded, as CUDA does first? True where that is not known: on
    other systems than Linux, and for a torch that was built for other devices."""
    if sys.platform != "linux" or _is_built_for_hip():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _is_built_for_hip() -> bool:
    """Was torch built for AMD's devices, which it also calls CUDA? True if that can't be told."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    path = Path(spec.origin).parent / "version.py"
    version = importlib.util.spec_from_file_location("torch_version", path)
    if version is None or version.loader is None or not path.is_file():
        return True
    module = importlib.util.module_from_spec(version)
    version.loader.exec_module(module)
    return getattr(module, "hip", True) is not None
