"""Training of one network: epochs, steps, validation, and checkpoints in the middle of an epoch.

Every random number of a step (order of the rows, views, dropout, mixup) depends only on the seed
and on the numbers of the epoch and the step. So a training that was killed needs no state of a
generator or a loader to resume, and ends with the same numbers, on the same kind of machine with
the same number of threads.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from featurecache.errors import FeatureCacheError
from featurecache.generator_files import NETWORK_CHECKPOINT
from featurecache.json_files import fit
from featurecache.networks.configs import NetworkConfig
from featurecache.networks.layerwise import ends_of_layers, trained_in_epoch
from featurecache.networks.neural_augmentation import PairSampler, augment
from featurecache.networks.trainable import TrainableNetwork
from featurecache.text import one_line
from featurecache.training import optimizers
from featurecache.training.checkpoints import Checkpoint
from featurecache.training.curriculum import Planned
from featurecache.training.epoch_metrics import METRICS_FILE, Epoch, EpochRow
from featurecache.training.losses import by_errors, cross_entropy, fixed_weights, hits
from featurecache.training.lr_schedules import rate_at
from featurecache.training.metrics_writer import MetricsWriter
from featurecache.training.minibatches import batches, epoch_rng, mixture
from featurecache.training.settings import Rate
from featurecache.training.stopping import lowest_index, should_stop

Index = npt.NDArray[np.int64]
State = dict[str, torch.Tensor]

# Third components of a SeedSequence's key; the order of the rows has none.
_STEP, _PAIRS = 4, 5


class Divergence(FeatureCacheError):
    """The loss of a training is no longer finite."""


class Request(NamedTuple):
    """A minibatch to make: row numbers, and the view of each. A view without a draw gets a new one
    in every `epoch`, from 1."""

    rows: Index
    views: Sequence[str]
    epoch: int


# Gives the pictures (B, S, S, 3) uint8, or the maps (B, ...) floating-point, of each request.
Source = Callable[[Iterator[Request]], Generator[np.ndarray, None, None]]


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The labels (N,) in 0..C-1 of all rows, and the numbers of those to train and validate on."""

    labels: npt.NDArray[np.int64]
    train: Index
    val: Index
    classes: Sequence[str]
    fold: int = 1  # the number of this pair of training and validation rows


@dataclass
class _Progress:
    """Where a training is, apart from its tensors. Sums are over the steps of the epoch so far."""

    rows: list[EpochRow] = field(default_factory=list)
    steps: int = 0  # done in the epoch after `rows`
    loss: Any = 0.0  # a number, or a tensor on the device
    right: Any = 0
    seconds: float = 0.0
    errors: torch.Tensor | None = None  # (1, C), of the last validation
    best: State | None = None  # of the epoch of lowest loss, with early stopping


class _Trainer:
    """The tensors of a training in progress: of the network, and of its optimizer."""

    def __init__(self, network: TrainableNetwork, config: NetworkConfig) -> None:
        self.network, self.config = network, config
        self.device = next(network.parameters()).device
        self.forward: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(network) if config.compile else network
        )
        self.parameters: list[torch.Tensor] = [p for p in network.parameters() if p.requires_grad]
        self.moments = [
            [torch.zeros_like(parameter) for parameter in self.parameters]
            for _ in range(optimizers.moments(config.optimizer))
        ]
        self.counts = [torch.zeros((), device=self.device) for _ in self.parameters]
        self.ends = ends_of_layers(network)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(1, C, B) float32."""
        half = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return self.forward(x).float().T[None]

    def step(
        self,
        batch: np.ndarray,
        target: torch.Tensor,
        rate: Rate,
        weights: torch.Tensor | None,
        rng: np.random.Generator,
        epoch: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of an `epoch`; the sum of the losses, and the number of correct predictions."""
        x, mixed, alpha = self.network.inputs(batch), None, self.config.mixup
        rows, neural = len(target), self.config.neural_augmentation
        if neural is not None and self.network.augmenter is not None:
            x, added_loss = augment(self.network.augmenter, neural, x, rows)
            target = target.repeat(2)
        if alpha is not None:
            share = float(rng.beta(alpha, alpha))
            partners = torch.from_numpy(rng.permutation(len(x))).to(self.device)
            x = share * x + (1 - share) * x[partners]
            mixed = (target[partners][None], torch.full((1, 1), share, device=self.device))
        logits = self.logits(x)
        smoothing = self.config.label_smoothing or 0.0
        losses = cross_entropy(
            logits, target[None], smoothing=smoothing, weights=weights, mixed=mixed
        )
        loss = losses.mean()
        if neural is not None:
            loss = neural.alpha * loss + neural.beta * added_loss
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [_gradient(parameter) for parameter in self.parameters]
        count = trained_in_epoch(self.config, self.ends, epoch)
        moments = [tensors[:count] for tensors in self.moments]
        with torch.no_grad():
            optimizers.step(
                self.config.optimizer,
                rate,
                self.parameters[:count],
                gradients[:count],
                moments,
                self.counts[:count],
            )
        # Pictures that were made for the step do not count.
        right = hits(logits[..., :rows], target[None, :rows]).sum()
        return losses[:, :rows].detach().double().sum(), right

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.trained_state(),
            "moments": self.moments,
            "counts": self.counts,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_trained_state(state["network"])
        pairs = [*zip(self.moments, state["moments"], strict=True), (self.counts, state["counts"])]
        for tensors, saved in pairs:
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)


def train_network(
    network: TrainableNetwork,
    source: Source,
    rows: TrainingRows,
    config: NetworkConfig,
    run: Path,
    identity: str,
    *,
    on_images: Callable[[int], None] = lambda count: None,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
) -> list[EpochRow]:
    """Train a network in place, on the device that it is on, and return the metrics of each epoch.

    With early stopping it ends with the weights of the epoch of lowest validation loss. `run` gets
    the metrics, and a checkpoint, from which a second call resumes and which the caller deletes
    when it has saved the network. `identity` hashes all that determines the training. `on_images`
    is called with the number of images of each step. Raises Divergence if the loss is no
    longer finite; the metrics until then, and the last checkpoint, stay.
    """
    checkpoint = Checkpoint(run / NETWORK_CHECKPOINT, identity)
    trainer = _Trainer(network, config)
    progress = _resumed(checkpoint, trainer)
    labels = torch.from_numpy(rows.labels).to(trainer.device)
    fixed = fixed_weights(config.class_weights, labels[rows.train], rows.classes)
    plan = config.plan()
    # torch.manual_seed would also seed every other device, which is slow.
    generator = torch.default_generator
    if trainer.device.type == "cuda":
        cuda: Any = torch.cuda
        generator = cuda.default_generators[cuda.current_device()]

    def save() -> None:
        checkpoint.save({"trainer": trainer.state_dict(), "progress": vars(progress)})

    with (
        contextlib.closing(source(_requests(config, rows, progress))) as feed,
        MetricsWriter(run / METRICS_FILE, numbered=False) as metrics,
        torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []),
    ):
        for row in progress.rows:
            metrics.add(0, row)
            on_epoch(row)
        for planned in plan[len(progress.rows) :]:
            so_far = [row["val_loss"] for row in progress.rows]
            if config.early_stopping and should_stop(so_far, config.early_stopping.patience):
                break
            order = _order(config, rows, planned)[0]
            spans = batches(len(order), config.batch_size)
            weights = fixed
            if config.class_weights == "errors" and progress.errors is not None:
                weights = by_errors(progress.errors).to(trainer.device)
            base = Rate(config.optimizer.lr, config.optimizer.weight_decay)
            network.train()
            began = time.perf_counter()
            for step in range(progress.steps, len(spans)):
                start, stop = spans[step]
                rng = _step_rng(config.seed, rows.fold, planned.epoch, step)
                generator.manual_seed(int(rng.integers(2**63)))
                rate = rate_at(
                    config.lr_schedule, len(plan), planned, base, step / len(spans), so_far
                )
                target = labels[order[start:stop]]
                loss, right = trainer.step(next(feed), target, rate, weights, rng, planned.epoch)
                # Reading a number back waits for a GPU, so it is not read at every step there.
                if trainer.device.type == "cpu" or step % 32 == 31 or step == len(spans) - 1:
                    _check_finite(float(loss), planned.epoch, rate)
                progress.loss, progress.right = progress.loss + loss, progress.right + right
                progress.steps = step + 1
                on_images(stop - start)
                if checkpoint.due():
                    _settle(progress)
                    progress.seconds += time.perf_counter() - began
                    save()
                    began = time.perf_counter()
            _settle(progress)
            (val_loss, val_top1), progress.errors = _validate(trainer, feed, labels, rows)
            row = {
                "fold": rows.fold,
                "epoch": planned.epoch,
                "phase": planned.number,
                "views": planned.phase.shares(planned.in_phase),
                "lr": rate_at(config.lr_schedule, len(plan), planned, base, 0.0, so_far).lr,
                "train_loss": progress.loss / len(order),
                "train_top1": progress.right / len(order),
                "val_loss": val_loss,
                "val_top1": val_top1,
                "seconds": progress.seconds + time.perf_counter() - began,
            }
            _check_finite(val_loss, planned.epoch, base)
            progress.rows.append(row)
            progress.steps, progress.loss, progress.right, progress.seconds = 0, 0.0, 0, 0.0
            if config.early_stopping and lowest_index([*so_far, val_loss]) == len(so_far):
                state = network.trained_state()
                progress.best = {name: tensor.cpu().clone() for name, tensor in state.items()}
            if checkpoint.due():
                save()
            metrics.add(0, row)
            on_epoch(row)
    if progress.best is not None:
        network.load_trained_state(progress.best)
    network.eval()
    return progress.rows


def _resumed(checkpoint: Checkpoint, trainer: _Trainer) -> _Progress:
    """Load the checkpoint, if there is one. Raises DamagedRun for the state of no training."""
    state = checkpoint.load()
    if state is None:
        return _Progress()
    try:
        trainer.load_state_dict(state["trainer"])
        progress = _Progress(**state["progress"])
        for row in progress.rows:
            fit(Epoch, row)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"not the state of this training ({one_line(error)})"
        raise checkpoint.damaged(checkpoint.path, what) from error
    return progress


def _order(config: NetworkConfig, rows: TrainingRows, planned: Planned) -> tuple[Index, list[str]]:
    """The rows of an epoch in order, and the view of each."""
    shares = planned.phase.shares(planned.in_phase)
    rng = epoch_rng(config.seed, rows.fold, planned.epoch)
    count = len(rows.train)
    names = list(shares)
    if config.every_view:
        views, images = np.divmod(rng.permutation(count * len(names)), count)
        return rows.train[images], [names[index] for index in views]
    positions = rng.permutation(count)
    drawn = mixture(shares, count, rng) if len(names) > 1 else np.zeros(count, np.int64)
    return rows.train[positions], [names[index] for index in drawn[positions]]


def _requests(config: NetworkConfig, rows: TrainingRows, progress: _Progress) -> Iterator[Request]:
    """The minibatches of the rest of a training, in order: each epoch, then its validation."""
    steps_done = progress.steps
    neural = config.neural_augmentation
    sampler = None if neural is None else PairSampler(neural, rows.labels, rows.train)
    for planned in config.plan()[len(progress.rows) :]:
        order, views = _order(config, rows, planned)
        spans = batches(len(order), config.batch_size)
        for step in range(steps_done, len(spans)):
            start, stop = spans[step]
            wanted, names = order[start:stop], views[start:stop]
            if sampler is not None:
                rng = _step_rng(config.seed, rows.fold, planned.epoch, step, _PAIRS)
                wanted = sampler.with_partners(wanted, rng)
                names = names * (len(wanted) // len(names))
            yield Request(wanted, names, planned.epoch)
        for block in _blocks(rows.val, config.batch_size):
            yield Request(block, [config.validation.view] * len(block), 1)
        steps_done = 0


def _blocks(rows: Index, size: int) -> list[Index]:
    return np.split(rows, range(size, len(rows), size))


@torch.no_grad()
def _validate(
    trainer: _Trainer, feed: Iterator[np.ndarray], labels: torch.Tensor, rows: TrainingRows
) -> tuple[tuple[float, float], torch.Tensor]:
    """The mean loss and top-1 on the validation rows, and the error rate of each class, (1, C)
    float64, NaN for a class without rows."""
    trainer.network.eval()
    loss = torch.zeros((), dtype=torch.float64, device=trainer.device)
    right = torch.zeros(1, len(rows.classes), dtype=torch.float64, device=trainer.device)
    blocks = _blocks(rows.val, trainer.config.batch_size)
    for block, batch in zip(blocks, itertools.islice(feed, len(blocks)), strict=True):
        target = labels[block]
        logits = trainer.logits(trainer.network.inputs(batch))
        loss += cross_entropy(logits, target).sum()
        right.index_add_(1, target, hits(logits, target).double())
    counts = torch.bincount(labels[rows.val], minlength=len(rows.classes))
    count = len(rows.val)
    return (float(loss) / count, float(right.sum()) / count), 1 - right / counts


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter, which is then free for the next step. Fused optimizers need it
    in the memory order of the parameter."""
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        return torch.zeros_like(parameter)
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _settle(progress: _Progress) -> None:
    """Read the sums, which may be on a GPU, as numbers."""
    progress.loss, progress.right = float(progress.loss), int(progress.right)


def _step_rng(
    seed: int, fold: int, epoch: int, step: int, purpose: int = _STEP
) -> np.random.Generator:
    key = (fold, epoch, purpose, step)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _check_finite(loss: float, epoch: int, rate: Rate) -> None:
    if not np.isfinite(loss):
        raise Divergence(
            f"epoch {epoch}: the loss is no longer finite at lr {rate.lr:g}; lower optimizer.lr in "
            "the configuration. The run folder keeps the metrics until then"
        )
