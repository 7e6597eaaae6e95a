"""Rows of whole stages: from files on the disk to committed vectors, and to a trained head."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import hand_written
from benchmarks.datasets import encoded, photographs, tiny_imagenet, write_files
from benchmarks.harness import AGAIN, OURS, Case, Check, Setting, again, compare, timed
from benchmarks.network import cpu_engine
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import open_engine, run_rows
from featurecache.features.store import Cache
from featurecache.filling import request
from featurecache.filling import vectors as featurize_stage
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import decode
from featurecache.images.samples import items_of
from featurecache.images.views import original
from featurecache.stages.cache.featurize import Featurized, featurize
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import train_head

ROOT = Path(__file__).parents[1]
SCHEDULE = ROOT / "pipelines" / "paper_000" / "schedule.yaml"
LITE0 = "efficientnet_lite0"
HAND_WRITTEN = "hand_written.py"


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """Each network is read and made an engine once, by the untimed warm-up: opening takes seconds,
    whatever the number of images."""
    with (
        mock.patch.object(request, "load_backbone", functools.cache(load_backbone)),
        mock.patch.object(featurize_stage, "open_engine", functools.cache(open_engine)),
    ):
        yield


def featurize_files(setting: Setting) -> list[Case]:
    """`featurize` of JPEG files of 64x64 with Lite0 at 224 px, from a bare cache to committed
    shards; listing and hashing the files, starting the workers and writing are within its time,
    opening the network is not (it is opened in the warm-up, on both sides). No memo of an earlier
    run is used. The limit is what the same cores could do if nothing ever waited: the CPU seconds
    of reading, hashing, decoding and resizing alone, and of the network alone, together, divided by
    the number of cores."""
    data = tiny_imagenet(setting, *((10, 1) if not setting.small else (3, 1)))
    options = _options(setting)
    samples = open_dataset(data).samples
    items = [item for item in items_of(samples)[0] if item is not None]
    backbone = load_backbone(LITE0, input_size=options["input_size"])
    engine = open_engine(backbone, options["engine"])
    size = engine.batch_rows
    batches: list[np.ndarray] = []

    def pixels_alone() -> None:
        batches.clear()
        made = [
            backbone.preprocess(original(sample, item))
            for sample, item in zip(samples, items, strict=True)
        ]
        batches.extend(np.stack(made[i : i + size]) for i in range(0, len(made), size))

    def network_alone() -> np.ndarray:
        return np.concatenate([run_rows(engine, batch) for batch in batches])

    cores = len(os.sched_getaffinity(0))
    parts: dict[str, list[float]] = {"pictures": [], "network": []}
    cache = setting.folder / "cache"

    def ours() -> None:
        _forget(setting.folder)
        featurize(data, policy="none", cache=cache, **options)

    def alone() -> None:
        parts["pictures"].append(timed(pixels_alone, time.process_time))
        parts["network"].append(timed(network_alone, time.process_time))

    with opened_once():
        seconds, _ = compare({OURS: ours, "limit": alone}, setting.repeats)
    parts = {name: spent[1:] for name, spent in parts.items()}  # the first is the warm-up
    seconds["limit"] = [sum(pair) / cores for pair in zip(*parts.values(), strict=True)]
    (space,) = Cache(cache).spaces()
    rows, _ = space.vectors(items)
    # Same bytes only of an engine whose rows do not depend on their neighbours in a batch.
    same = int((rows == network_alone()).all(axis=1).sum())
    check = Check(f"{same:,} of {len(rows):,} rows are those of the network alone, bit for bit",
                  same == len(rows) or not engine.row_stable)  # fmt: skip
    each = {name: statistics.median(spent) / len(items) for name, spent in parts.items()}
    wall, limit = (statistics.median(seconds[side]) for side in (OURS, "limit"))
    profile = [
        f"CPU ms an image: pictures {1000 * each['pictures']:.2f}, network "
        f"{1000 * each['network']:.2f}",
        f"{cores} cores, {wall - limit:.2f} s above the limit",
        f"starting a worker process takes {_worker_start():.2f} s",
    ]
    return [Case("view none", seconds, len(items), checks=[check],
                 figures={"wall / limit": wall / limit}, profile=profile)]  # fmt: skip


def k_views(setting: Setting) -> list[Case]:
    """K draws of `color` of each JPEG of 500x375 in one `featurize`, which decodes it once, against
    K calls of it. Both in this process without workers, the network opened before, so that the gain
    is that of reading and decoding once, and not that of starting fewer processes."""
    files = photographs(setting, setting.size(32, 4))
    data = write_files(setting.folder / "photographs", files)
    options = _options(setting) | {"workers": 0}
    cases = []
    with opened_once():
        for k in (1, 4, 8) if not setting.small else (1, 2):
            policies = [f"color_{draw}" for draw in range(1, k + 1)]

            def together(policies: Sequence[str] = policies) -> list[str]:
                return _featurized(setting.folder, data, [policies], options)

            def apart(policies: Sequence[str] = policies) -> list[str]:
                return _featurized(setting.folder, data, [[p] for p in policies], options)

            seconds, results = compare({OURS: together, f"{k} runs": apart}, setting.repeats)
            same = results[OURS] == results[f"{k} runs"]
            check = Check(f"the spaces of {k} views have the same root hashes: {same}", same)
            decoding = k * timed(lambda: [decode(data) for data in files])
            share = decoding / statistics.median(seconds[f"{k} runs"])
            profile = [f"decoding is {share:.1%} of the time of {k} runs"]
            cases.append(Case(f"K = {k}", seconds, len(files) * k, "views/s", [check],
                              profile=profile))  # fmt: skip
    return cases


def two_backbones(setting: Setting) -> list[Case]:
    """`featurecache featurize` of spatial_1 with Lite0 and Lite1, as one command and as two: one
    decode and one augmentation feed both. Whole processes, with the imports, on 64 px JPEGs."""
    files = encoded(setting, setting.size(400, 12))
    data = write_files(setting.folder / "files", files)
    small = ["--input-size", "32", "--workers", "0", "--engine", "torch-cpu"]
    size = small if setting.small else []
    pair = [LITE0, "efficientnet_lite1"]

    def run(commands: Sequence[Sequence[str]]) -> list[str]:
        cache = setting.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        for names in commands:
            words = ["-m", "featurecache", "featurize", "--quiet", "--policy", "spatial_1", *size]
            words += ["--data", str(data), "--cache", str(cache)]
            for name in names:
                words += ["--backbone", name]
            _command([sys.executable, *words])
        return [space.root_hash for space in Cache(cache).spaces()]

    sides = {OURS: lambda: run([pair]), "two commands": lambda: run([[name] for name in pair])}
    seconds, results = compare(sides, setting.repeats, warm=setting.warm(sides))
    same = results[OURS] == results["two commands"]
    check = Check(f"both spaces have the same root hashes: {same}", same)
    start = timed(
        lambda: _command([sys.executable, "-c", "import featurecache.stages.cache.featurize"])
    )
    profile = [f"importing what `featurize` needs before any work: {start:.2f} s"]
    return [Case("one command", seconds, checks=[check], profile=profile)]


def paper(setting: Setting) -> list[Case]:
    """Tiny ImageNet (four training images and one validation image of each class; `--full`: all),
    none and four augmented views, Lite0 at 224 px, and the six phases of
    pipelines/paper_000/schedule.yaml, to the head's accuracy on the validation images. Peer:
    hand_written.py, the whole of it. Each side is one process with all libraries imported. It opens
    its network in every repeat, and ours has no memo of an earlier run. Warm cache: another
    learning rate on the vectors that are there.

    Beside it, unjudged, the script's training alone on its own files, for users who keep them and
    know that they are still the right ones. Both sides draw their own augmentations and heads, so
    accuracies are compared within three standard errors."""
    data = tiny_imagenet(setting, *((10**6, 10**6) if setting.full else (4, 1)))
    # A tenth of the classes is enough to have everything imported and every file read once.
    few = _part_of(data, setting.folder / "few", classes=20 if not setting.small else 3)
    folder, options = setting.folder, _options(setting)
    if not setting.small:
        options["crop"] = 1.0  # as schedule.yaml says: the whole image
    numbers = iter(range(10**6))
    stages = ("featurize", "train_head", "evaluate")
    parts: dict[bool, dict[str, list[float]]] = {  # of a bare cache, of a warm one
        bare: {stage: [] for stage in stages} for bare in (True, False)
    }

    def ours(data: Path, schedule: Path, bare: bool) -> dict[str, float]:
        cache, run = folder / f"cache-{data.name}", folder / f"run-{next(numbers)}"
        clock = [time.perf_counter()]
        if bare:
            _forget(folder, cache)
            featurize(data, policy=list(hand_written.VIEWS), cache=cache, **options)
        clock.append(time.perf_counter())
        train_head(schedule, data=data, cache=cache, out=run)
        clock.append(time.perf_counter())
        views = ("none", "spatial_1", "color_1")
        top1 = {view: evaluate(run, view=view, data=data, cache=cache).top1 for view in views}
        clock.append(time.perf_counter())
        for name, spent in zip(parts[bare], np.diff(clock), strict=True):
            parts[bare][name].append(float(spent))
        return top1

    def theirs(data: Path, vectors: bool = True) -> dict[str, float]:
        out = folder / f"features-{data.name}"
        out.mkdir(exist_ok=True)
        if vectors:
            hand_written.featurize(data, out, 0 if setting.small else hand_written.WORKERS)
        return hand_written.train(out, hand_written.TinyImageNet(data, "train").classes)

    other = _schedule(folder / "other.yaml", setting, lr=5e-4)
    same = _schedule(folder / "schedule.yaml", setting)
    alone = f"{HAND_WRITTEN}, training alone"
    seconds, results = compare(
        {
            OURS: lambda: ours(data, same, True),
            "warm": lambda: ours(data, other, False),
            HAND_WRITTEN: lambda: theirs(data),
            alone: lambda: theirs(data, vectors=False),
        },
        setting.repeats,
        warm={
            OURS: lambda: ours(few, same, True),
            "warm": lambda: ours(few, other, False),
            HAND_WRITTEN: lambda: theirs(few),
            alone: lambda: theirs(few, vectors=False),
        },
        chains=[(OURS, "warm"), (HAND_WRITTEN, alone)],
    )
    count = len(hand_written.TinyImageNet(data, "val"))
    noise = 3 * math.sqrt(2 * 0.25 / count)
    cases = []
    for name, side, peers in (
        ("cold cache", OURS, [HAND_WRITTEN]),
        ("warm cache, new schedule", "warm", [HAND_WRITTEN, alone]),
    ):
        checks = [
            _accuracy(view, results[side][view], results[HAND_WRITTEN][view], noise)
            for view in results[side]
        ]
        spent = {OURS: seconds[side]} | {peer: seconds[peer] for peer in peers}
        if again(side) in seconds:
            spent[AGAIN] = seconds[again(side)]
        cases.append(Case(name, spent, checks=checks))
    images = len(open_dataset(data).samples)
    for case, spent in zip(cases, parts.values(), strict=True):
        case.profile = [
            f"{name} {statistics.median(times[1:]):.2f} s" for name, times in spent.items()
        ]
        case.figures["images"] = images
    return cases


def _forget(folder: Path, cache: Path | None = None) -> None:
    """Remove a cache, and the memos of the row."""
    for path in (cache or folder / "cache", folder / "memos"):
        shutil.rmtree(path, ignore_errors=True)


def _options(setting: Setting) -> dict[str, Any]:
    """Of `featurize`: Lite0 by default, as a user would; at the small size 32 px, in this
    process."""
    if setting.small:
        return {"backbone": LITE0, "input_size": 32, "workers": 0, "engine": cpu_engine()}
    return {"backbone": LITE0, "input_size": None, "engine": cpu_engine()}


def _featurized(
    folder: Path, data: Path, runs: Sequence[Sequence[str]], options: dict[str, Any]
) -> list[str]:
    """Root hashes of the spaces that these calls of `featurize` fill, from a bare cache."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for policies in runs:
        done: Featurized = featurize(data, policy=policies, cache=folder / "cache", **options)
        assert not done.failed
    return [space.root_hash for space in Cache(folder / "cache").spaces()]


def _schedule(path: Path, setting: Setting, lr: float | None = None) -> Path:
    """schedule.yaml, with another learning rate; at the small size as small a network as is
    there."""
    text = SCHEDULE.read_text()
    if lr is not None:
        assert "lr: 1.0e-3" in text
        text = text.replace("lr: 1.0e-3", f"lr: {lr}")
    if setting.small:
        assert ", input_size: 224, crop: 1.0" in text
        text = text.replace(", input_size: 224, crop: 1.0", "")
    path.write_text(text)
    return path


def _part_of(data: Path, out: Path, classes: int) -> Path:
    """A Tiny ImageNet folder with the first classes of another one."""
    names = sorted(path.name for path in (data / "train").iterdir())[:classes]
    for name in names:
        shutil.copytree(data / "train" / name, out / "train" / name)
    (out / "val" / "images").mkdir(parents=True)
    lines = (data / "val" / "val_annotations.txt").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split("\t")[1] in names]
    for line in kept:
        shutil.copy(data / "val" / "images" / line.split("\t")[0], out / "val" / "images")
    (out / "val" / "val_annotations.txt").write_text("".join(kept))
    shutil.copy(data / "wnids.txt", out)
    shutil.copy(data / "words.txt", out)
    return out


def _accuracy(view: str, ours: float, theirs: float, noise: float) -> Check:
    said = f"top-1 on validation images, {view}: {ours:.3f}, {HAND_WRITTEN} {theirs:.3f}"
    return Check(f"{said} (within {noise:.3f})", abs(ours - theirs) <= noise)


def _worker_start() -> float:
    """Seconds until a fresh process has what `prepare` of a view `none` needs."""
    code = "import featurecache.stages.cache.featurize, PIL.Image"
    return timed(lambda: _command([sys.executable, "-c", code]))


def _command(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
