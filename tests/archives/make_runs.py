"""Make the archive of runs, an index and a recipe: run once per format of runs, and never again.

    python tests/archives/make_runs.py

`runs-2` was made by the code before 0.1.0, with its own folder as the working folder. Notes of runs
in the cache hold absolute paths, so they are removed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featurecache

FILES = {
    "linear.yaml": """\
backbone: test_resnet
head: {hidden: [], norm: none, dropout: 0.0}
optimizer: {name: adamw, lr: 1.0e-2}
batch_size: 8
seed: 3
validation: {split: val}
phases:
  - {views: none, epochs: 3}
  - {views: {none: 0.5, color_1: 0.5}, epochs: 2}
""",
    "sweep.yaml": """\
backbone: test_resnet
head: {hidden: [], norm: none, dropout: 0.0}
optimizer: {name: sgd, lr: 1.0e-2}
batch_size: 8
validation: {folds: 2}
phases:
  - {views: none, epochs: 2}
sweep:
  grid: {optimizer.lr: [0.001, 0.1]}
  seeds: [0]
""",
    "recipe.yaml": """\
description: One head.
data: photos
cache: cache
runs: runs
steps:
  - featurize: {backbone: test_resnet, weights: random, input_size: 32, policy: [none, color_1]}
  - train-head: {schedule: linear.yaml}
  - evaluate: {}
""",
}


def main() -> None:
    target = Path(__file__).parent / "runs-2"
    if target.exists():
        raise SystemExit(f"{target} exists; an archive is never made twice")
    rng = np.random.default_rng(7)
    for split, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("cat", "dog")):
            folder = target / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * label, 140 + 60 * label, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    for name, text in FILES.items():
        (target / name).write_text(text)
    os.chdir(target)
    setting: dict[str, Any] = {"weights": "random", "input_size": 32, "engine": "torch-cpu"}
    featurecache.featurize(
        "photos", policy=["none", "color_1"], cache="cache", backbone="test_resnet", workers=0,
        **setting,
    )  # fmt: skip
    trainings = {"data": "photos", "cache": "cache", "device": "cpu"}
    trained = featurecache.train_head("linear.yaml", **trainings)
    swept = featurecache.train_head("sweep.yaml", out="runs/sweep", **trainings)
    featurecache.index("photos", out="photos.parquet")
    recipe = featurecache.run("recipe.yaml", workers=0)
    seen = {
        name: featurecache.evaluate(run, data="photos", cache="cache")
        for name, run in (("evaluate", trained.run), ("sweep", swept.run))
    }
    metrics = ("n", "top1", "loss", "ece")
    expected = {
        "roots": {space["view"]: space["root_hash"] for space in featurecache.ls("cache")},
        "run": trained.run,
        "best": trained.best,
        "last": trained.last,
        **{name: {m: getattr(result, m) for m in metrics} for name, result in seen.items()},
        "winner": swept.winner,
        "recipe": recipe.table,
        "index": {"images": 36},
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree("cache/runs")


if __name__ == "__main__":
    main()
