"""A stacking ensemble of dense layers on the outputs of its members, as paper 001's AlphaStack."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.heads.ensembles import Labels, Probabilities, check, logs
from featurecache.heads.head_networks import HeadNetworks
from featurecache.heads.schedules import Schedule
from featurecache.heads.training import train
from featurecache.heads.training_set import TrainingSet

# The paper prints "several dense layers", 32 epochs, and Adam at 0.001 for all its models. The
# widths and the dropout are those of its members' own dense layers (AlphaNet_v4).
_SCHEDULE = {
    "backbone": "members",
    "head": {"hidden": [1024, 1024], "norm": "none", "dropout": 0.5},
    "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
    "batch_size": 128,
    "validation": "val",
    "phases": [{"views": "none", "epochs": 32}],
}


def fit_dense(
    members: Sequence[Probabilities], labels: Labels, classes: Sequence[str]
) -> HeadNetworks:
    """Dense layers on the members' log-probabilities, side by side (N, M * C), trained on rows that
    no member was trained on."""
    check(members)
    rows = np.arange(len(labels))
    training_set = TrainingSet(
        vectors={"none": side_by_side(members)},
        labels=np.asarray(labels, np.int64),
        # Distinct rows; what they are does not matter, since nothing is split.
        items=np.pad(rows[:, None].astype(">i8").view(np.uint8), ((0, 0), (24, 0))),
        classes=classes,
        identity="",
        pairs=[(rows, rows)],
        is_final=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(training_set, Schedule.model_validate(_SCHEDULE), Path(folder)).head


def side_by_side(members: Sequence[Probabilities]) -> npt.NDArray[np.float32]:
    """The members' log-probabilities, (N, M * C)."""
    vectors: npt.NDArray[np.float32] = np.concatenate([*logs(members)], 1).astype(np.float32)
    return vectors
