"""`python -m benchmarks.scale`: what featurizing 1e6 to 1e9 images on 1 to 1000 GPUs would take.

Not a measurement: a small model, fed by what was measured here (MEASURED) and by what others say
(ASSUMED), each with its source. It prints docs/scale.md's tables; `--write` puts them there.

A run is a queue of shards and workers that take the next one, as executors/crew.py does. What a
worker makes in a second is the least of what its GPU, its cores, its share of the network and of
the store allow; workers differ a little, and are lost at random, with the shards that they were at.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.report import kept_rate

PAGE = Path(__file__).parents[1] / "docs/scale.md"
BEGIN, END = "<!-- benchmarks.scale -->\n", "<!-- end -->\n"
MOST_SHARDS = 100_000  # that are played one by one; longer runs are as many of these


@dataclass(frozen=True)
class Number:
    """A figure of the model, its unit and where it is from."""

    value: float
    unit: str
    what: str
    source: str


MEASURED = {
    "decode": Number(
        kept_rate("decode", "500 px"), "images/s a core", "decoding a JPEG of 500 px",
        "docs/benchmarks.md, `decode`",
    ),
    "plan_time": Number(
        0.78e-6, "s an image", "planning from an index",
        "10 million rows: 5.3 s to read, 2.5 s to plan, on 2 cores",
    ),
    "plan_memory": Number(
        64, "bytes an image", "memory of a plan",
        "10 million rows: 0.73 GB at most, of which 0.09 are there before",
    ),
    "walk": Number(
        0.11e-6, "s an image", "sending the positions of images in an index",
        "python -m benchmarks.many_rows, shards of 512, of files and of tar shards; with their "
        "names it was 5.6e-06, with their places in tar shards 1.5e-06",
    ),
    "tar_gets": Number(
        1, "get a shard and tar shard", "of the images that a shard has in a tar shard",
        "tests/test_object_store.py counts them; a get has at most 32 MiB",
    ),
    "give_ray": Number(
        0.55e-3, "s a shard", "what the driver spends on a shard", "3,000 empty tasks, 2 Ray actors"
    ),
    "give_worker": Number(
        0.075e-6, "s a shard and worker", "and on each worker that it looks at",
        "executors/crew.py on a crew that is played: 75 us a task with 1,000 workers",
    ),
    "start": Number(
        4.0, "s", "until a Ray worker has its network", "docs/cluster.md, 46.5 s against 42.6 s"
    ),
    "record": Number(
        72, "bytes an image", "of the commit record", "64 hex digits an item, and 4 KB a shard"
    ),
    "objects": Number(2, "puts a shard", "data file and record", "featurecache/features/spaces.py"),
}  # fmt: skip
ASSUMED = {
    "gpu": Number(
        7000, "images/s", "EfficientNet-B3 at 300 px, bf16, one H100",
        "not measured: 7,600 to 8,700 by memory bandwidth, less what is never reached",
    ),
    "cores": Number(16, "cores a GPU", "for decoding", "usual of rented machines of 8 GPUs"),
    "augment": Number(
        1.0, "times decoding", "what decoding and resizing cost beside it (view none)", "a guess"
    ),
    "tar": Number(1000, "images", "in a tar shard", "usual of webdataset; 30 MB, one get"),
    "image": Number(30e3, "bytes", "a JPEG tile", "256 to 512 px at quality 90"),
    "dim": Number(1536, "floats", "a vector of EfficientNet-B3", "its architecture"),
    "network": Number(12.5e9 / 8, "bytes/s a GPU", "a share of 100 Gb/s", "machines of 8 GPUs"),
    "gets": Number(
        5500, "gets/s a prefix", "limit of the object store",
        "Amazon S3's user guide, performance; more prefixes, more requests",
    ),
    "puts": Number(3500, "puts/s a prefix", "limit of the object store", "the same"),
    "get_price": Number(0.4e-6, "$ a get", "price of a request", "S3 standard's list price"),
    "put_price": Number(5e-6, "$ a put", "price of a request", "the same"),
    "month_price": Number(0.023e-9, "$ a byte and month", "price of storage", "the same"),
    "gpu_price": Number(2.5, "$ an hour", "price of a GPU with its cores", "offers differ 2 x"),
    "failure": Number(
        50_000 * 3600, "GPU seconds", "between failures",
        "419 unexpected stops in 54 days of 16,384 GPUs: the Llama 3 report (2024)",
    ),
    "found": Number(30, "s", "until a lost machine is noticed and replaced", "Ray's health checks"),
    "spread": Number(0.05, "", "deviation of the speeds of workers", "a guess"),
}  # fmt: skip
F = {name: number.value for name, number in (MEASURED | ASSUMED).items()}


@dataclass(frozen=True)
class Run:
    """What is asked: images, GPUs, rows of a shard, image files an object each or in tar shards."""

    images: float
    gpus: int
    rows: int = 512
    prefixes: int = 1  # of the store that images are read from
    tar: bool = False  # neighbours are one get

    @property
    def per_get(self) -> float:
        """Images that one get reads, of a shard that begins anywhere in a tar shard."""
        touched = 1 + (self.rows - 1) / F["tar"]
        return self.rows / (F["tar_gets"] * touched) if self.tar else 1


@dataclass(frozen=True)
class Took:
    seconds: float
    rate: float  # images/s
    bound: str
    lost: float  # share of the work that failures cost
    failures: float
    dollars: float
    read: float  # bytes
    written: float
    driver: float  # bytes of memory


def limits(run: Run) -> dict[str, float]:
    """Images/s of the whole run that each part allows."""
    shards = 1 / run.rows
    driver = F["give_ray"] + F["give_worker"] * run.gpus + F["walk"] * run.rows
    return {
        "GPU": run.gpus * F["gpu"],
        "decoding": run.gpus * F["cores"] * F["decode"] / (1 + F["augment"]),
        "network": run.gpus * F["network"] / F["image"],
        "gets": F["gets"] * run.prefixes * run.per_get,
        "puts": F["puts"] / (F["objects"] * shards),
        "driver": run.rows / driver,
    }


def played(run: Run, rate: float, seed: int = 0) -> tuple[float, float, float]:
    """(seconds, failures, share of work lost) of workers that take shards from one queue.

    `rate` is of one worker, on average. A run of more than MOST_SHARDS is played in part: what is
    lost is the same share of a longer one, and the end, when some have nothing to do, is its own.
    """
    chance = random.Random(seed)
    shards = math.ceil(run.images / run.rows)
    part = min(shards, max(MOST_SHARDS, 20 * run.gpus))
    one = run.rows / rate
    speeds = [max(0.2, chance.gauss(1, F["spread"])) for _ in range(run.gpus)]
    free = [(F["start"], worker) for worker in range(run.gpus)]
    heapq.heapify(free)
    failures, lost, end, left = 0, 0.0, 0.0, part
    while left > 0:
        now, worker = heapq.heappop(free)
        took = one / speeds[worker]
        if chance.random() < took / F["failure"]:
            failures += 1
            wasted = chance.random() * took
            lost += wasted
            again = now + wasted + F["found"] + F["start"]
            heapq.heappush(free, (again, worker))
            continue
        left -= 1
        end = max(end, now + took)
        heapq.heappush(free, (now + took, worker))
    rest = (shards - part) * one / run.gpus
    whole = shards / part
    expected = shards * one / F["failure"] if failures == 0 else failures * whole
    share = (lost * whole + expected * (F["found"] + F["start"])) / max(shards * one, 1e-9)
    return end + rest, expected, share


def simulate(run: Run) -> Took:
    every = limits(run)
    bound = min(every, key=lambda name: every[name])
    planning = run.images * F["plan_time"]
    seconds, failures, lost = played(run, every[bound] / run.gpus)
    seconds += planning
    shards = run.images / run.rows
    gets = run.images / run.per_get
    written = run.images * (4 * F["dim"] + 33 + F["record"])
    dollars = (
        seconds / 3600 * run.gpus * F["gpu_price"]
        + gets * F["get_price"]
        + shards * F["objects"] * F["put_price"]
    )
    memory = 0.9e9 + run.images * F["plan_memory"]
    return Took(
        seconds, run.images / seconds, bound, lost, failures, dollars,
        run.images * F["image"], written, memory,
    )  # fmt: skip


def page() -> Iterator[str]:
    """The tables of docs/scale.md."""
    yield "### Images of their own, one prefix, shards of 512\n\n"
    yield from _table([Run(n, g) for n in (1e6, 1e7, 1e8, 1e9) for g in (1, 10, 100, 1000)])
    yield "\n### Tar shards, shards of 4,096 rows\n\n"
    yield from _table([Run(n, g, 4096, 1, True) for n in (1e8, 1e9) for g in (10, 100, 1000)])
    yield "\n### What each part allows, images/s, with 100 GPUs\n\n"
    run = Run(1e8, 100)
    ways = {
        "images of their own, shards of 512": run,
        "16 prefixes": replace(run, prefixes=16),
        "tar shards": replace(run, tar=True),
        "tar shards, shards of 4,096": replace(run, tar=True, rows=4096),
    }
    names = list(limits(run))
    yield f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
    for name, way in ways.items():
        found = limits(way)
        least = min(found.values())
        cells = [f"**{v:,.0f}**" if v == least else f"{v:,.0f}" for v in found.values()]
        yield f"| {name} | {' | '.join(cells)} |\n"
    for title, numbers in (("Measured", MEASURED), ("Assumed", ASSUMED)):
        yield f"\n### {title}\n\n| what | value | source |\n|---|---|---|\n"
        for number in numbers.values():
            yield f"| {number.what} | {number.value:,.4g} {number.unit} | {number.source} |\n"


def _table(runs: list[Run]) -> Iterator[str]:
    yield "| images | GPUs | images/s | time | bound by | failures | lost | $ | read | written | "
    yield "driver |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    for run in runs:
        took = simulate(run)
        yield (
            f"| {run.images:.0e} | {run.gpus:,} | {took.rate:,.0f} | {_time(took.seconds)} | "
            f"{took.bound} | {took.failures:.2g} | {took.lost:.2%} | {took.dollars:,.0f} | "
            f"{_size(took.read)} | {_size(took.written)} | {_size(took.driver)} |\n"
        ).replace("e+0", "e")


def _time(seconds: float) -> str:
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _size(count: float) -> str:
    for name, unit in (("PB", 1e15), ("TB", 1e12)):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e9:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    text = "".join(page())
    if parser.parse_args().write:
        whole = PAGE.read_text(encoding="utf-8")
        before, after = whole.split(BEGIN)[0], whole.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
