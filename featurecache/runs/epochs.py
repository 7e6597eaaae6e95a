"""The epochs of a run, `metrics.jsonl`: one line per epoch and fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from featurecache.errors import DamagedCache
from featurecache.storage.safe_open import read_regular
from featurecache.training.epoch_metrics import MAX_METRICS, METRICS_FILE

if TYPE_CHECKING:
    pass


class Epoch(pydantic.BaseModel):
    """A line of `metrics.jsonl`: an epoch of a fold (heads/training.py says what stands in it)."""

    model_config = pydantic.ConfigDict(extra="ignore")
    epoch: int
    fold: int
    phase: int
    views: dict[str, float] = {}
    lr: float | None = None
    train_loss: pydantic.FiniteFloat
    train_top1: pydantic.FiniteFloat
    val_loss: pydantic.FiniteFloat
    val_top1: pydantic.FiniteFloat
    seconds: float = 0.0


def read_epochs(run: str | Path) -> list[Epoch]:
    """The epochs of the head of a run, fold by fold; none where the folder has no metrics."""
    path = Path(run) / METRICS_FILE
    if not path.is_file():
        return []
    try:
        lines = read_regular(path, MAX_METRICS).splitlines()
        return [Epoch.model_validate_json(line) for line in lines]
    except (OSError, pydantic.ValidationError) as error:
        raise DamagedCache(f"{path}: not the metrics of a run; train it again") from error
