"""The row of commands that have little or nothing to compute."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets import encoded
from benchmarks.harness import AGAIN, OURS, Case, Check, Setting, again, orders, own_memos
from benchmarks.pipeline import LITE0, ROOT
from featurecache.storage.file_marks import QUIET_SECONDS

SCHEDULE = """\
backbone: efficientnet_lite0
head: {hidden: [256], norm: batch}
optimizer: {name: adamw, lr: 1.0e-3}
validation: {fraction: 0.2}
phases: [{views: none, epochs: 2}]
"""
LOOP = "timm loop"


# Runs a command and writes what it used into a file. Its own process is small: a command that this
# one started would inherit the peak of this one's memory.
_MEASURE = """\
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss], file)
sys.exit(code)
"""


class Used(NamedTuple):
    """What a process took, its children included."""

    cpu: float  # seconds
    memory: float  # MB, of its largest process
    output: str


def small_things(setting: Setting) -> list[Case]:
    """Whole processes, with the imports: `featurize` of 1,500 JPEG files that are all in the cache,
    `plan` and `why` of them, and `predict` of two files, in CPU seconds and memory. Each command
    was run once before, as memos are made then (docs/concepts.md, "What this machine remembers").
    And `featurize` of 600 files into a new cache, against the same images through timm
    (benchmarks/timm_loop.py), in CPU seconds too: on quiet cores both keep all of them busy."""
    files = encoded(setting, setting.size(1500, 12))
    data = _write(setting.folder / "files", files)
    cache, run = setting.folder / "cache", setting.folder / "run"
    size = ["--input-size", "32"] if setting.small else []
    asked = ["--backbone", LITE0, *size, "--view", "none", "--data", str(data)]
    held = [*asked, "--cache", str(cache)]
    schedule = setting.folder / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    with own_memos(setting.folder / "memos"):
        time.sleep(QUIET_SECONDS + 1)  # for a package that was installed just now
        _run("featurize", *held, "--quiet")
        _run("train-head", "--schedule", str(schedule), "--data", str(data), "--cache", str(cache),
             "--out", str(run), "--quiet")  # fmt: skip
        two = [str(path) for path in sorted(data.rglob("*.jpg"))[:2]]
        commands = {
            "featurize, all hits": ["featurize", *held],
            "why": ["why", *held],
            "plan": ["plan", *held],
            "predict of two images": ["predict", str(run), *two],
        }
        return [*_commands(commands, setting.repeats), _new_cache(setting, asked, files)]


def _write(folder: Path, files: list[bytes]) -> Path:
    """A dataset of two classes, since a head needs two, with these JPEG files."""
    for number, data in enumerate(files):
        path = folder / "train" / "ab"[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _commands(commands: dict[str, list[str]], repeats: int) -> list[Case]:
    """Each command once, and then all of them twice in each repeat, in a random order."""
    first = {name: _run(*words) for name, words in commands.items()}
    runs = commands | ({again(n): w for n, w in commands.items()} if repeats > 1 else {})
    used: dict[str, list[Used]] = {name: [] for name in runs}
    for order in orders([[name] for name in runs], repeats):
        for name in order:
            used[name].append(_run(*runs[name]))
    cases = []
    for name, output in first.items():
        figures = {
            "CPU seconds": statistics.median(each.cpu for each in used[name]),
            "peak memory, MB": statistics.median(each.memory for each in used[name]),
        }
        if again(name) in used:
            seconds = statistics.median(each.cpu for each in used[again(name)])
            figures[again("CPU seconds")] = seconds
        same = all(_plain(each.output) == _plain(output.output) for each in used[name])
        check = Check(f"each run prints the same: {same}", same)
        cases.append(Case(name, checks=[check], figures=figures))
    return cases


def _plain(output: str) -> list[str]:
    """The lines of an output but for the last, which has the time."""
    return output.splitlines()[:-1]


def _new_cache(setting: Setting, asked: list[str], files: list[bytes]) -> Case:
    count = setting.size(600, 6)
    folder = setting.folder
    data = _write(folder / "new files", files[:count])
    words = [*asked[:-1], str(data), "--cache", str(folder / "new"), "--quiet"]

    size = "32" if setting.small else "224"
    loop = ["benchmarks.timm_loop", str(data), size, str(folder / "vectors.npy")]
    names = [OURS, LOOP, *([AGAIN] if setting.repeats > 1 else [])]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for order in orders([[name] for name in names], setting.repeats):
        for name in order:
            shutil.rmtree(folder / "new", ignore_errors=True)
            used = _process(*loop) if name == LOOP else _run("featurize", *words)
            seconds[name].append(used.cpu)
    return Case(f"featurize of {count} images", seconds, count)


def _run(*words: str) -> Used:
    """A command in a process of its own."""
    return _process("featurecache", *words)


def _process(*words: str) -> Used:
    """A module in a process of its own."""
    # Threads that wait for each other must not be counted as work, on a machine with other work.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        usage = Path(folder, "usage.json")
        command = [sys.executable, "-c", _MEASURE, str(usage), sys.executable, "-m", *words]
        process = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment
        )
        cpu, memory = json.loads(usage.read_text())
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return Used(cpu, memory * scale / 1e6, process.stdout)
