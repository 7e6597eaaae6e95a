"""Around a cache: signals, a clock that was wrong, a disk that can't be written, files of the dead.

These ask for what the naive writer never had.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.reliability.harness import (
    Ours,
    Process,
    Tally,
    run,
    small_disk,
    write_images,
)
from benchmarks.reliability.jobs import (
    SHARD_ROWS,
    cache_hashes,
    cache_rows,
    jobs_of,
    must,
    once,
    resumed,
    unclear,
    visible_damage,
    wait_for,
)
from featurecache import keys
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify


def signals(size: int, folder: Path) -> Tally:
    """SIGTERM and SIGINT, sometimes twice, at random moments of every command that works long.

    Not for the naive writer: it has no handler, so that every signal is a kill. The rows that a
    command had done are those of its last progress line; it shows one for every batch here.
    """
    writer, rng = Ours(), np.random.default_rng(2)
    jobs = jobs_of(writer, folder)
    turns = [*jobs[:3] * 2, *jobs[3:]]
    expected = {job.name: once(writer, job, folder) for job in jobs}
    bad: list[str] = []
    stopped, slowest = 0, 0.0
    for trial in range(size):
        job = turns[trial // 2 % len(turns)]
        undisturbed, seconds = expected[job.name]
        number = signal.SIGINT if trial % 2 else signal.SIGTERM
        target, begun = folder / f"trial {trial}", folder / f"begun {trial}"
        before = functools.partial(_begin, begun)
        process = Process(writer, job.arguments(target), folder / "said", before)
        wait_for(begun)
        process.wait(float(rng.uniform(0.01, seconds)))
        process.signal(number)
        sent = time.monotonic()
        if rng.random() < 0.3:
            process.wait(float(rng.uniform(0, 0.05)))
            process.signal(number)
        code = process.wait(10)
        slowest = max(slowest, time.monotonic() - sent)
        if code is None:
            process.signal(signal.SIGKILL)
            process.wait()
        text = process.text()
        wrong = _badly_stopped(code, text, number)
        stopped += code == 128 + number
        damage, rows = visible_damage(job, target, undisturbed[0])
        wrong += damage
        done = [int(n) for n in re.findall(rf"^{job.name.split()[0]} \(.*\): (\d+) of", text, re.M)]
        most = 1 if job.name == "train-head" else SHARD_ROWS
        if done and len(rows) < done[-1] - most:
            wrong.append(f"{done[-1]} done, {len(rows)} kept: more than {most} lost")
        wrong += resumed(writer, job, target, folder / "said", undisturbed)
        if wrong:
            bad.append(f"trial {trial} ({job.name}, {number.name}): {'; '.join(wrong)}")
        shutil.rmtree(target, ignore_errors=True)
    said = (
        f"{size} signals to {', '.join(expected)}: {stopped} stopped it, the slowest in "
        f"{slowest:.1f} s, {len(bad)} late, untidy, or with more than a shard lost"
    )
    return Tally(size, len(bad), said, tuple(bad[:5]))


def stop_while_compiling(size: int, folder: Path) -> Tally:
    """SIGTERM while OpenVINO compiles a big network, which takes seconds in one call.

    Not for the naive writer, which has no handler: it is killed at once.
    """
    data = write_images(folder / "data", 4)
    bad: list[str] = []
    slowest = 0.0
    for trial in range(size):
        begun = folder / f"begun {trial}"
        arguments = ["featurize", "--data", data, "--cache", folder / "cache", "--workers", 0,
                     "--backbone", "efficientnet_b3_ap", "--weights", "random",
                     "--engine", "openvino"]  # fmt: skip
        process = Process(Ours(), arguments, folder / "said", functools.partial(_begin, begun))
        wait_for(begun)
        process.wait(2.0 + 2.0 * trial)
        process.signal(signal.SIGTERM)
        sent = time.monotonic()
        code = process.wait(30)
        took = time.monotonic() - sent
        slowest = max(slowest, took)
        if code is None:
            process.signal(signal.SIGKILL)
            process.wait()
        wrong = _badly_stopped(code, process.text(), signal.SIGTERM)
        wrong += [f"it took {took:.1f} s"] if took > 10 else []
        if wrong:
            bad.append(f"after {2 + 2 * trial} s: {'; '.join(wrong)}")
    said = f"{size} SIGTERMs while a network compiles: {len(bad)} bad, the slowest {slowest:.1f} s"
    return Tally(size, len(bad), said, tuple(bad[:5]))


def _begin(begun: Path) -> None:
    from featurecache.commands import progress

    progress.LINE_EVERY = 0.0  # a line for every batch: the harness counts what was done
    begun.touch()


def _badly_stopped(code: int | None, text: str, number: signal.Signals) -> list[str]:
    """What is wrong with the end of a process that got a signal. It may have been done already."""
    wrong = []
    if code != 128 + number and not (code == 0 and re.search(r"computed, |run: ", text)):
        wrong.append(f"exit code {code}")
    if "Traceback" in text or "Exception ignored" in text:
        wrong.append(f"a traceback: {text[-600:]}")
    return wrong


# A clock that was wrong, a cache that can't be written, files of the dead.


def clock_set_back(size: int, folder: Path) -> Tally:
    """Half a cache of records and files from the year 2099, filled by runs of today.

    Not for the naive writer: it looks at no time either. The machine's own clock is left alone:
    after it is set back, what was written before lies in the future, and that is made here.
    """
    writer, rng = Ours(), np.random.default_rng(3)
    jobs = [job for job in jobs_of(writer, folder) if job.name in ("featurize", "augment")]
    expected = {job.name: once(writer, job, folder)[0] for job in jobs}
    bad: list[str] = []
    for trial in range(size):
        job = jobs[trial % 2]
        undisturbed = expected[job.name]
        target = folder / f"trial {trial}"
        shutil.copytree(folder / f"undisturbed {job.name}", target)
        for space in Cache(target).spaces():
            for record in space.records:
                path = Path(str(space.file("").parent)) / f"{record.shard}.json"
                value = json.loads(path.read_bytes())
                del value["checksum"]
                value["made"]["time"] = "2099-01-01T00:00:00+00:00"
                path.unlink()
                if rng.random() < 0.5:
                    value["checksum"] = keys.digest(value)
                    path.write_text(json.dumps(value) + "\n")
        for path in target.rglob("*"):
            os.utime(path, (4070908800, 4070908800))
        wrong, kept = visible_damage(job, target, undisturbed[0])
        wrong += resumed(writer, job, target, folder / "said", undisturbed)
        computed = f"{len(undisturbed[0]) - len(kept)} rows computed, {len(kept)} held"
        if computed not in (folder / "said").read_text():
            wrong.append(f"not {computed}")
        if wrong:
            bad.append(f"trial {trial} ({job.name}): {'; '.join(wrong)}")
    said = f"{size} caches with records and files of 2099: {len(bad)} with rows lost or made twice"
    return Tally(size, len(bad), said, tuple(bad[:5]))


def read_only(size: int, folder: Path) -> Tally:
    """A cache on a disk that is mounted read-only: who reads works, who writes says so.

    Not for the naive writer, which has no such commands. `size` is how often each is tried.
    """
    writer = Ours()
    _, augment, train_head, _ = jobs_of(writer, folder)
    data, vectors, out = folder / "data", folder / "vectors", folder / "run"
    bad: list[str] = []
    with small_disk(folder / "disk", "64m") as disk:
        cache = disk / "cache"
        shutil.copytree(vectors, cache)
        must(writer, augment.arguments(cache), folder / "said")
        seen = cache_rows(cache), cache_hashes(cache)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        there = ["--cache", cache]
        what = [*there, "--data", data]
        network = ["--backbone", "efficientnet_lite0", "--input-size", 32]
        engine = ["--engine", "torch-cpu", "--workers", 0]
        reading: list[list[object]] = [
            ["ls", *there],
            ["verify", *there],
            ["verify", "--repair", *there],
            ["why", *what, *network],
            ["plan", *what, *network, *engine],
            [vectors_to if word == vectors else word
             for word in train_head.arguments(out) for vectors_to in [cache]],
            ["evaluate", out, *what],
            ["export", *what, *network, "--out", folder / "rows.npz"],
            ["featurize", *what, *network, *engine],  # all hits
        ]  # fmt: skip
        writing: list[list[object]] = [
            ["featurize", *what, *network, *engine, "--policy", "color_2"],
            ["augment", *what, "--policy", "color_2", "--workers", 0],
        ]
        words = [*((c, True) for c in reading), *((c, False) for c in writing)] * size
        for command, works in words:
            code, text = run(writer, command, folder / "said")
            wrong = [] if works else unclear(code, text, (2,), "Read-only", str(cache))
            if works and (code != 0 or "Traceback" in text):
                wrong.append(f"exit code {code}: {text[-300:]}")
            if wrong:
                bad.append(f"{' '.join(map(str, command[:2]))}: {'; '.join(wrong)}")
        if (cache_rows(cache), cache_hashes(cache)) != seen:
            bad.append("the rows changed")
    said = f"{len(words)} commands on a read-only cache: {len(bad)} failed, or failed unclearly"
    return Tally(len(words), len(bad), said, tuple(bad[:5]))


def leftovers(size: int, folder: Path) -> Tally:
    """Temporary files, data files without a record and unfinished folders, as the dead leave them.

    Not for the naive writer: its leftovers bear the names of finished files, which `kills` shows.
    """
    writer, rng = Ours(), np.random.default_rng(4)
    jobs = [job for job in jobs_of(writer, folder) if "workers" not in job.name]
    expected = {job.name: once(writer, job, folder)[0] for job in jobs}
    bad: list[str] = []
    planted = 0
    for trial in range(size):
        job = jobs[trial % len(jobs)]
        target = folder / f"trial {trial}"
        shutil.copytree(folder / f"undisturbed {job.name}", target)
        left = list(_plant(target, rng, job.whole is cache_hashes))
        planted += len(left)
        wrong = visible_damage(job, target, expected[job.name][0])[0]
        if job.whole is cache_hashes:
            stray = set(verify(target).stray)
            inside = [path for path in left if path.parent.parent.name == "spaces"]
            wrong += [f"{path} is not listed" for path in inside if str(path) not in stray]
        wrong += resumed(writer, job, target, folder / "said", expected[job.name])
        if job.whole is cache_hashes:
            words = ["verify", "--repair", "--cache", target, "--data", folder / "data"]
            code, text = run(writer, words, folder / "said")
            wrong += [f"verify --repair gave {code}: {text[-200:]}"] if code else []
            wrong += [f"{path} is not deleted" for path in left if path.exists()]
            if (job.rows(target), job.whole(target)) != expected[job.name]:
                wrong.append("the repair changed rows")
        if wrong:
            bad.append(f"trial {trial} ({job.name}): {'; '.join(wrong)}")
    said = (
        f"{planted} leftovers in {size} caches and runs: {len(bad)} where one was seen, or was "
        "there after verify --repair"
    )
    return Tally(size, len(bad), said, tuple(bad[:5]))


def _plant(target: Path, rng: np.random.Generator, cache: bool) -> Iterator[Path]:
    """A handful of files that killed writers would leave: cut at any length, under their names."""
    real = [p for p in sorted(target.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    for number in range(int(rng.integers(1, 8))):
        source = real[rng.integers(len(real))]
        content = source.read_bytes()
        content = content[: rng.integers(len(content) + 1)]
        left = source.with_name(f".{source.name[:16]}.{2**22 + number}.{rng.bytes(8).hex()}.tmp")
        if cache and source.suffix == ".h5" and rng.random() < 0.5:
            left = source.with_name(f"{rng.bytes(32).hex()}-{rng.bytes(8).hex()}.h5")
        elif cache and rng.random() < 0.2:
            left = target / "spaces" / rng.bytes(32).hex() / left.name  # a space begun, no more
            left.parent.mkdir()
        left.write_bytes(content)
        yield left
