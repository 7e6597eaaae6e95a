"""Worth: was the augmentation worth it? The same heads are trained with it and without it and
compared pair by pair, under several learning-rate schedules: what gains under one may lose under
another."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic
import yaml

from featurecache import yaml_files
from featurecache.errors import BadInput, DamagedRun, UnknownName
from featurecache.executors import Progress, silent
from featurecache.features.costs import seconds_to_make
from featurecache.features.store import Cache
from featurecache.heads import phase_variants
from featurecache.heads.run_files import NotNegative
from featurecache.heads.schedules import Schedule, find_schedule, read_schedule
from featurecache.images.view_names import ViewName
from featurecache.json_files import MAX_RUN_JSON, Strict, damaged_run, read_model
from featurecache.keys import Json, canonical, digest, picture_key
from featurecache.runs.record import make_folder
from featurecache.runs.training_data import TrainingData, load_training_data
from featurecache.stages.heads.train_head import DEVICES, claimed_run, overridden
from featurecache.storage import durable
from featurecache.study.gains import CLEAN, SHUFFLED, WRITTEN, Gain, Way, gains, verdict

if TYPE_CHECKING:
    from featurecache.heads.training import Trained

LR_SCHEDULES = ("constant", "cosine")  # that are tried beside the schedule's own

Ways = dict[Way, list[Schedule]]  # a schedule for each seed


@dataclass(frozen=True)
class Worth:
    """The gain of each way in the order they were trained, what the views cost, {view, rows,
    seconds}, and what there is to say."""

    run: str
    verdict: str
    images: int  # that were validated on
    epochs: int  # of each training
    seeds: list[int]
    ways: list[Gain]
    views: list[dict[str, Any]]
    notes: list[str]


class Kept(Strict):
    """A file of `trained/`: one training, and which validation images its head has right."""

    schedule: dict[str, Any]
    images: pydantic.PositiveInt
    right: str = pydantic.Field(pattern=r"^[0-9a-f]*$")  # a bit an image, fold after fold
    seconds: NotNegative

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Kept:
        if len(self.right) != 2 * -(-self.images // 8):
            raise ValueError(f"not the bits of {self.images} images")
        return self

    def array(self) -> np.ndarray:
        """(images,) bool."""
        packed = np.frombuffer(bytes.fromhex(self.right), np.uint8)
        return np.unpackbits(packed, count=self.images).astype(bool)


def worth(
    schedule: str | Path,
    *,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    lr_schedule: str | Sequence[str] = (),
    seeds: int = 5,
    data: str | Path = "data",
    cache: str | Path = "data/cache",
    runs: str | Path = "runs",
    device: str = "auto",
    progress: Progress = silent,
) -> Worth:
    """Train a schedule as it is written, on clean images alone, and in another order of its phases,
    under every learning-rate schedule and with every seed; and compare.

    Where the schedule has several policies, or `policy` names views, each policy alone takes the
    place of all augmented views too. `lr_schedule` are values of the schedule's key of that name,
    in YAML: by default constant, cosine and the schedule's own. `backbone` (one name or several)
    overrides the schedule's. Seeds count from the schedule's:
    ways of one seed have the same initial weights, order of rows and dropout. All trainings have
    the same number of epochs and the same validation images.

    A folder in `runs` keeps what each training came to. None is done twice, also when policies,
    learning-rate schedules or seeds are added, and a killed one goes on. Raises BadInput or
    NotCached before the first step.
    """
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    path = find_schedule(str(schedule))
    wanted = overridden(read_schedule(path), backbone)
    if not 1 <= seeds <= 2**32 - wanted.seed:
        raise BadInput(f"seeds {seeds}: must be 1 or more, and every seed below 2**32")
    numbers = list(range(wanted.seed, wanted.seed + seeds))
    plan, notes = same_steps(wanted, path)
    rates = _rates(plan, [lr_schedule] if isinstance(lr_schedule, str) else lr_schedule)
    given = [policy] if isinstance(policy, str) else policy
    ways = ways_of(plan, _shown(plan, given, path), rates, numbers)
    if all(way.order == WRITTEN for way in ways):
        notes.append("every epoch shows the same, so there is no other order of the phases")
    if seeds == 1:
        notes.append("with one seed the intervals are over images alone; give more --seeds")

    opened = Cache(cache)
    views = [view for settings in ways.values() for one in settings for view in one.views()]
    found = load_training_data(wanted, list(dict.fromkeys(views)), data, opened, progress)
    found.check(wanted)
    classes = list(found.dataset.classes)
    pairs = found.folds(wanted)
    base = digest({"schedule": plan, "classes": classes, "rows": found.rows_hash()})
    run = Path(runs) / f"worth-{base[:8]}"
    make_folder(run / "trained")
    if not opened.note_run(run, [name for each in found.space_names().values() for name in each]):
        notes.append(f"{cache} can't be written, so `gc` may not spare what this stands on")

    hashes = found.vector_hashes()
    epochs = wanted.epochs * len(pairs)
    done, total = 0, epochs * len(ways) * seeds
    kept: dict[Way, list[Kept]] = {way: [] for way in ways}

    def waiting(why: str) -> None:
        progress(done, total, f"worth ({why})")

    for place, seed in enumerate(numbers):  # seed after seed: stopped early, some are complete
        for way, settings in ways.items():
            one = settings[place]
            seen = {view: hashes[view] for view in one.views()}
            effective = one.model_dump(mode="json", exclude_none=True)
            key = digest({"base": base, "schedule": effective, "vectors": seen})
            show = functools.partial(_show, progress, done, total, f"worth ({way}, seed {seed})")
            with claimed_run(run, waiting, f"training-{key[:16]}"):
                kept[way].append(_trained(run, key, one, found, pairs, device, show))
            done += epochs
            progress(done, total, f"worth ({way}, seed {seed})")

    rights = {way: np.array([one.array() for one in of_way]) for way, of_way in kept.items()}
    held = np.concatenate([found.labels[held] for _, held in pairs])
    costs = _view_costs(found, opened)
    of_views = {cost["view"]: cost["seconds"] for cost in costs}
    compared = []
    for gain, settings, of_way in zip(
        gains(rights, held, classes, found.dataset.words), ways.values(), kept.values(), strict=True
    ):
        shown = phase_variants.shown_views(settings[0].model_dump(exclude_none=True)["phases"])
        made = sum(of_views[view] for view in shown if view != phase_variants.NONE)
        seconds = round(sum(one.seconds for one in of_way), 3)
        compared.append(replace(gain, views=shown, seconds=seconds, views_seconds=round(made, 3)))
    result = Worth(
        str(run), verdict(compared), len(held), wanted.epochs, numbers, compared, costs, notes
        + found.notes,
    )  # fmt: skip
    durable.replace(run / "worth.json", canonical(asdict(result)) + b"\n")
    return result


def same_steps(schedule: Schedule, where: Path) -> tuple[Json, list[str]]:
    """The schedule as a plain mapping, without what would give trainings other numbers of steps,
    and notes of what that was. Raises BadInput for a sweep."""
    plan = schedule.model_dump(mode="json", exclude_none=True)
    notes = []
    if "sweep" in plan:
        raise BadInput(f"{where}: sweep: worth compares trainings of one setting; take it out")
    if plan.pop("early_stopping", None) is not None:
        notes.append("early_stopping is left out: all trainings are to have as many steps")
    return plan, notes


def ways_of(
    plan: Json,
    shown: Mapping[str, phase_variants.Phases],
    rates: Mapping[str, Json],
    seeds: Sequence[int],
) -> Ways:
    """Clean, then each of `shown` (policy -> phases) in its order and in others, under each of
    `rates` (the name of a learning-rate schedule -> the keys that set it in a plan)."""
    ways: Ways = {}
    for rate, keys in rates.items():
        base = {name: value for name, value in plan.items() if name != "lr_schedule"} | keys

        def add(way: Way, of_seeds: Sequence[phase_variants.Phases], base: Json = base) -> None:
            ways[way] = [
                Schedule.model_validate(base | {"phases": phases, "seed": seed})
                for phases, seed in zip(of_seeds, seeds, strict=True)
            ]

        add(Way(CLEAN, WRITTEN, rate), [phase_variants.clean(plan["phases"])] * len(seeds))
        for policy, phases in shown.items():
            add(Way(policy, WRITTEN, rate), [phases] * len(seeds))
            orders = [phase_variants.shuffled(phases, seed) for seed in seeds]
            if all(orders):
                add(Way(policy, SHUFFLED, rate), [order for order in orders if order])
    return ways


def _shown(plan: Json, given: Sequence[str], where: Path) -> dict[str, phase_variants.Phases]:
    """Policy -> phases: the written ones, and where there are several policies, or views are given,
    those through each policy alone."""
    written = plan["phases"]
    own = _by_policy(phase_variants.augmented_views(written))
    if not own:
        raise BadInput(
            f"{where}: phases: every view is `none`, so there is no augmentation to weigh; "
            "show another in some phase, as in {views: spatial_1, epochs: 4}"
        )
    if phase_variants.NONE in given:
        raise BadInput("--policy none: is compared with in any case; give augmented views")
    shown = {"+".join(own): written}
    views = [str(ViewName.parse(view).with_draw()) for view in given]
    for policy, draws in _by_policy(views or phase_variants.augmented_views(written)).items():
        phases = phase_variants.through(written, draws)
        if phases != written:
            shown["+".join(draws) if policy in shown else policy] = phases
    return shown


def _by_policy(views: Sequence[str]) -> dict[str, list[str]]:
    """policy -> its views, each once."""
    found: dict[str, list[str]] = {}
    for view in dict.fromkeys(views):
        found.setdefault(ViewName.parse(view).policy, []).append(view)
    return found


def _rates(plan: Json, given: Sequence[str]) -> dict[str, Json]:
    """The name of each learning-rate schedule -> the keys that set it in a plan. Without any given:
    LR_SCHEDULES, and the plan's own. Raises BadInput for what a schedule doesn't take."""
    values = {
        text: yaml_files.plain_value(yaml_files.parse_yaml(text, "--lr-schedule")) for text in given
    }
    if not given:
        own = plan.get("lr_schedule", {"name": "constant"})
        name = yaml.safe_dump(own, default_flow_style=True, width=1000).strip()
        values = {name: name for name in LR_SCHEDULES} | {name: own}
    found: dict[str, Json] = {}
    checked: list[Schedule] = []
    for name, value in values.items():
        # It is what a schedule does that says nothing, and is named by saying nothing here too.
        keys = {} if value in ("constant", {"name": "constant"}) else {"lr_schedule": value}
        others = {n: v for n, v in plan.items() if n != "lr_schedule"}
        schedule = yaml_files.validate(Schedule, others | keys, f"--lr-schedule {name}")
        if schedule not in checked:
            checked.append(schedule)
            found[name] = keys
    return found


def _trained(
    run: Path,
    key: str,
    schedule: Schedule,
    found: TrainingData,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    device: str,
    show: Callable[[int], None],
) -> Kept:
    """What one training came to: read, where it was done before, or trained and kept."""
    path, scratch = run / "trained" / f"{key[:16]}.json", run / f"training-{key[:16]}"
    if not path.is_file():
        # torch is imported only now, when nothing the user wrote can still be wrong.
        from featurecache.heads.training import train

        rows = itertools.count(1)

        def keep(trained: Trained) -> None:
            right = _right(trained, schedule, found, pairs)
            kept = Kept(
                schedule=schedule.model_dump(mode="json", exclude_none=True),
                images=len(right),
                right=np.packbits(right).tobytes().hex(),
                seconds=round(sum(row["seconds"] for row in trained.rows), 3),
            )
            durable.replace(path, kept.model_dump_json().encode() + b"\n")

        train(
            found.vectors,
            found.labels,
            found.items,
            schedule,
            found.dataset.classes,
            scratch,
            identity=key,
            pairs=pairs,
            on_epoch=lambda row: show(next(rows)),
            on_done=keep,
            device=device,
        )
    shutil.rmtree(scratch, ignore_errors=True)  # also what a kill left behind
    kept = read_model(path, Kept, MAX_RUN_JSON, _damaged)
    if kept.schedule != schedule.model_dump(mode="json", exclude_none=True):
        raise _damaged(path, "schedule: not the one that its name is the hash of")
    images = sum(len(held) for _, held in pairs)
    if kept.images != images:
        raise _damaged(path, f"images: {kept.images}, but {images} are validated on")
    return kept


def _damaged(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, what, "delete it to train that anew")


def _right(
    trained: Trained,
    schedule: Schedule,
    found: TrainingData,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """(N,) bool: which of the validation rows of all folds the head of their fold has right."""
    vectors, head = found.vectors[schedule.validation.view], trained.head
    parts = []
    for place, (_, held) in enumerate(pairs):
        likely = head.network(place).predict_proba(vectors[held])
        parts.append(likely.argmax(1) == found.labels[held])
    return np.concatenate(parts)


def _view_costs(found: TrainingData, cache: Cache) -> list[dict[str, Any]]:
    """{view, rows, seconds} of each view: what its vectors took to make, and its pictures, where
    `augment` kept them first."""
    items = {row.item for row in found.rows}
    spaces = cache.spaces()
    costs = []
    for view, of_view in found.spaces.items():
        pictures = cache.space(picture_key(of_view[0].key["view"]))
        seconds = sum(seconds_to_make(one, items, spaces) for one in (*of_view, pictures))
        costs.append({"view": view, "rows": len(items), "seconds": round(seconds, 3)})
    return costs


def _show(progress: Progress, before: int, total: int, what: str, done: int) -> None:
    progress(before + done, total, what)
