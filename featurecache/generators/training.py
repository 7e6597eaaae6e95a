"""Training of a generator: steps, losses, and checkpoints between any two steps.

Every random number of a step depends only on the seed and on the numbers of the fold and the step.
So a training that was killed resumes from its tensors alone, and ends with the same weights, on the
same kind of machine with the same number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurecache import keys
from featurecache.errors import FeatureCacheError
from featurecache.generator_files import CHECKPOINT
from featurecache.generators.architectures import ARCHITECTURES
from featurecache.generators.configs import GeneratorConfig
from featurecache.generators.generator import FittedImages, Generator
from featurecache.json_files import damaged_run, parse_json, read_file
from featurecache.storage import durable
from featurecache.text import one_line
from featurecache.training.checkpoints import Checkpoint
from featurecache.training.epoch_metrics import MAX_METRICS, METRICS_FILE

MAX_ROWS = 200  # of the curves of losses
Losses = dict[str, float]


@dataclass
class _Progress:
    """Where a training is, apart from its tensors. `sums` are over the steps after the last of the
    `rows` of the curves."""

    steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: Losses = field(default_factory=dict)
    seconds: float = 0.0


def fit_generator(
    config: GeneratorConfig,
    images: FittedImages,
    run: Path,
    identity: str,
    device: torch.device,
    *,
    fold: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Generator:
    """Fit one generator on these images, and return it.

    `run` gets the curves of the losses, and a checkpoint, from which a second call resumes and
    which the caller deletes when it has saved the network. `identity` hashes all that determines
    the training; `fold`, from 1, is part of the seeds. Raises FeatureCacheError if a loss is no
    longer finite.
    """
    checkpoint = Checkpoint(run / CHECKPOINT, identity)
    random = torch.default_generator
    if device.type == "cuda":
        cuda: Any = torch.cuda
        random = cuda.default_generators[cuda.current_device()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(_seed(_rng(config.seed, fold)))
        generator: Generator = ARCHITECTURES[config.generator](config, images)
        generator.modules.to(device).train()
        progress = _resumed(checkpoint, generator)
        on_step(progress.steps)
        every = -(-config.steps // MAX_ROWS)
        began = time.perf_counter()

        def save() -> None:
            nonlocal began
            now = time.perf_counter()
            progress.seconds, began = progress.seconds + now - began, now
            checkpoint.save({"tensors": _state(generator), "progress": vars(progress)})
            write_curves(run, progress.rows)

        for step in range(progress.steps, config.steps):
            rng = _rng(config.seed, fold, step)
            random.manual_seed(_seed(rng))
            made = generator.step(images, step, rng)
            losses = {name: float(loss.detach()) for name, loss in made.items()}
            _check_finite(losses, step)
            for name, loss in losses.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + loss
            progress.steps = step + 1
            if progress.steps % every == 0 or progress.steps == config.steps:
                count = progress.steps - (progress.rows[-1]["step"] if progress.rows else 0)
                means = {name: total / count for name, total in progress.sums.items()}
                head = {"fold": fold} if fold else {}
                progress.rows.append({**head, "step": progress.steps, **means})
                progress.sums = {}
            on_step(progress.steps)
            if checkpoint.due():
                save()
        save()
    generator.modules.eval()
    return generator


def read_curves(run: Path) -> list[dict[str, Any]]:
    """The rows of `write_curves`."""
    lines = read_file(run / METRICS_FILE, MAX_METRICS, damaged_run).splitlines()
    return [parse_json(line) for line in lines]


def write_curves(run: Path, rows: list[dict[str, Any]]) -> None:
    """The mean losses until each step of the curves, a line for each."""
    lines = [keys.canonical(row) + b"\n" for row in rows]
    durable.replace(run / METRICS_FILE, b"".join(lines))


def _rng(seed: int, fold: int, *step: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(fold, *step)))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


def _state(generator: Generator) -> dict[str, Any]:
    optimizers = {name: optimizer.state_dict() for name, optimizer in generator.optimizers.items()}
    return {"modules": generator.modules.state_dict(), "optimizers": optimizers}


def _resumed(checkpoint: Checkpoint, generator: Generator) -> _Progress:
    """Load the checkpoint, if there is one. Raises DamagedRun for the state of no training."""
    state = checkpoint.load()
    if state is None:
        return _Progress()
    try:
        generator.modules.load_state_dict(state["tensors"]["modules"])
        for name, optimizer in generator.optimizers.items():
            optimizer.load_state_dict(state["tensors"]["optimizers"][name])
        return _Progress(**state["progress"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"not the state of this training ({one_line(error)})"
        raise checkpoint.damaged(checkpoint.path, what) from error


def _check_finite(losses: Losses, step: int) -> None:
    if not np.isfinite(list(losses.values())).all():
        raise FeatureCacheError(
            f"step {step + 1}: a loss is no longer finite; lower lr in the configuration"
        )
