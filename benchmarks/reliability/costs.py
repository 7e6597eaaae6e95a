"""What trust costs: the share of committing in featurizing, and the speed of verify."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import KEY, Tally, made_shard, write_images
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.stages.cache.featurize import SHARD_ROWS, featurize
from featurecache.stages.cache.verify import verify

MOST_OVERHEAD = 0.02  # of featurize's time
LEAST_SPEED = 0.8  # of sha256sum over the same files


def commit_overhead(size: int, folder: Path) -> Tally:
    """The share of Space.commit in featurizing `size` pictures of 12x12 with EfficientNet-Lite0 at
    224, in shards of the default size, without the time that the network takes to open.

    Larger pictures and networks make the share smaller. Naive: it does not commit.
    """
    data = write_images(folder / "data", size)
    spent, began = 0.0, 0.0

    def timed(commit: Callable[..., bool]) -> Callable[..., bool]:
        def call(*args: Any) -> bool:
            nonlocal spent
            start = time.perf_counter()
            done = commit(*args)
            spent += time.perf_counter() - start
            return done

        return call

    def progress(done: int, total: int, what: str) -> None:
        nonlocal began
        if began == 0.0 and what.startswith("featurize"):
            began = time.perf_counter()  # when the first micro-batch is done

    commit = Space.commit
    try:
        Space.commit = timed(commit)  # type: ignore[method-assign]
        featurize(
            data, policy="none", backbone="efficientnet_lite0", cache=folder / "cache", workers=1,
            progress=progress,
        )  # fmt: skip
    finally:
        Space.commit = commit  # type: ignore[method-assign]
    took = time.perf_counter() - began
    shards = -(-size // SHARD_ROWS)
    share = spent / took
    return Tally(
        1,
        int(share > MOST_OVERHEAD),
        f"{share:.1%} of {took:.1f} s: {1000 * spent / shards:.0f} ms a shard of {SHARD_ROWS} rows",
    )


def verify_speed(size: int, folder: Path) -> Tally:
    """`verify` of `size` shards of 512 x 1280, against sha256sum of the same files (best of three,
    one after the other, from the page cache). Naive: it has nothing to verify."""
    cache = Cache(folder / "cache")
    cache.create()
    space = cache.space(KEY, "none", "made")
    for number in range(size):
        items, features = made_shard(number, 512, 1280)
        space.commit(items, {"features": features}, {}, {}, 0.0)
    files = sorted(str(path) for path in Path(str(space.file("").parent)).iterdir())
    total = sum(Path(path).stat().st_size for path in files)
    times: dict[str, list[float]] = {"verify": [], "sha256sum": [], "hashlib": []}
    for _ in range(3):
        start = time.perf_counter()
        assert verify(cache.root).bad == []
        times["verify"].append(time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        times["sha256sum"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for path in files:
            hashlib.sha256(Path(path).read_bytes()).digest()
        times["hashlib"].append(time.perf_counter() - start)
    speed = {name: total / 1e6 / min(seconds) for name, seconds in times.items()}
    ratio = speed["verify"] / speed["sha256sum"]
    return Tally(
        1,
        int(ratio < LEAST_SPEED),
        f"{speed['verify']:.0f} MB/s, {ratio:.0%} of sha256sum ({speed['sha256sum']:.0f} MB/s); "
        f"hashing alone, with the CPU's SHA instructions, does {speed['hashlib']:.0f} MB/s",
    )
