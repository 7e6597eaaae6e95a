"""Commands that fill a folder, what a reader finds in it, and what is wrong with that."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.reliability.harness import (
    Writer,
    run,
    write_images,
)
from featurecache import keys
from featurecache.errors import FeatureCacheError
from featurecache.features import shards
from featurecache.features.store import Cache
from featurecache.stages.cache.verify import verify

IMAGES, SHARD_ROWS = 48, 8
SCHEDULE = """\
backbone: efficientnet_lite0
head: {hidden: [16], dropout: 0.5}
batch_size: 16
validation: {split: val}
phases: [{views: none, epochs: 6}, {views: {none: 0.5, color_1: 0.5}, epochs: 6}]
"""
Rows = dict[str, bytes]
# What readers raise when they notice something (the last three by h5py, in the naive one).
NOTICED = (FeatureCacheError, OSError, ValueError, KeyError, RuntimeError)


@dataclass(frozen=True)
class Job:
    """A command that fills a folder: its arguments for a folder, and what that folder holds."""

    name: str
    arguments: Callable[[Path], list[object]]
    # The rows that a reader finds (raises if it notices damage), and what is true of a whole one.
    rows: Callable[[Path], Rows]
    whole: Callable[[Path], object]


def jobs_of(writer: Writer, folder: Path) -> list[Job]:
    """Featurize; for ours also with a worker process, augment, and train-head."""
    data = write_images(folder / "data", IMAGES)

    def featurize(cache: Path, workers: int = 0, policy: str = "color_1") -> list[object]:
        return [
            "featurize", "--data", data, "--cache", cache, "--backbone", "efficientnet_lite0",
            "--input-size", 32, "--engine", "torch-cpu", "--workers", workers,
            "--shard-rows", SHARD_ROWS, "--policy", policy,
        ]  # fmt: skip

    def augment(cache: Path) -> list[object]:
        return ["augment", "--data", data, "--cache", cache, "--policy", "color_1", "--workers", 0,
                "--shard-rows", SHARD_ROWS]  # fmt: skip

    if writer.name != "ours":
        rows = functools.partial(_naive_rows, writer)
        return [Job("featurize", featurize, rows, lambda cache: None)]
    vectors, schedule = folder / "vectors", folder / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    for policy in ("none", "color_1"):
        must(writer, featurize(vectors, policy=policy), folder / "said")

    def train_head(out: Path) -> list[object]:
        return ["train-head", "--data", data, "--cache", vectors, "--schedule", schedule,
                "--out", out, "--device", "cpu"]  # fmt: skip

    return [
        Job("featurize", featurize, cache_rows, cache_hashes),
        Job("augment", augment, cache_rows, cache_hashes),
        Job("train-head", train_head, run_rows, run_results),
        Job("featurize --workers 1", functools.partial(featurize, workers=1), cache_rows,
            cache_hashes),
    ]  # fmt: skip


def must(writer: Writer, arguments: Sequence[object], output: Path) -> str:
    code, text = run(writer, arguments, output)
    if code != 0:
        raise RuntimeError(f"undisturbed, {arguments[0]} gave {code}: {text}")
    return text


def _naive_rows(writer: Writer, cache: Path) -> Rows:
    return {item.hex(): row for item, row in writer.rows(cache).items()}


def cache_rows(cache: Path) -> Rows:
    """Every row of every space, through the reader. Raises RuntimeError for a row held twice."""
    found: Rows = {}
    for space in Cache(cache).spaces():
        for number, record in enumerate(space.records):
            arrays = space.read(number)
            for row, item in enumerate(record.item_list):
                name = f"{space.name} {item.hex()}"
                if name in found:
                    raise RuntimeError(f"row {name} is held twice")
                found[name] = shards.row_bytes(arrays, row)
    return found


def cache_hashes(cache: Path) -> object:
    bad = verify(cache).bad
    return bad, {space.name: space.root_hash for space in Cache(cache).spaces()}


def run_rows(out: Path) -> Rows:
    """The metrics of every fold and epoch, without how long they took."""
    path = out / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {f"{row['fold']} {row['epoch']}": keys.canonical({**row, "seconds": 0}) for row in rows}


def run_results(out: Path) -> object:
    """Best, last, and the bytes of the head."""
    record = json.loads((out / "run.json").read_bytes())
    files = [out / "head.json", *sorted(out.glob("*.safetensors"))]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return record["best"], record["last"], hashes


def visible_damage(job: Job, target: Path, undisturbed: Rows) -> tuple[list[str], Rows]:
    """What a reader finds wrong in a folder that was left in the middle, and its rows."""
    try:
        rows = job.rows(target)
        of_cache = job.whole is cache_hashes and Cache(target).exists
        bad = verify(target).bad if of_cache else []
    except NOTICED as error:
        return [f"a reader says: {error}"], {}
    wrong = sum(undisturbed.get(name) != row for name, row in rows.items())
    return [f"{wrong} rows are wrong"] * bool(wrong) + [f"verify lists {row}" for row in bad], rows


def resumed(
    writer: Writer, job: Job, target: Path, output: Path, undisturbed: tuple[Rows, object]
) -> list[str]:
    """Run the same command to its end: how the outcome differs from the undisturbed one."""
    code, text = run(writer, job.arguments(target), output)
    if code != 0:
        return [f"resuming gave {code}: {text[-300:]}"]
    try:
        rows, whole = job.rows(target), job.whole(target)
    except NOTICED as error:
        return [f"after resuming a reader says: {error}"]
    if rows != undisturbed[0]:
        return [f"after resuming {_difference(rows, undisturbed[0])}"]
    return [] if whole == undisturbed[1] else ["after resuming the hashes or results differ"]


def _difference(rows: Rows, expected: Rows) -> str:
    changed = sum(rows[name] != expected[name] for name in rows.keys() & expected.keys())
    return (
        f"{len(expected.keys() - rows.keys())} rows are lost, {changed} changed, "
        f"{len(rows.keys() - expected.keys())} strange"
    )


def once(writer: Writer, job: Job, folder: Path) -> tuple[tuple[Rows, object], float]:
    """The outcome of a job that nothing disturbs, and its seconds."""
    target = folder / f"undisturbed {job.name}"
    for _ in range(2):  # the first may have to wait until the server of processes is there
        shutil.rmtree(target, ignore_errors=True)
        began = time.monotonic()
        must(writer, job.arguments(target), folder / "said")
        seconds = time.monotonic() - began
    return (job.rows(target), job.whole(target)), seconds


def spread(values: Sequence[int], count: int) -> list[int]:
    """`count` of `values`, evenly; all of them if there are fewer."""
    places = np.linspace(0, len(values) - 1, min(count, len(values)))
    return [values[int(place)] for place in places.round()]


def unclear(code: int | None, text: str, codes: Sequence[int], *wanted: str) -> list[str]:
    """What is wrong with an error: it is one line with these words, and one of these codes."""
    lines = [line for line in text.splitlines() if line.startswith("featurecache: ")]
    wrong = [] if code in codes else [f"exit code {code}"]
    if "Traceback" in text or len(lines) != 1:
        wrong.append(f"no single line of error in {text[-200:]!r}")
    elif missing := [word for word in wanted if word not in lines[0]]:
        wrong.append(f"{missing} not in {lines[0]!r}")
    return wrong


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} never appeared")
        time.sleep(0.002)
