"""The row of growth: does featurizing more images take more time and memory for each?"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.datasets import encoded, write_files
from benchmarks.harness import Case, Check, Setting, again, orders

ROOT = Path(__file__).parents[1]


def growth(setting: Setting) -> list[Case]:
    """`featurize` of 1,000, 5,000 and 20,000 JPEG files in fresh processes, Lite0 at 64 px: a small
    input, so that what is done for each image beside the network would be seen. Slope: the seconds
    that each further image takes from the second size to the third, over those from the first to
    the second, by the medians of the repeats; each process has its imports done. Memory: the peak
    of the process, and of its largest worker. In each repeat every size is measured twice, in a
    random order: the slope of the second runs is given as "again"."""
    sizes = (1000, 5000, 20_000) if not setting.small else (12, 18, 24)
    data = {n: write_files(setting.folder / f"files-{n}", _numbered(setting, n)) for n in sizes}
    names = [str(n) for n in sizes]
    runs = names + ([again(name) for name in names] if setting.repeats > 1 else [])
    all_runs: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for order in orders([[name] for name in runs], setting.repeats):
        for name in order:
            files = data[int(name.split()[0])]
            all_runs[name].append(_fresh(files, setting.folder, setting.small))
    said = {n: all_runs[str(n)] for n in sizes}
    seconds = _medians(list(said.values()))
    peaks = [max(each["process"] for each in said[n]) for n in sizes]
    workers = [max(each["worker"] for each in said[n]) for n in sizes]
    slopes = _slopes(seconds, sizes)
    right = all(each["rows"] == n for n in sizes for each in said[n])
    shown = ", ".join(f"{n:,}" for n in sizes)
    figures = {
        "slope, later / earlier": slopes[1] / slopes[0],
        "peak memory, last / first": peaks[-1] / peaks[0],
        "peak memory, MB": peaks[-1],
        "peak memory of a worker, MB": workers[-1],
    }
    if len(runs) > len(names):
        second = _slopes(_medians([all_runs[again(name)] for name in names]), sizes)
        figures[again("slope, later / earlier")] = second[1] / second[0]
    spread = [
        f"{n:,} images: {t:.1f} s ({min(each['seconds'] for each in said[n]):.1f} to "
        f"{max(each['seconds'] for each in said[n]):.1f}), process {p:.0f} MB, worker {w:.0f} MB"
        for n, t, p, w in zip(sizes, seconds, peaks, workers, strict=True)
    ]
    per_image = [f"{1000 * slope:.3f} ms for each further image" for slope in slopes]
    check = Check(f"rows committed: {shown} each time: {right}", right)
    return [Case("fresh processes", checks=[check], figures=figures, profile=spread + per_image)]


def _medians(runs: Sequence[Sequence[dict[str, float]]]) -> list[float]:
    return [statistics.median(each["seconds"] for each in of_size) for of_size in runs]


def _slopes(seconds: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Seconds for each further image, from each size to the next."""
    pairs = zip(itertools.pairwise(seconds), itertools.pairwise(sizes), strict=True)
    return [(b - a) / (m - n) for (a, b), (n, m) in pairs]


def _numbered(setting: Setting, count: int) -> Iterator[bytes]:
    """`count` JPEG files of different bytes: each ends in its number, which decoders pass over."""
    for number, data in enumerate(encoded(setting, count)):
        yield data + number.to_bytes(4, "big")


def _fresh(data: Path, folder: Path, small: bool) -> dict[str, float]:
    """One `featurize` in a process of its own, into a new cache and with no memo of the items of
    its files: its seconds, peaks in MB, rows."""
    cache = folder / "cache"
    for path in (cache, folder / "memos"):
        shutil.rmtree(path, ignore_errors=True)
    workers = "0" if small else "default"
    words = [sys.executable, "-m", "benchmarks.growth", str(data), str(cache), workers]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    said: dict[str, float] = json.loads(done.stdout)
    return said


def main(data: str, cache: str, workers: str) -> None:
    """What the fresh process does."""
    import openvino  # noqa: F401  # imported before the clock starts, as are the others
    import timm  # noqa: F401

    from featurecache.stages.cache.featurize import featurize

    peaks = {"none": 0.0}
    threading.Thread(target=_watch_children, args=(peaks,), daemon=True).start()
    start = time.perf_counter()
    done = featurize(
        data, policy="none", backbone="efficientnet_lite0", cache=cache, input_size=64,
        workers=None if workers == "default" else int(workers),
    )  # fmt: skip
    spent = time.perf_counter() - start
    said = {"seconds": spent, "process": _peak("self"), "worker": max(list(peaks.values()))}
    print(json.dumps(said | {"rows": done.computed}))


def _watch_children(peaks: dict[str, float]) -> None:
    while True:
        for children in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                for pid in children.read_text().split():
                    peaks[pid] = max(_peak(pid), peaks.get(pid, 0.0))
        time.sleep(0.1)


def _peak(pid: str) -> float:
    """The most memory that a process has had so far, in MB; 0 if it has ended."""
    status = Path(f"/proc/{pid}/status")
    try:
        lines = status.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
