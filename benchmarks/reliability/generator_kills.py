"""Trainings of every kind of generator killed at random moments: they end with the same curves and
weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.harness import Ours, Tally, write_images
from benchmarks.reliability.jobs import Job, Rows, must, run_results, run_rows
from benchmarks.reliability.network_kills import CONFIG, LONG, Kills, killed

_CONVOLUTIONAL = {"image_size": 16, "noise_size": 3, "channels": 2, "batch_size": 4}
KINDS: dict[str, dict[str, Any]] = {
    "cyclegan": {"image_size": 16, "style": "owl", "channels": 2, "blocks": 1, "batch_size": 2},
    "wgan": {"image_size": 16, "noise_size": 3, "batch_size": 2},
    "wgan_gp": _CONVOLUTIONAL,
    "dcgan": _CONVOLUTIONAL,
    "conditional_dcgan": _CONVOLUTIONAL,
    "projected": _CONVOLUTIONAL,
    "vector_wgan_gp": {"backbone": "efficientnet_lite0", "hidden": [8], "batch_size": 8},
}
STEPS = {"projected": 20}  # whose critic has a network of its own; of the others 80
AUGNET = CONFIG.replace("mixup: 0.2\n", "").replace("views: {none: 0.5, color: 0.5}", "views: none")
AUGNET += "neural_augmentation: {loss: style, pairs: random}\n"


def generator_kills(size: int, folder: Path) -> Tally:
    """`size` kills for every kind of generator with more than one step."""
    rng = np.random.default_rng(2)
    data, cache = write_images(folder / "data", 48), folder / "cache"
    where: list[object] = ["--data", data, "--cache", cache]
    featurize: list[object] = ["featurize", *where, "--backbone", "efficientnet_lite0",
                               "--input-size", 32, "--workers", 0]  # fmt: skip
    must(Ours(), featurize, folder / "said")
    kills: dict[str, Kills] = {}
    for kind in [*KINDS, "augnet"]:
        config = folder / f"{kind}.yaml"
        if kind == "augnet":
            config.write_text(AUGNET.replace("EPOCHS", str(LONG)))
            job, checkpoint = _job("train-network", where, config), "network.checkpoint"
        else:
            steps = STEPS.get(kind, 80)
            config.write_text(json.dumps({"generator": kind, "steps": steps, **KINDS[kind]}))
            job, checkpoint = _job("fit-generator", where, config), "generator.checkpoint"
        kills[kind] = killed(job, size, folder, f"run/{checkpoint}", rng)
    within, saved = (
        sum(getattr(each, name) for each in kills.values()) for name in ("within", "saved")
    )
    bad = [example for each in kills.values() for example in each.bad]
    said = (
        f"{size} kills of each of {len(kills)} kinds ({within} while it ran, {saved} after a "
        f"checkpoint): {len(bad)} with other curves or weights after resuming"
    )
    return Tally(size * len(kills), len(bad), said, tuple(bad[:5]))


def _job(command: str, where: list[object], config: Path) -> Job:
    def arguments(target: Path) -> list[object]:
        return [command, *where, "--config", config, "--out", target / "run", "--device", "cpu",
                "--workers", 0]  # fmt: skip

    if command == "train-network":
        return Job(
            config.stem,
            arguments,
            lambda target: run_rows(target / "run"),
            lambda target: run_results(target / "run"),
        )
    return Job(config.stem, arguments, _curves, _results)


def _curves(target: Path) -> Rows:
    path = target / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {str(number): line for number, line in enumerate(lines)}


def _results(target: Path) -> object:
    """The last losses, the description, and the bytes of the tensors."""
    run = target / "run"
    files = [run / "generator.json", run / "generator.safetensors", run / "trained_items.bin"]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return json.loads((run / "run.json").read_bytes())["losses"], hashes
