"""Heads that scikit-learn trains: `fit` on arrays of vectors, with no dataset and no run folder."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from featurecache import yaml_files
from featurecache.errors import BadInput, FeatureCacheWarning
from featurecache.heads.default_training import train_default
from featurecache.heads.defaults import network_schedule
from featurecache.heads.mlp import Head
from featurecache.heads.overrides import Overrides, has_network_settings, with_overrides
from featurecache.heads.schedules import BackboneChoice, Schedule, find_schedule, read_schedule
from featurecache.heads.training import train
from featurecache.heads.training_set import TrainingSet
from featurecache.stages.heads.precision_cost import Pair, measured_cost
from featurecache.training.curriculum import Validation

_BACKBONE = "any"  # a schedule names one; here the vectors are given


class BadRows(BadInput, ValueError):
    """Rows or parameters that can't be trained on; scikit-learn's tools expect a ValueError."""


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A scikit-learn classifier of vectors that trains a head as `train_head` does.

    Without parameters it chooses between logistic regression and a small network on a held-out
    part of the rows, and fits the winner to all of them. Parameters have the meaning they have in
    `train_head`: `schedule` is a schedule's file, a shipped one's name, or a dict with its keys
    (without `backbone`); `epochs`, `settings` (values by dotted keys, such as `optimizer.lr`) and
    `seed` override it, or without a schedule the small network's; `device` is auto, cpu or cuda.

    `fit` trains on all rows, unless the training looks at validation rows (early stopping, a
    plateau of the learning rate, class weights by errors): then the schedule's `fraction` is held
    out. With `folds` there is a network per fold, whose probabilities are averaged.

    After `fit`, `head_` is the trained head, `schedule_` its schedule as a dict,
    `classes_` (C,) the classes and `n_features_in_` the width of the vectors. With `precision:
    bf16` in the schedule a warning says what it costs in accuracy: two short trainings are compared
    on held-out rows (those of the schedule, or a fifth).
    """

    def __init__(
        self,
        schedule: str | Path | Mapping[str, Any] | None = None,
        *,
        epochs: int | None = None,
        settings: Mapping[str, Any] | Sequence[str] | None = None,
        seed: int | None = None,
        device: str = "auto",
    ) -> None:
        self.schedule = schedule
        self.epochs = epochs
        self.settings = settings
        self.seed = seed
        self.device = device

    def fit(
        self, X: npt.ArrayLike, y: npt.ArrayLike, groups: npt.ArrayLike | None = None
    ) -> HeadClassifier:
        """Train on vectors `X` (N, D) with classes `y` (N,).

        Rows of one of the `groups` (N,), such as the views of an image, are never on both sides
        where rows are held out; without groups, equal rows are not. Raises BadInput, which is a
        ValueError here.
        """
        vectors, targets = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(targets)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise BadRows("y has one class; a classifier needs at least two")
        try:
            self._train(vectors, labels.astype(np.int64), _names_of(groups, vectors))
        except BadInput as error:
            raise BadRows(str(error)) from error
        return self

    def _train(
        self,
        X: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        groups: Sequence[str],
    ) -> None:
        names = [str(name) for name in self.classes_]
        schedule, is_open = self._resolved(len(X), len(names))
        view = _only_view(schedule)
        schedule.check_fits(names, *X.shape)
        all_rows = np.arange(len(X))
        is_final = schedule.validation.folds is None and not schedule.is_steered
        training_set = TrainingSet(
            vectors={view: X},
            labels=labels,
            items=_items(X),
            groups=groups,
            classes=names,
            identity="fit",
            pairs=[(all_rows, all_rows)] if is_final else None,
            is_final=is_final,
        )
        if schedule.precision is not None:
            warnings.warn(_precision_cost(schedule, training_set, self.device), FeatureCacheWarning,
                          stacklevel=3)  # fmt: skip
        with tempfile.TemporaryDirectory() as run:
            if is_open:
                chosen = train_default(training_set, schedule, Path(run), device=self.device)
                self.head_ = Head.from_networks(chosen.trained.head)
                schedule = chosen.schedule
            else:
                trained = train(training_set, schedule, Path(run), device=self.device)
                self.head_ = Head.from_networks(trained.head)
        described = schedule.as_json(exclude={"backbone"})
        self.schedule_: dict[str, Any] = described

    def _resolved(self, rows: int, classes: int) -> tuple[Schedule, bool]:
        """The schedule, and whether it is one of several to choose from."""
        if self.schedule is None:
            # The split stands for validation rows that are not taken from X.
            backbone = [BackboneChoice(name=_BACKBONE)]
            schedule = network_schedule(backbone, {"split": "val"}, rows=rows, classes=classes)
        elif isinstance(self.schedule, Mapping):
            keys = {"backbone": _BACKBONE, **self.schedule}
            schedule = yaml_files.validate(Schedule, keys, "schedule")
        else:
            schedule = read_schedule(find_schedule(str(self.schedule)))
        settings = dict(self.settings) if isinstance(self.settings, Mapping) else self.settings
        overrides: Overrides = {"epochs": self.epochs, "settings": settings or ()}
        is_open = self.schedule is None and not has_network_settings(overrides)
        if self.seed is not None:
            seed = int(self.seed) if isinstance(self.seed, np.integer) else self.seed
            keys = schedule.as_json() | {"seed": seed}
            schedule = yaml_files.validate(Schedule, keys, "seed")
        return with_overrides(schedule, overrides), is_open

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Probabilities (N, C) float32 of vectors (N, D); columns in the order of `classes_`."""
        check_is_fitted(self)
        return self.head_.predict_proba(validate_data(self, X, dtype=np.float32, reset=False))

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The most probable class (N,) of vectors (N, D)."""
        best = self.predict_proba(X).argmax(1)
        names: npt.NDArray[Any] = self.classes_[best]
        return names


def _precision_cost(schedule: Schedule, rows: TrainingSet, device: str) -> str:
    """What the precision of a training costs in accuracy (law 9, "f32 unless asked")."""
    view = schedule.validation.view
    fraction = {"view": view, "fraction": schedule.validation.fraction or 0.2}
    by_rows = schedule if rows.pairs is None else _validated(schedule, fraction)
    open_rows = replace(rows, pairs=None, is_final=False)
    try:
        pair = open_rows.folds(by_rows)[0]
    except BadInput as error:
        return (
            f"what {schedule.precision} costs in accuracy can't be measured on these rows: {error}"
        )

    def right(short: Schedule, pair: Pair) -> np.ndarray:
        with tempfile.TemporaryDirectory() as run:
            head = train(replace(open_rows, pairs=[pair]), short, Path(run), device=device).head
        vectors = np.asarray(rows.vectors[view][pair[1]])
        is_right: np.ndarray = head.predict_proba(vectors).argmax(1) == rows.labels[pair[1]]
        return is_right

    return measured_cost(_validated(schedule, {"view": view, "split": "val"}), pair, device, right)


def _validated(schedule: Schedule, validation: Mapping[str, Any]) -> Schedule:
    """The schedule with another rule of validation."""
    return schedule.model_copy(update={"validation": Validation.model_validate(dict(validation))})


def _only_view(schedule: Schedule) -> str:
    """The view that X is. Raises BadInput for a schedule that needs more than X."""
    view, *others = schedule.views()
    if others:
        raise BadInput(
            f"the schedule names the views {', '.join(schedule.views())}, but X is a single one; "
            "train it with train_head, or name one view in phases and in validation.view"
        )
    if schedule.sweep is not None:
        raise BadInput("the schedule has a sweep; remove it, and search with GridSearchCV")
    if schedule.validation.split is not None and schedule.is_steered:
        raise BadInput(
            f"the training is validated on split {schedule.validation.split!r}, but fit has no "
            "splits; write validation: {fraction: 0.2}"
        )
    return view


def _names_of(groups: npt.ArrayLike | None, X: npt.NDArray[np.float32]) -> list[str]:
    """The names of the rows' groups; none without groups."""
    if groups is None:
        return []
    check_consistent_length(X, groups)
    return [f"group {group}" for group in np.asarray(groups).tolist()]


def _items(X: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(N, 32) the hash of each row."""
    digests = b"".join(hashlib.sha256(row.tobytes()).digest() for row in X)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)
