"""The logistic regression that every trained head is compared with, on the same vectors."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.heads.defaults import BASELINE, VALIDATED, logistic_schedule
from featurecache.heads.head_networks import HeadNetworks
from featurecache.heads.logistic import choose_penalty, parts_of
from featurecache.heads.schedules import Schedule
from featurecache.heads.training import train
from featurecache.heads.training_set import TrainingSet

# Rows x width x classes, such as 84,000 rows of 10 classes or 4,200 of 200. Choosing the penalty of
# more takes minutes, the head itself seconds.
MAX_PRODUCTS = 1 << 30
_VERSION = 1


class Baseline(TypedDict):
    """Validation top-1 of logistic regression; the mean over folds."""

    top1: float


def train_baseline(
    training_set: TrainingSet,
    schedule: Schedule,
    run: Path,
    *,
    shared: Path | None,
    device: str,
) -> Baseline:
    """Fit logistic regression to the training rows of a schedule, through the view that it is
    validated on, and save it in the run's folder `baseline`.

    The penalty is chosen on held-out parts of the training rows. Runs on the same rows share one
    fit, in the folder `shared`. If the run's head was trained on the validation rows too, so is the
    baseline, and the one without them is in its folder `validated`. Raises BadInput if the rows are
    too few or too many, or exceed --memory.
    """
    pairs = training_set.folds(schedule)
    view = schedule.validation.view
    vectors, labels = training_set.vectors[view], np.asarray(training_set.labels)
    classes = len(training_set.classes)
    if not isinstance(vectors, np.ndarray):
        raise BadInput("the vectors exceed --memory; give more, or run `featurecache baselines`")
    if vectors.size * classes > MAX_PRODUCTS:
        raise BadInput(
            "too many vectors to fit one beside each training; run `featurecache baselines`"
        )
    digest = hashlib.sha256(np.ascontiguousarray(vectors).data)
    for array in (labels, *(side for pair in pairs for side in pair)):
        digest.update(np.ascontiguousarray(array).data)
    has_final = (run / VALIDATED).is_dir()
    if any(training_set.groups):
        digest.update("\0".join(training_set.groups).encode())
    identity = keys.digest([_VERSION, digest.hexdigest(), list(training_set.classes), has_final])
    folder = run / BASELINE if shared is None else shared / identity[:16]
    done = folder / "head.json"
    if not done.is_file():
        (first, _), *_ = pairs
        groups = training_set.group_numbers(first)
        part_numbers = parts_of(labels[first], classes, groups)
        penalty = choose_penalty(vectors[first], labels[first], classes, part_numbers)
        solved = logistic_schedule(schedule, {view: 1.0}, penalty.standardise, penalty.weight_decay)
        baseline_set = replace(training_set, identity=identity, pairs=pairs)
        if has_final:
            train(baseline_set, solved, folder / VALIDATED, device=device)
            rows = np.sort(np.concatenate(pairs[0]))
            baseline_set = replace(baseline_set, pairs=[(rows, pairs[0][1])], is_final=True)
        train(baseline_set, solved, folder, device=device)
    measured = HeadNetworks.load(folder / VALIDATED if has_final else folder)
    if shared is not None:
        for part in (VALIDATED, "") if has_final else ("",):
            (run / BASELINE / part).mkdir(parents=True, exist_ok=True)
            HeadNetworks.load(folder / part).save(run / BASELINE / part)
    right = [
        float((measured.network(n).predict_proba(vectors[val]).argmax(1) == labels[val]).mean())
        for n, (_, val) in enumerate(pairs)
    ]
    return {"top1": float(np.mean(right))}
