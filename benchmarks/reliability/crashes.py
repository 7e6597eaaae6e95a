"""Processes killed at random moments and disks that get full: what was committed stays, what was
not is absent, and the same command goes on to the bytes of an undisturbed run.

The small disks need root (mount).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.reliability.harness import (
    Process,
    Tally,
    Writer,
    run,
    small_disk,
)
from benchmarks.reliability.jobs import (
    Rows,
    jobs_of,
    must,
    once,
    resumed,
    spread,
    unclear,
    visible_damage,
)


def kills(writer: Writer, size: int, folder: Path) -> Tally:
    """kill -9 at random moments and, every other time, as a new file appears; then resume."""
    rng = np.random.default_rng(1)
    jobs = jobs_of(writer, folder)
    turns = [*jobs[:3] * 3, *jobs[3:]]  # worker processes take seconds to start
    expected = {job.name: once(writer, job, folder) for job in jobs}
    bad: list[str] = []
    count = within = 0
    for trial in range(size):
        job = turns[trial // 2 % len(turns)]
        undisturbed, seconds = expected[job.name]
        target = folder / f"trial {trial}"
        wrong: list[str] = []
        kept: Rows = {}
        for _ in range(3 if trial % 2 else int(rng.integers(1, 4))):
            new_files = int(rng.integers(1, 5)) if trial % 2 else None
            moment = float(rng.uniform(0, seconds))
            code = _killed(writer, job.arguments(target), folder / "said", new_files, moment,
                           target)  # fmt: skip
            count += 1
            within += code == -signal.SIGKILL
            if code not in (-signal.SIGKILL, 0):
                wrong.append(f"exit code {code} before the kill")
            damage, rows = visible_damage(job, target, undisturbed[0])
            wrong += damage
            if job.name != "train-head" and not kept.items() <= rows.items():
                wrong.append("rows of an earlier run are gone")
            kept = rows
        wrong += resumed(writer, job, target, folder / "said", undisturbed)
        if wrong:
            bad.append(f"trial {trial} ({job.name}): {'; '.join(wrong)}")
        shutil.rmtree(target, ignore_errors=True)
    said = (
        f"{count} kills in {size} runs of {', '.join(expected)} ({within} while it ran): "
        f"{len(bad)} runs with rows lost, doubled or changed, or other hashes or metrics"
    )
    return Tally(size, len(bad), said, tuple(bad[:5]))


def _killed(
    writer: Writer,
    arguments: Sequence[object],
    output: Path,
    new_files: int | None,
    moment: float,
    watched: Path,
) -> int | None:
    """Kill a command when that many files have appeared in `watched`, else at that moment."""
    process = Process(writer, arguments, output)
    if new_files is None:
        process.wait(moment)
    else:
        # Files are written in less than a millisecond: look as often as can be.
        known, seen = _files(watched), set()
        deadline = time.monotonic() + 60
        while process.wait(0) is None and time.monotonic() < deadline:
            for _ in range(200):
                seen |= _files(watched) - known
                if len(seen) >= new_files:
                    process.signal(signal.SIGKILL)
                    return process.wait()
    process.signal(signal.SIGKILL)
    return process.wait()


def _files(folder: str | Path) -> set[str]:
    """Every file below a folder, as fast as Python can (Path and os.walk take thrice as long)."""
    found = set()
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found |= _files(entry.path)
            else:
                found.add(entry.path)
    return found


def full_disk(writer: Writer, size: int, folder: Path) -> Tally:
    """The disk gets full at `size` places of a cache and (ours) of a run folder; then has room."""
    bad: list[str] = []
    tried = 0
    jobs = [job for job in jobs_of(writer, folder) if job.name in ("featurize", "train-head")]
    for job in jobs:
        with small_disk(folder / "disk", "64m") as disk:
            must(writer, job.arguments(disk / "out"), folder / "said")
            undisturbed = job.rows(disk / "out"), job.whole(disk / "out")
            room = os.statvfs(disk)
            used = room.f_blocks - room.f_bfree
        for pages in spread(range(1, used), size):
            tried += 1
            with small_disk(folder / "disk", f"{pages * room.f_frsize // 1024}k") as disk:
                code, text = run(writer, job.arguments(disk / "out"), folder / "said")
                wrong = unclear(code, text, (1, 2), "No space left", str(disk))
                wrong += visible_damage(job, disk / "out", undisturbed[0])[0]
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                wrong += resumed(writer, job, disk / "out", folder / "said", undisturbed)
            if wrong:
                bad.append(f"{job.name}, {pages} of {used} pages: {'; '.join(wrong)}")
    said = (
        f"full at {tried} places of {' and '.join(job.name for job in jobs)}: {len(bad)} with an "
        "unclear error, a crash, or other bytes after resuming"
    )
    return Tally(tried, len(bad), said, tuple(bad[:5]))
