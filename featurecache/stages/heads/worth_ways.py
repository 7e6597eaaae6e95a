"""The ways of training that `worth` compares: clean, through each policy, and the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featurecache import keys as hashes
from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.heads import phase_variants
from featurecache.heads.schedules import Schedule, is_written_as_solved
from featurecache.images.datasets import Dataset, DataSource, open_dataset
from featurecache.images.view_names import ViewName
from featurecache.images.views import GENERATED
from featurecache.keys import Json
from featurecache.networks.configs import NetworkConfig
from featurecache.runs.generated_vectors import is_generated
from featurecache.runs.image_pools import ImagePool
from featurecache.runs.training_data import TrainingData
from featurecache.study.gains import CLEAN, SHUFFLED, WRITTEN, Way

LR_SCHEDULES = ("constant", "cosine")  # compared with the schedule's own
SHARES = (0.25, 0.5, 0.75)  # of the views, where neither schedule nor options say
CONTROL = "more real images"  # as a view and a policy
Plan = Schedule | NetworkConfig
Ways = dict[Way, list[Any]]  # a schedule, or a configuration of a network, for each seed
Pairs = list[tuple[np.ndarray, np.ndarray]]


def ways_of(
    plan: Json,
    phases_by_policy: Mapping[str, phase_variants.Phases],
    rates: Mapping[str, Json],
    seeds: Sequence[int],
    kind: type[Plan],
) -> Ways:
    """Clean, then each of `phases_by_policy` in its own and in shuffled order, under each of
    `rates` (the name of a learning-rate schedule -> the keys that set it in a plan)."""
    ways: Ways = {}
    for rate, keys in rates.items():
        base = {name: value for name, value in plan.items() if name != "lr_schedule"} | keys

        def add(way: Way, seed_phases: Sequence[phase_variants.Phases], base: Json = base) -> None:
            ways[way] = [
                kind.model_validate(base | {"phases": phases, "seed": seed})
                for phases, seed in zip(seed_phases, seeds, strict=True)
            ]

        add(Way(CLEAN, WRITTEN, rate), [phase_variants.clean(plan["phases"])] * len(seeds))
        for policy, phases in phases_by_policy.items():
            add(Way(policy, WRITTEN, rate), [phases] * len(seeds))
            orders = [phase_variants.shuffled(phases, seed) for seed in seeds]
            if all(orders):
                add(Way(policy, SHUFFLED, rate), [order for order in orders if order])
    return ways


def phases_by_policy(
    plan: Json,
    policies: Sequence[str],
    made: Sequence[str],
    shares: float | Sequence[float],
    where: Path,
) -> dict[str, phase_variants.Phases]:
    """Policy -> phases, with each of the `shares`. The schedule's phases come first; where it has
    several policies, or `policies` names views, the phases through each policy alone follow, and
    last those with the views `made` of other images. Raises BadInput."""
    written = plan["phases"]
    augmented = _by_policy(phase_variants.augmented_views(written))
    if phase_variants.NONE in policies:
        raise BadInput("--view none: clean training is always compared; give augmented views")
    views = [
        view if is_generated(view) else str(ViewName.parse(view).with_draw()) for view in policies
    ]
    if (made or views) and not augmented:
        shares = shares or SHARES
        views = views or [*made]
    result: dict[str, phase_variants.Phases] = {}
    if augmented:
        result["+".join(augmented)] = written
    elif views:
        written = phase_variants.with_share([{**p, "views": {views[0]: 1.0}} for p in written], 0.5)
    else:
        raise BadInput(
            f"{where}: phases: every view is `none`, so there is no augmentation to compare; "
            "use another view in some phase, for example {views: spatial_1, epochs: 4}, or give "
            "--view"
        )
    for policy, draws in _by_policy(views or phase_variants.augmented_views(written)).items():
        phases = phase_variants.with_views(written, draws)
        if phases not in result.values():
            result["+".join(draws) if policy in result else policy] = phases
    result |= {view: phase_variants.with_views(written, [view]) for view in made}
    return phase_variants.with_shares(result, shares)


def _by_policy(views: Sequence[str]) -> dict[str, list[str]]:
    """Policy -> its distinct views."""
    draws_by_policy: dict[str, list[str]] = {}
    for view in dict.fromkeys(views):
        # The folder of a dataset may end in a number.
        is_folder = is_generated(view) and Path(view.removeprefix(GENERATED)).is_dir()
        policy = view if is_folder else ViewName.parse(view).policy
        draws_by_policy.setdefault(policy, []).append(view)
    return draws_by_policy


def rates_of(plan: Json, texts: Sequence[str], kind: type[Plan]) -> dict[str, Json]:
    """The name of each learning-rate schedule -> the keys that set it in a plan. Without `texts`:
    LR_SCHEDULES and the plan's own; for a head that is solved, which has no learning rate, only
    `constant`. Raises BadInput for an invalid learning-rate schedule."""
    values = {
        text: yaml_files.plain_value(yaml_files.parse_yaml(text, "--lr-schedule")) for text in texts
    }
    if not texts:
        written = plan.get("lr_schedule", {"name": "constant"})
        name = yaml.safe_dump(written, default_flow_style=True, width=1000).strip()
        names = LR_SCHEDULES[:1] if is_written_as_solved(plan) else LR_SCHEDULES
        values = {known: known for known in names} | {name: written}
    keys_by_name: dict[str, Json] = {}
    checked: list[Plan] = []
    for name, value in values.items():
        # `constant` is the default, so it is written as an absent key.
        keys = {} if value in ("constant", {"name": "constant"}) else {"lr_schedule": value}
        others = {n: v for n, v in plan.items() if n != "lr_schedule"}
        schedule = yaml_files.validate(kind, others | keys, f"--lr-schedule {name}")
        if schedule not in checked:
            checked.append(schedule)
            keys_by_name[name] = keys
    return keys_by_name


def without_generated(data: DataSource) -> tuple[DataSource, list[str]]:
    """Data without its generated images, and the views of their datasets."""
    if isinstance(data, str | Path):
        return data, []
    dataset = open_dataset(data)
    if not dataset.generated:
        return dataset, []
    real = tuple(sample for sample in dataset if not sample.origin)
    folders = set(dataset.generated)
    locations = [name for name in dataset.locations if str(Path(name)) not in folders]
    part: Dataset = replace(dataset, samples=real, locations=tuple(locations))
    return part, [f"{GENERATED}{folder}" for folder in dataset.generated]


def with_control(training: TrainingData, pairs: Pairs, view: str) -> tuple[TrainingData, Pairs]:
    """The training images that no generator has seen become the view CONTROL, and are kept out of
    all trainings. `view` is the clean one. Raises BadInput if there are too few."""
    if len(pairs) > 1:
        raise BadInput("--control: folds leave no image that nothing sees; validate on a split")
    ((train, validation),) = pairs
    fitted = training.fitted.items()
    seen = set().union(*(items for source, items in fitted if source.kind == "generator"))
    for generated in training.generated.values():
        (number,) = generated.generators_of_folds(pairs, training.items)
        seen |= {item.tobytes() for item in generated.items[number].common_items}
    if not seen:
        raise BadInput("--control: no view of this comparison is made by a generator")
    is_spare = np.array([training.rows[row].item not in seen for row in train], bool)
    spare, rest = train[is_spare], train[~is_spare]
    for side, what in ((spare, "unseen"), (rest, "seen")):
        missing = sorted(set(training.labels.tolist()) - set(training.labels[side].tolist()))
        if missing:
            raise BadInput(
                f"--control: class {training.dataset.classes[missing[0]]!r} has no training image "
                f"{what} by the generator; fit it with validation: {{folds: 2}}, and give its "
                "first fold, so that the other half are the images to compare with"
            )
    pool = ImagePool(
        name=CONTROL,
        draw=None,
        key={"control": hashes.digest([training.rows[row].item.hex() for row in spare])},
        classes=training.dataset.classes,
        labels=training.labels[spare],
        vectors=np.asarray(training.vectors[view][spare], np.float32),
    )
    note = (
        f"{CONTROL}: {len(spare):,} training images that the generator has not seen; everything "
        f"else is trained on the other {len(rest):,}"
    )
    changed = replace(
        training,
        generated={**training.generated, CONTROL: pool},
        notes=[*training.notes, note],
    )
    return changed, [(rest, validation)]
