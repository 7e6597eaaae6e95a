"""The row of train-head without a schedule, against scikit-learn's logistic regression."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurecache
from benchmarks.datasets import tiny_imagenet
from benchmarks.harness import AGAIN, OURS, Case, Check, Setting, orders
from featurecache.images.datasets import open_dataset
from featurecache.study.metrics import interval

SCIKIT = "scikit-learn"
BACKBONE = "efficientnet_lite0"
INVERSES = 10.0 ** np.arange(-4, 3)  # scikit-learn's C, of which a validation part chooses one
# Vectors that are not standardised take hundreds of steps; above so many products they are left out
_FEW = 4 << 30
PAIRS = ("digits_0_8", "dogs_cats", "dogs_goldfish")  # of paper 004, in a folder beside the images


@dataclass(frozen=True)
class Images:
    """The paths of the images of a dataset by class, those to train on and those to test on."""

    train: dict[str, list[Path]]
    val: dict[str, list[Path]]


def defaults(setting: Setting) -> list[Case]:
    """`train-head` without any option, by the command line, against LogisticRegression on the same
    vectors (EfficientNet-Lite0): its C is the best of seven on a stratified fifth of the training
    images, standardised or not (of 100 images per class only standardised), and it is then fitted
    on all of them. Tiny ImageNet with 5, 20 and 90 images per class and with 5 to 20, the pairs of
    paper 004 and scikit-learn's digits (nine tenths of their training images). Each seed draws its
    own training images, the same for both sides; both are tested on the set's own `val`. Seconds
    are of whole trainings, with the start of Python on our side."""
    cache = Path(os.environ.get("FEATURECACHE_BENCH_CACHE") or setting.folder / "cache")
    only = [name for name in os.environ.get("FEATURECACHE_BENCH_SETS", "").split(",") if name]
    cases = []
    for name, images, draw in _sets(setting):
        if only and name not in only:
            continue
        folder = setting.folder / name.replace(" ", "-")
        folder.mkdir()
        _write(folder / "all.csv", images.train, images.val)
        _command("featurize", "--data", folder / "all.csv", "--cache", cache,
                 "--backbone", BACKBONE)  # fmt: skip
        cases.append(_case(name, images, draw, folder, cache, setting.repeats))
        print(cases[-1], file=sys.stderr, flush=True)
    return cases


Draw = Callable[[int, np.random.Generator], int]  # how many images of a class, by its number


def _sets(setting: Setting) -> Iterator[tuple[str, Images, Draw]]:
    root = setting.data if setting.data and not setting.small else tiny_imagenet(setting, 12, 4)
    tiny = _images(root)
    yield "tiny 5", tiny, lambda number, rng: 5
    if setting.small:
        return
    yield "tiny 20", tiny, lambda number, rng: 20
    yield "tiny 5 to 20", tiny, lambda number, rng: int(rng.integers(5, 21))
    for pair in PAIRS:
        folder = root.parent / "paper-004" / pair
        if folder.is_dir():
            yield pair, _images(folder), lambda number, rng: -1
    yield "digits", _digits(setting.folder / "digits-files"), lambda number, rng: -1
    yield "tiny 90", tiny, lambda number, rng: 90


def _images(root: Path) -> Images:
    dataset = open_dataset(root)
    sides: tuple[dict[str, list[Path]], dict[str, list[Path]]] = ({}, {})
    for side, split in zip(sides, ("train", "val"), strict=True):
        for sample in dataset.split(split):
            assert sample.label is not None
            side.setdefault(dataset.classes[sample.label], []).append(root / sample.id)
    return Images(*sides)


def _digits(folder: Path) -> Images:
    """scikit-learn's digits as files: the bytes that the dataset `digits` has in memory."""
    dataset = open_dataset("digits")
    sides: dict[str, dict[str, list[Path]]] = {"train": {}, "val": {}}
    folder.mkdir()
    for number, sample in enumerate(dataset.samples):
        path = folder / f"{number:04}.png"
        path.write_bytes(sample.read())
        assert sample.label is not None
        sides[sample.split].setdefault(dataset.classes[sample.label], []).append(path)
    return Images(sides["train"], sides["val"])


def _case(name: str, images: Images, draw: Draw, folder: Path, cache: Path, seeds: int) -> Case:
    sides = [OURS, SCIKIT, *([AGAIN] if seeds > 1 else [])]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    top1: dict[str, list[float]] = {side: [] for side in sides}
    low, heads = [], []
    for seed, order in enumerate(orders([[side] for side in sides], seeds)):
        rng = np.random.default_rng(seed)
        drawn = {}
        for number, (label, paths) in enumerate(images.train.items()):
            count = draw(number, rng)
            count = round(0.9 * len(paths)) if count < 0 else count
            drawn[label] = [paths[i] for i in sorted(rng.permutation(len(paths))[:count])]
        data = folder / f"seed-{seed}.csv"
        _write(data, drawn, images.val)
        for side in order:
            began = time.perf_counter()
            if side == SCIKIT:
                right = _scikit_learn(data, cache, seed)
                top1[side].append(float(right.mean()))
                low.append(interval(right)[0])
            else:
                found = json.loads(_command(
                    "train-head", "--data", data, "--cache", cache, "--runs", folder / "runs",
                    "--backbone", BACKBONE, "--json",
                ))  # fmt: skip
                top1[side].append(found["last"]["top1"])
                if side == OURS:
                    heads.append(found["candidates"][found["chosen"]]["head"])
            seconds[side].append(time.perf_counter() - began)
    gains = np.subtract(top1[OURS], top1[SCIKIT])
    ours, theirs = (float(np.mean(top1[side])) for side in (OURS, SCIKIT))
    more = f"{100 * gains.mean():+.2f}"
    if seeds > 1:
        half = stats.t.ppf(0.975, seeds - 1) * gains.std(ddof=1) / seeds**0.5
        more += f" ± {100 * half:.2f}"
    check = Check(
        f"top-1 {100 * ours:.2f}%, {SCIKIT} {100 * theirs:.2f}% (from {100 * np.mean(low):.2f}, "
        f"95% over {len(right):,} images); {more} points over {seeds} seeds; chosen: "
        f"{', '.join(heads)}",
        bool(ours >= theirs or ours >= np.mean(low)),
    )
    figures = {"points more than scikit-learn": 100 * float(gains.mean())}
    return Case(name, seconds, checks=[check], figures=figures)


def _scikit_learn(data: Path, cache: Path, seed: int) -> np.ndarray:
    """Which test images are right by logistic regression, C chosen on a part of the training."""
    X, y = featurecache.vectors(data, "none", BACKBONE, split="train", cache=cache)
    Z, z = featurecache.vectors(data, "none", BACKBONE, split="val", cache=cache)
    few = X.size * len(np.unique(y)) < _FEW
    train, val = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=seed)
    best, model = -1.0, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for scaled in (True, False) if few else (True,):
            for inverse in INVERSES:
                steps = [StandardScaler()] if scaled else []
                fit = make_pipeline(*steps, LogisticRegression(C=inverse, max_iter=300))
                score = fit.fit(X[train], y[train]).score(X[val], y[val])
                if score > best:
                    best, model = score, fit
        assert model is not None
        return np.asarray(model.fit(X, y).predict(Z) == z)


def _write(path: Path, train: dict[str, list[Path]], val: dict[str, list[Path]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split, side in (("train", train), ("val", val)):
            for label, paths in side.items():
                writer.writerows([p.resolve(), label, split] for p in paths)


def _command(*words: object) -> str:
    command = [sys.executable, "-m", "featurecache", *map(str, words), "--quiet"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
