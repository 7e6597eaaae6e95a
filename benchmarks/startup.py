"""The row of the command line's start-up."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness import OURS, Case, Check, Setting, compare
from benchmarks.reading import DIM, KEY
from featurecache.features.store import Cache

ROOT = Path(__file__).parents[1]
PASS = "python -c pass"
HEAVY = ("torch", "timm", "imgaug", "cv2", "h5py", "sklearn")


def startup(setting: Setting) -> list[Case]:
    """`featurecache --help` and `featurecache ls` (a cache of 20 shards) as whole processes,
    against `python -c pass`. Neither may import torch."""
    cache = Cache(setting.folder / "cache")
    cache.create()
    space = cache.space(KEY, "none", "made")
    rng = np.random.default_rng(0)
    for _ in range(setting.size(20, 1)):
        features = rng.standard_normal((64, DIM), np.float32)
        space.commit([rng.bytes(32) for _ in range(64)], {"features": features}, {}, {}, 0.0)
    cases = []
    for name, words in (("--help", ["--help"]), ("ls", ["ls", "--cache", str(cache.root)])):
        command = [sys.executable, "-m", "featurecache", *words]
        sides = {
            OURS: lambda command=command: _run(command),
            PASS: lambda: _run([sys.executable, "-c", "pass"]),
        }
        seconds, _ = compare(sides, setting.repeats, warm=setting.warm(sides))
        more = statistics.median(seconds[OURS]) - statistics.median(seconds[PASS])
        log = _run([sys.executable, "-X", "importtime", *command[1:]])
        imported = {m.split(".")[0] for m in re.findall(r"\| +([\w.]+)$", log, re.MULTILINE)}
        found = sorted(imported & set(HEAVY))
        check = Check(f"imports {', '.join(found) or 'none'} of {', '.join(HEAVY)}", not found)
        figures = {f"seconds more than {PASS}": more}
        cases.append(Case(name, seconds, checks=[check], figures=figures, profile=_slowest(log)))
    return cases


def _run(words: list[str]) -> str:
    """What a process says on stderr."""
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stderr


def _slowest(log: str, most: int = 6) -> list[str]:
    """The packages whose imports cost the most themselves, from python -X importtime."""
    spent: dict[str, int] = {}
    for own, name in re.findall(r"import time: +(\d+) \| +\d+ \| +([\w.]+)$", log, re.MULTILINE):
        package = name.split(".")[0]
        spent[package] = spent.get(package, 0) + int(own)
    top = sorted(spent.items(), key=lambda pair: -pair[1])[:most]
    return ["imports, ms: " + ", ".join(f"{name} {own / 1000:.0f}" for name, own in top)]
