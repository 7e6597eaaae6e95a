"""`python -m benchmarks.many_rows 1000000`: `plan` and `train-head` on so many rows of an index.

Prints the seconds and the peak memory of whole processes: `plan` while the cache is empty, and once
it holds every row, and `train-head` on vectors of 8 numbers. And, in CPU seconds of this process,
what a driver spends on shards of 512 before they are sent to workers, and what these spend on
reading their names. No image is read, and none exists. Ten million rows take 2.1 GB of disk.

With `--random-rows`: the CPU seconds of reading 1,024 random rows of spaces of 10,000 rows, ten
times as many, and so on to `rows`, in shards of 4,096. All files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.network_memory import MEASURED
from featurecache.features.mapped import MappedVectors
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.filling.request import resolve_request
from featurecache.filling.shard_plan import plan_shards
from featurecache.images.datasets import open_dataset
from featurecache.images.samples import items_of
from featurecache.items import Items
from featurecache.storage.local import LocalStore
from tests.keys import vector_key

BACKBONE, DIM, SHARD, GROUP = "efficientnet_lite0", 8, 4096, 1 << 17
DRAWN = 1024  # rows of a space that are read at once
LARGE_SHARD = 1 << 14  # rows; 10 million are committed in half a minute of CPU time
SCHEDULE = """\
backbone: efficientnet_lite0
head: {hidden: []}
batch_size: 4096
phases: [{views: none, epochs: 1}]
validation: {split: val}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("--random-rows", action="store_true")
    options = parser.parse_args()
    if options.random_rows:
        print("| what | rows | us a row | np.memmap, us a row |\n|---|---|---|---|")
        for count in (10**power for power in range(4, 10) if 10**power <= options.rows):
            with tempfile.TemporaryDirectory(prefix="rows-") as name:
                random_rows(Path(name), count)
        return
    rows = options.rows
    print("| what | rows | s | MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="rows-") as name:
        folder = Path(name)
        (folder / "s.yaml").write_text(SCHEDULE)
        for count in (1000, rows):
            write_index(folder / f"{count}.parquet", count)
            for in_tars in (False, True):
                write_index(folder / "sent.parquet", min(count, 100_000), in_tars)
                send(folder / "sent.parquet", "tar shards" if in_tars else "files")
            data = ["--data", f"{count}.parquet", "--cache", f"cache-{count}"]
            plan = ["plan", *data, "--backbone", BACKBONE, "--view", "none", "--json"]
            report("plan, nothing held", count, folder, plan)
            fill(folder / f"{count}.parquet", folder / f"cache-{count}")
            report("plan, all held", count, folder, plan)
            train = ["train-head", *data, "--schedule", "s.yaml", "--json", "--device", "cpu"]
            report("train-head", count, folder, train)


def write_index(path: Path, rows: int, in_tars: bool = False) -> None:
    """An index of so many images, one in a hundred of them in split val: files of their own, or in
    tar shards of 1,000 images of 30 KB."""
    text = pa.large_string()
    schema = pa.schema(
        [("id", text), ("split", text), ("label", text), ("path", text), ("item", pa.binary(32))]
        + [("start", pa.int64()), ("size", pa.int64())] * in_tars
    )
    rng = np.random.default_rng(0)
    first_val = rows - max(rows // 100, 100)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, GROUP):
            numbers = range(start, min(rows, start + GROUP))
            content = rng.bytes(32 * len(numbers))
            columns = [
                [f"images/{n:09}.jpg" for n in numbers],
                ["val" if n >= first_val else "train" for n in numbers],
                [f"class {n % 100:02}" for n in numbers],
                [
                    f"images/{n // 1000:06}.tar" if in_tars else f"images/{n:09}.jpg"
                    for n in numbers
                ],
                [content[32 * n : 32 * n + 32] for n in range(len(numbers))],
            ]
            if in_tars:
                columns += [[512 + n % 1000 * 31_232 for n in numbers], [30_000] * len(numbers)]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def send(index: Path, what: str) -> None:
    """Make the shards of a plan ready to be sent, and receive them as a worker does."""
    dataset = open_dataset(index)
    plan = plan_shards(
        dataset.samples,
        items_of(dataset.samples)[0],
        [Space(LocalStore(index.parent), "empty")],
        512,
    )
    times = [time.process_time()]
    content = [pickle.dumps(shard) for shard in plan]
    times.append(time.process_time())
    for shard in content:
        list(pickle.loads(shard).rows)
    times.append(time.process_time())
    for task, seconds in zip(("send", "receive"), np.diff(times), strict=True):
        print(f"| {task} shards, {what} | {len(dataset):,} | {seconds:.3f} | |", flush=True)


def fill(index: Path, cache: Path) -> None:
    """Commit made vectors for every image of an index."""
    request = resolve_request(index, cache, "none", BACKBONE)
    request.cache.create()
    space = request.vector_space(request.views[0], request.backbones[0])
    rng = np.random.default_rng(1)
    for start in range(0, len(request.items), LARGE_SHARD):
        part = request.items.array[start : start + LARGE_SHARD]
        features = rng.random((len(part), DIM), np.float32)
        space.commit(Items(part), {"features": features}, {}, {}, 0.0)  # type: ignore[arg-type]


def random_rows(folder: Path, rows: int) -> None:
    """Read random rows of a space of so many, and print what each takes."""
    rng = np.random.default_rng(2)
    items = np.frombuffer(rng.bytes(32 * rows), np.uint8).reshape(-1, 32)
    truth = rng.standard_normal((rows, DIM), np.float32)
    np.save(folder / "raw.npy", truth)
    cache = Cache(folder / "cache")
    cache.create()

    def space() -> Space:
        return cache.space(vector_key(), "none", "made")

    written = space()
    for start in range(0, rows, SHARD):
        part = slice(start, start + SHARD)
        written.commit(Items(items[part]), {"features": truth[part]}, {}, {}, 0.0)  # type: ignore[arg-type]
    drawn = [rng.integers(0, rows, DRAWN) for _ in range(20)]

    opened = space()
    times = [time.process_time()]
    assert len(opened.lookup.array) == rows
    times.append(time.process_time())
    first, _ = opened.vectors(items[drawn[0]])
    times.append(time.process_time())
    assert np.array_equal(first, truth[drawn[0]])
    print(f"| records of a space, once | {rows:,} | {1e6 * (times[1] - times[0]) / rows:.2f} | |")
    print(f"| rows read first | {rows:,} | {1e6 * (times[2] - times[1]) / DRAWN:.2f} | |")

    files = MappedVectors(opened, items), np.load(folder / "raw.npy", mmap_mode="r")
    seconds: list[list[float]] = [[], []]
    for file in files:
        file[:]
    for _ in range(5):
        for file, taken in zip(files, seconds, strict=True):
            start_time = time.process_time()
            vectors = [np.asarray(file[some]) for some in drawn]
            taken.append(time.process_time() - start_time)
            assert np.array_equal(vectors[-1], truth[drawn[-1]])
    ours, peer = (1e6 * statistics.median(taken) / DRAWN / len(drawn) for taken in seconds)
    print(f"| rows read again | {rows:,} | {ours:.3f} | {peer:.3f} |", flush=True)


def report(what: str, rows: int, folder: Path, words: list[str]) -> None:
    """Run a command in a process of its own, and print its time and its peak memory."""
    command = [sys.executable, "-m", "featurecache", *words]
    start = time.perf_counter()
    # Started by a small process: a child of this one would begin with its peak.
    subprocess.run([sys.executable, "-c", MEASURED, "peak", *command], cwd=folder, check=True)
    seconds = time.perf_counter() - start
    peak = json.loads((folder / "peak").read_text()) / 1024
    print(f"| {what} | {rows:,} | {seconds:.1f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
