"""Trainings of a network killed at random moments: the same command ends with the same metrics."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np

from benchmarks.reliability.harness import Ours, Process, Tally, write_images
from benchmarks.reliability.jobs import Job, once, resumed, run_results, run_rows
from featurecache.training import checkpoints

CONFIG = """\
network: {name: smallnet_28, input_size: 28, crop: 1.0}
optimizer: {name: adam, lr: 1.0e-3, weight_decay: 0.0}
lr_schedule: {name: plateau, factor: 0.5, patience: 1}
early_stopping: {patience: 60}
mixup: 0.2
batch_size: 8
views: {none: 0.5, color: 0.5}
epochs: EPOCHS
validation: {split: val}
"""
# Most of a short training is its start; in a long one most kills come after a checkpoint.
SHORT, LONG = 3, 15  # epochs


def network_kills(size: int, folder: Path) -> Tally:
    """kill -9 at random moments of a training that saves its state at every step; then resume."""
    rng = np.random.default_rng(1)
    data, config = write_images(folder / "data", 48), folder / "net.yaml"
    config.write_text(CONFIG.replace("EPOCHS", str(SHORT if size == 1 else LONG)))
    writer = Ours()

    def train_network(target: Path) -> list[object]:
        return ["train-network", "--data", data, "--cache", target / "cache", "--config", config,
                "--out", target / "run", "--device", "cpu", "--workers", 0]  # fmt: skip

    job = Job(
        "train-network",
        train_network,
        lambda target: run_rows(target / "run"),
        lambda target: run_results(target / "run"),
    )
    undisturbed, seconds = once(writer, job, folder)
    bad: list[str] = []
    within = saved = 0
    for trial in range(size):
        target = folder / f"trial {trial}"
        process = Process(writer, job.arguments(target), folder / "said", _save_at_every_step)
        process.wait(float(rng.uniform(0, 1.2 * seconds)))
        process.signal(signal.SIGKILL)
        code = process.wait()
        within += code == -signal.SIGKILL
        saved += (target / "run" / "network.checkpoint").exists()
        wrong = [] if code in (-signal.SIGKILL, 0) else [f"exit code {code} before the kill"]
        wrong += resumed(writer, job, target, folder / "said", undisturbed)
        if wrong:
            bad.append(f"trial {trial}: {'; '.join(wrong)}")
        shutil.rmtree(target, ignore_errors=True)
    said = (
        f"{size} kills ({within} while it ran, {saved} after a checkpoint): {len(bad)} with other "
        "metrics or weights after resuming"
    )
    return Tally(size, len(bad), said, tuple(bad[:5]))


def _save_at_every_step() -> None:
    checkpoints.EVERY = checkpoints._SHARE = 0.0
