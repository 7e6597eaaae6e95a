"""Where the network of a backbone comes from: it may be in memory, or loaded when it is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NetworkSource:
    """`load` gives the network, in evaluation mode. `basis` is a digest of all that the network is
    derived from (backbone_memos.py), None if that can't be told."""

    load: Callable[[], torch.nn.Module]
    basis: str | None = None
    # Loads it in a worker process. None: the process is sent the network, whose classes it has.
    load_elsewhere: Callable[[], torch.nn.Module] | None = None


def module_source(module: torch.nn.Module, basis: str | None = None) -> NetworkSource:
    """The source of a network that is in memory."""
    return NetworkSource(functools.partial(_unchanged, module), basis)


def _unchanged(module: torch.nn.Module) -> torch.nn.Module:
    return module
