"""The row of memory: does train-network take more of it for more pictures?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Case, Check, Setting, again, orders
from featurecache.stages.cache.augment import augment

CONFIG = """\
network: {name: smallnet, input_size: 64, crop: 1.0}
optimizer: {name: adam, lr: 1.0e-4, weight_decay: 0.0}
batch_size: 64
views: {none: 0.5, color_1: 0.5}
epochs: 1
validation: {split: val}
"""
# Started by a small process: a child of this one would begin with its peak.
MEASURED = """\
import json, resource, subprocess, sys
subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL)
with open(sys.argv[1], "w") as file:
    json.dump(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file)
"""


def network_memory(setting: Setting) -> list[Case]:
    """An epoch of paper 004's SmallNet on N and on 10 N pictures of 64x64 pixels (N = 1,000), half
    of them in a view that `augment` has stored in shards of 256 rows, with one worker process:
    the peak of the largest process. 10 N pictures are 123 MB as numbers. If they were kept, it
    would show. With repeats, each is trained twice, in a random order; the second is "again"."""
    counts = [setting.size(1000, 40), setting.size(10_000, 80)]
    for count in counts:
        _write(setting.folder / str(count), count)
    names = [str(count) for count in counts]
    runs = names + ([again(name) for name in names] if setting.repeats > 1 else [])
    (order,) = orders([[name] for name in runs], 1)
    found = {name: _peak(setting.folder / name.split()[0]) for name in order}
    peaks = [found[name] for name in names]
    growth = (peaks[-1] - peaks[0]) / (counts[-1] - counts[0]) * 1e6
    said = ", ".join(f"{n:,} pictures: {mb:.0f} MB" for n, mb in zip(counts, peaks, strict=True))
    check = Check(f"{said}; {growth:,.0f} bytes per further picture of 12,288", growth < 6144)
    figures = {"peak memory, last / first": peaks[-1] / peaks[0], "peak memory, MB": peaks[-1]}
    if len(runs) > len(names):
        first, last = (found[again(name)] for name in names)
        figures[again("peak memory, last / first")] = last / first
    return [Case("smallnet, 64 px", checks=[] if setting.small else [check], figures=figures)]


def _write(folder: Path, count: int) -> None:
    """So many pictures, a view of them in a cache, and the configuration of a training."""
    rng = np.random.default_rng(0)
    for number in range(count):
        split = "val" if number % 10 == 9 else "train"
        target = folder / "data" / split / ("cat", "dog")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((64, 64)).save(target / f"{number:06}.jpg", quality=95)
    (folder / "net.yaml").write_text(CONFIG)
    augment(folder / "data", policy="color_1", cache=folder / "cache", shard_rows=256, workers=0)


def _peak(folder: Path) -> float:
    """MB of the largest process of a training."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    train = [sys.executable, "-m", "featurecache", "train-network", "--data", "data", "--cache",
             "cache", "--config", "net.yaml", "--workers", "1", "--device", "cpu",
             "--quiet"]  # fmt: skip
    measured = [sys.executable, "-c", MEASURED, "peak.json", *train]
    subprocess.run(measured, check=True, cwd=folder, env=environment)
    scale = 1 if sys.platform == "darwin" else 1024
    return float(json.loads((folder / "peak.json").read_text())) * scale / 1e6
