"""The device of a training, and its threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from featurecache.training.settings import check_device

# Products per step up to which two threads are no faster than one (measured on two cores); on a
# busy machine, where they wait for each other, they were 20 times as slow.
_FEW_PRODUCTS = 1 << 24


def device_of(name: str) -> torch.device:
    """The device for auto, cpu or cuda on this machine. Raises BadInput."""
    check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def threads_for(products: int) -> AbstractContextManager[None]:
    """One thread of torch for steps of so few products."""
    return one_thread() if products <= _FEW_PRODUCTS else contextlib.nullcontext()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
