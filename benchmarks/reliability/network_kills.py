"""Trainings of a network killed at random moments: the same command ends with the same metrics."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, field
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
    """Trainings of a network."""
    rng = np.random.default_rng(1)
    data, config = write_images(folder / "data", 48), folder / "net.yaml"
    config.write_text(CONFIG.replace("EPOCHS", str(SHORT if size == 1 else LONG)))

    def train_network(target: Path) -> list[object]:
        return ["train-network", "--data", data, "--cache", target / "cache", "--config", config,
                "--out", target / "run", "--device", "cpu", "--workers", 0]  # fmt: skip

    job = Job(
        "train-network",
        train_network,
        lambda target: run_rows(target / "run"),
        lambda target: run_results(target / "run"),
    )
    kills = killed(job, size, folder, "run/network.checkpoint", rng)
    return Tally(
        size,
        len(kills.bad),
        f"{size} kills ({kills.within} while it ran, {kills.saved} after a checkpoint): "
        f"{len(kills.bad)} with other metrics or weights after resuming",
        tuple(kills.bad[:5]),
    )


@dataclass
class Kills:
    """How many of the kills came while the training ran, and after a checkpoint; and those after
    which it ended otherwise."""

    within: int = 0
    saved: int = 0
    bad: list[str] = field(default_factory=list)


def killed(job: Job, count: int, folder: Path, checkpoint: str, rng: np.random.Generator) -> Kills:
    """kill -9 at `count` random moments of a training that saves its state at every step, into the
    file `checkpoint`; then resume."""
    writer, kills = Ours(), Kills()
    undisturbed, seconds = once(writer, job, folder)
    for trial in range(count):
        target = folder / f"trial {trial}"
        process = Process(writer, job.arguments(target), folder / "said", _save_at_every_step)
        process.wait(float(rng.uniform(0, 1.2 * seconds)))
        process.signal(signal.SIGKILL)
        code = process.wait()
        kills.within += code == -signal.SIGKILL
        kills.saved += (target / checkpoint).exists()
        wrong = [] if code in (-signal.SIGKILL, 0) else [f"exit code {code} before the kill"]
        wrong += resumed(writer, job, target, folder / "said", undisturbed)
        if wrong:
            kills.bad.append(f"{job.name}, trial {trial}: {'; '.join(wrong)}")
        shutil.rmtree(target, ignore_errors=True)
    return kills


def _save_at_every_step() -> None:
    checkpoints.EVERY = checkpoints._SHARE = 0.0
