"""What the rows share: how sides are timed, what a row gives, and on what machine."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurecache.versions import installed_versions

OURS = "ours"
AGAIN = "ours again"  # against ours: the noise of the machine
MEMOS = "FEATURECACHE_MEMOS"
# What may change a figure by itself; shown beside each row.
LIBRARIES = ("torch", "timm", "openvino", "imaug", "opencv-python-headless", "pillow",
             "simplejpeg", "h5py", "numpy", "scikit-learn")  # fmt: skip
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # a processor with one of them has products in bf16
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True)
class Setting:
    """How large a row is measured, and where it may write."""

    folder: Path  # empty, and removed afterwards
    small: bool = False
    repeats: int = 5
    data: Path | None = None  # Tiny ImageNet, or a part of it, in its own layout
    full: bool = False  # the paper's row on every image of `data`, not on five a class

    def size(self, long: int, small: int) -> int:
        return small if self.small else long

    def warm(self, sides: Mapping[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
        """The warm-ups of sides that start processes: none at the small size, where only what the
        sides give counts."""
        return {name: lambda: None for name in sides} if self.small else dict(sides)


@dataclass(frozen=True)
class Check:
    """Do the sides agree? `said` has the measured difference in it."""

    said: str
    ok: bool


@dataclass
class Case:
    """One comparison of a row. `seconds` has the repeats of each side, the first side is ours.

    `amount` things of the kind `unit` are done in those seconds; with none, seconds are shown.
    `figures` are numbers beside the ratios that a target can be about. `profile` says where the
    time of our side goes, as measured: a line each.
    """

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    amount: float = 0
    unit: str = "images/s"
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    profile: list[str] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        """How many times as long as ours each peer takes, by medians: `x PEER`."""
        ours, *peers = self.seconds
        fast = statistics.median(self.seconds[ours])
        return {f"x {peer}": statistics.median(self.seconds[peer]) / fast for peer in peers}

    def all_figures(self) -> dict[str, float]:
        return (self.ratios() if self.seconds else {}) | self.figures


def compare(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: Mapping[str, Callable[[], Any]] | None = None,
    chains: Sequence[Sequence[str]] = (),
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each repeat of each side, interleaved, and what each gave the last time.

    Every side is run once before, untimed; `warm` has shorter runs to do that with. The order of
    the sides is another in each repeat, so a slow moment of the machine may fall on any; `chains`
    are sides that stay together in their order, because one needs what the one before it made.
    With more than one repeat ours, with its chain, runs twice in each: the ratio of the two is the
    noise of the machine. `clock` may be time.process_time for what runs in one thread: other
    processes have no part in it.
    """
    for name, run in sides.items():
        (warm or {}).get(name, run)()
    sides, chains = dict(sides), list(chains)
    chains += [[name] for name in sides if not any(name in chain for chain in chains)]
    if OURS in sides and repeats > 1:
        first = next(chain for chain in chains if OURS in chain)
        sides |= {again(name): sides[name] for name in first}
        chains.append([again(name) for name in first])
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for order in orders(chains, repeats):
        for name in order:
            results.pop(name, None)  # the memory of two results is not needed at once
            start = clock()
            results[name] = sides[name]()
            seconds[name].append(clock() - start)
    results = {name: results[name] for name in sides}
    return seconds, results


def again(name: str) -> str:
    """The name of the second run of a side in the same repeat."""
    return f"{name} again"


def orders(chains: Sequence[Sequence[str]], repeats: int) -> list[list[str]]:
    """For each repeat the names in a random order, in which each chain stays together."""
    rng = random.Random(0)
    return [
        [name for chain in rng.sample(list(chains), len(chains)) for name in chain]
        for _ in range(repeats)
    ]


@contextlib.contextmanager
def own_memos(folder: Path) -> Iterator[None]:
    """Memos of a row alone (docs/concepts.md), so that it does not depend on what ran before it."""
    before = os.environ.get(MEMOS)
    os.environ[MEMOS] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[MEMOS]
        else:
            os.environ[MEMOS] = before


def timed(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    run()
    return clock() - start


def shares(parts: Mapping[str, float], total: float) -> list[str]:
    """Lines of a profile: the seconds of each part and its share of `total`, and what is left."""
    lines = [f"{name}: {s:.3g} s ({s / total:.0%})" for name, s in parts.items()]
    rest = total - sum(parts.values())
    return [f"of {total:.3g} s:", *lines, f"the rest: {rest:.3g} s ({rest / total:.0%})"]


def roof(precision: str = "f32", size: int = 2048) -> float:
    """GFLOP/s of a product of size x size matrices by torch on the CPU, the best of five."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.rand(2, size, size).to(dtype)
    return 2e-9 * size**3 / min(timed(lambda: a @ b) for _ in range(5))


def machine() -> str:
    """The processor, its cores and instructions that matter, what its matrix products reach,
    memory, and the GPU if there is one."""
    flags, model = _processor()
    found = [flag for flag in ISA if flag in flags]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    products = ["f32", *(["bf16"] if flags & BF16 else [])]
    parts = [
        f"{os.cpu_count()} x {model}",
        " ".join(found) or platform.machine(),
        "matrix products " + " and ".join(f"{roof(p):,.0f} GFLOP/s in {p}" for p in products),
        f"{pages / 2**30:.0f} GiB",
        platform.system(),
    ]
    import torch

    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> tuple[set[str], str]:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    parted = (line.partition(":") for line in lines)
    said = {name.strip(): value.strip() for name, _, value in parted}
    flags = said.get("flags") or said.get("Features") or ""
    return set(flags.split()), said.get("model name") or platform.processor() or "unknown CPU"


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | installed_versions(*LIBRARIES)


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
