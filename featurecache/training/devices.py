"""The device of a training."""

from __future__ import annotations

import torch

from featurecache.errors import BadInput


def device_of(name: str) -> torch.device:
    """The device for auto, cpu or cuda on this machine. Raises BadInput."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"unknown device {name!r}; there are: auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("device cuda: torch finds no CUDA device; use cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())
