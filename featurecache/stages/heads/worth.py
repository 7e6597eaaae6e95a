"""Worth: was the augmentation worth it? Heads are trained with and without it and compared in
pairs, under several learning-rate schedules: a gain under one may be a loss under another."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from featurecache.errors import BadInput
from featurecache.executors import Progress
from featurecache.features.costs import seconds_to_make
from featurecache.features.store import Cache
from featurecache.heads import phase_variants
from featurecache.heads.schedules import Schedule, find_schedule, read_schedule
from featurecache.keys import Json, canonical, digest, jpeg_side, picture_key
from featurecache.networks.configs import NetworkConfig, is_network_config, read_config
from featurecache.runs.record import claimed_run, make_folder
from featurecache.runs.training_data import TrainingData, load_training_data
from featurecache.stages.heads.outcomes import Outcome, outcome_of
from featurecache.stages.heads.shared_options import SharedOptions, resolve_options
from featurecache.stages.heads.train_head import overridden
from featurecache.stages.heads.worth_ways import (
    CONTROL,
    Plan,
    phases_by_policy,
    rates_of,
    ways_of,
    with_control,
    without_generated,
)
from featurecache.storage import durable
from featurecache.study.gains import WRITTEN, Gain, Way, gains, verdict
from featurecache.text import listed
from featurecache.training.settings import check_device

if TYPE_CHECKING:
    from featurecache.runs.network_outcomes import NetworkOutcomes


class WorthOptions(SharedOptions, total=False):
    """Keywords of worth beside its own."""

    control: bool


class ViewCost(TypedDict):
    """The seconds that the vectors of a view, and its stored pictures, took to compute."""

    view: str
    rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Worth:
    """The gain of each way of training, in the order of training; the cost of the views, {view,
    rows, seconds}; notes."""

    run: str
    verdict: str
    images: int  # validation images
    epochs: int  # per training
    seeds: list[int]
    ways: list[Gain]
    views: list[ViewCost]
    notes: list[str]


def worth(
    schedule: str | Path,
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    lr_schedule: str | Sequence[str] = (),
    share: float | Sequence[float] = (),
    seeds: int = 5,
    runs: str | Path = "runs",
    device: str = "auto",
    **options: Unpack[WorthOptions],
) -> Worth:
    """Train a schedule as written, on clean images only, and with its phases in another order,
    under every learning-rate schedule and with every seed; compare the results.

    `schedule` may also be the configuration of a network (docs/networks.md), which is then trained
    in each way. Where it has several policies, or `policy` names views, each policy also replaces
    all augmented views in turn. `lr_schedule` holds values for the schedule's key of that name, in
    YAML; the default is constant, cosine and the schedule's own. `backbone` (one name or several)
    overrides the schedule's. Seeds count up from the schedule's: with the same seed, all ways share
    the initial weights, the order of rows and dropout. All trainings have the same number of epochs
    and the same validation images. `share` (one number or several) replaces the
    schedule's share of the augmented or generated views in each epoch; a schedule with clean views
    only is compared at 25, 50 and 75% by default.

    Datasets of generated images in `data` are policies too. `control` keeps the training images
    that no generator has seen out of all trainings but one, in which they are the augmentation:
    what as many more real images would have gained.

    A folder in `runs` stores the outcome of each training. No training is done twice, even when
    policies, learning-rate schedules or seeds are added later, and a killed one resumes. Raises
    BadInput or NotCached before the first step.
    """
    data, cache, progress = resolve_options(options, "worth", WorthOptions)
    control = options.get("control", False)
    check_device(device)
    path = find_schedule(str(schedule))
    wanted: Plan
    if is_network_config(path):
        wanted = read_config(path)
        if listed(backbone):
            raise BadInput(f"--backbone: {path} names a network of its own; remove the option")
    else:
        wanted = overridden(read_schedule(path), backbone)
    if not 1 <= seeds <= 2**32 - wanted.seed:
        raise BadInput(f"seeds {seeds}: must be at least 1, and every seed below 2**32")
    numbers = list(range(wanted.seed, wanted.seed + seeds))
    plan, notes = same_steps(wanted, path)
    rates = rates_of(plan, listed(lr_schedule), type(wanted))
    data, made = without_generated(data)
    made += [CONTROL] if control else []
    if isinstance(wanted, NetworkConfig) and made:
        raise BadInput(f"{path}: generated images are compared for heads, not for networks")
    by_policy = phases_by_policy(plan, listed(policy), made, share, path)
    ways = ways_of(plan, by_policy, rates, numbers, type(wanted))
    if all(way.order == WRITTEN for way in ways):
        notes.append("all epochs use the same views, so there is no other order of phases")
    if seeds == 1:
        notes.append("with one seed the intervals cover images only; give more --seeds")

    opened = Cache(cache)
    variants = [variant for way_variants in ways.values() for variant in way_variants]
    views = [view for variant in variants for view in variant.views() if view != CONTROL]
    networks: NetworkOutcomes | None = None
    if isinstance(wanted, NetworkConfig):
        from featurecache.runs.network_outcomes import network_outcomes  # torch

        networks = network_outcomes(wanted, variants, data, opened, progress, runs)
        training = networks.data.training
        pairs = [(rows.train, rows.val) for rows in networks.folds]
    else:
        training = load_training_data(
            wanted, list(dict.fromkeys(views)), data, opened, progress, runs=runs,
            where="" if listed(backbone) or listed(policy) else path,
        )  # fmt: skip
        training.check(wanted)
        pairs = training.folds(wanted)
        if control:
            training, pairs = with_control(training, pairs, wanted.validation.view)
    classes = list(training.dataset.classes)
    described = {"schedule": plan, "classes": classes, "rows": training.rows_hash()}
    described |= {"network": networks.base} if networks else {}
    described |= {"control": training.generated[CONTROL].digest()} if control else {}
    base = digest(described)
    run = Path(runs) / f"worth-{base[:8]}"
    make_folder(run / "trained")
    spaces = [name for names in training.space_names().values() for name in names]
    if not opened.note_run(run, spaces):
        notes.append(f"{cache} can't be written, so `gc` cannot know that this comparison uses it")

    hashes = training.vector_hashes()
    epochs = wanted.epochs * len(pairs)
    done, total = 0, epochs * len(ways) * seeds
    outcomes: dict[Way, list[Outcome]] = {way: [] for way in ways}

    def waiting(why: str) -> None:
        progress(done, total, f"worth ({why})")

    for position, seed in enumerate(numbers):  # by seed: whole seeds are done if it is stopped
        for way, settings in ways.items():
            variant = settings[position]
            seen = {view: hashes.get(view) for view in variant.views()}
            effective = variant.as_json()
            key = digest({"base": base, "schedule": effective, "vectors": seen})
            show = functools.partial(_show, progress, done, total, f"worth ({way}, seed {seed})")
            with claimed_run(run, waiting, f"training-{key[:16]}"):
                outcomes[way].append(
                    outcome_of(run, key, variant, networks or training, pairs, device, show)
                )
            done += epochs
            progress(done, total, f"worth ({way}, seed {seed})")

    cost: list[str] = []  # of bf16, which all trainings have alike
    first = next(iter(ways.values()))[0]
    if isinstance(first, Schedule) and isinstance(training, TrainingData):
        from featurecache.stages.heads.precision_cost import precision_cost  # torch

        cost = precision_cost(first, training, pairs, device)
    rights = {
        way: np.array([outcome.array() for outcome in way_outcomes])
        for way, way_outcomes in outcomes.items()
    }
    labels = np.concatenate([training.labels[validation] for _, validation in pairs])
    costs = _view_costs(training, opened)
    seconds_of_view = {cost["view"]: cost["seconds"] for cost in costs}
    compared = []
    for gain, settings, way_outcomes in zip(
        gains(rights, labels, classes, training.dataset.words),
        ways.values(),
        outcomes.values(),
        strict=True,
    ):
        phases = settings[0].model_dump(exclude_none=True)["phases"]
        views = phase_variants.used_views(phases)
        making = sum(
            seconds_of_view.get(view, 0.0) for view in views if view != phase_variants.NONE
        )
        seconds = round(sum(outcome.seconds for outcome in way_outcomes), 3)
        compared.append(replace(gain, views=views, seconds=seconds, views_seconds=round(making, 3)))
    result = Worth(
        run=str(run),
        verdict=verdict(compared),
        images=len(labels),
        epochs=wanted.epochs,
        seeds=numbers,
        ways=compared,
        views=costs,
        notes=notes + training.notes + cost,
    )
    durable.replace(run / "worth.json", canonical(asdict(result)) + b"\n")
    return result


def same_steps(schedule: Plan, where: Path) -> tuple[Json, list[str]]:
    """The schedule as a plain mapping without the keys that would change the number of steps, and
    a note for each removed key. Raises BadInput for a sweep."""
    plan = schedule.as_json()
    notes = []
    if "sweep" in plan:
        raise BadInput(f"{where}: sweep: worth compares trainings of one setting; remove it")
    if plan.pop("early_stopping", None) is not None:
        notes.append("early_stopping is ignored: all trainings need the same number of steps")
    return plan, notes


def _view_costs(training: TrainingData, cache: Cache) -> list[ViewCost]:
    """The cost of each view: the time to compute its vectors, and its pictures if
    `augment` stored them first."""
    items = {item.tobytes() for item in training.items}
    spaces = cache.spaces()
    costs: list[ViewCost] = []
    for view, vectors in training.spaces.items():
        key = vectors[0].key
        pictures = cache.space(picture_key(key["view"], jpeg_side(key)))
        seconds = sum(seconds_to_make(space, items, spaces) for space in (*vectors, pictures))
        costs.append({"view": view, "rows": len(items), "seconds": round(seconds, 3)})
    return costs


def _show(progress: Progress, before: int, total: int, what: str, done: int) -> None:
    progress(before + done, total, what)
