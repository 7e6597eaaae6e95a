"""The device of a training, its threads, and torch's random generator."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch

from featurecache.errors import FeatureCacheWarning
from featurecache.training.settings import check_device

# Products per step up to which two threads are no faster than one (measured on two cores); on a
# busy machine, where they wait for each other, they were 20 times as slow.
_FEW_PRODUCTS = 1 << 24
SLOW_BF16 = (
    "this processor has no instructions for bf16: torch computes in it more than ten times slower "
    "than in f32"
)


def device_of(name: str) -> torch.device:
    """The device for auto, cpu or cuda on this machine. Raises BadInput."""
    check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def warn_of_slow_bf16(precision: str | None, device: str) -> None:
    """Warn where `precision` is bf16 and the CPU has no instructions for it, which torch then
    replaces by many others: on a CPU with AVX2, 12 times the time of f32 for a network and 90
    times for a matrix product (measured)."""
    is_slow = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if precision == "bf16" and device == "cpu" and is_slow:
        warnings.warn(SLOW_BF16, FeatureCacheWarning, stacklevel=3)


def threads_for(products: int) -> AbstractContextManager[None]:
    """One thread of torch for steps of so few products."""
    return one_thread() if products <= _FEW_PRODUCTS else contextlib.nullcontext()


@contextlib.contextmanager
def torch_seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch's global CPU generator from `rng`, and restore it afterwards.

    Weight initialisation uses no other generator. torch.manual_seed would also seed every CUDA
    device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
