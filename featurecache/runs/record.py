"""The record of a run, `run.json`: everything that determines the run, and its results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol, TypeVar

import pydantic
from typing_extensions import TypedDict

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.features.space_files import BackboneKey
from featurecache.heads.run_files import TrialJson, Validation, fitting
from featurecache.heads.schedules import Schedule
from featurecache.json_files import MAX_RUN_JSON, Damage, Open, damaged_run, read_model
from featurecache.storage import durable, locks
from featurecache.training.epoch_metrics import NotNegative
from featurecache.training.sweep_settings import settings_of

RUN_FILE = "run.json"
RUN_FORMAT = 2
STARTED = "%Y-%m-%dT%H:%M:%SZ"


def _moment(text: str) -> str:
    time.strptime(text, STARTED)  # raises ValueError
    return text


class GeneratorRun(BadInput):
    """The run of a generator, where that of a head is needed."""


class RunBackbone(TypedDict):
    """The backbone's name, its part of the keys of the vectors, their precision, and the decoding
    of JPEGs if it is not that in full."""

    name: str
    key: Annotated[dict[str, Any], fitting(BackboneKey)]
    precision: str
    jpeg_side: NotRequired[pydantic.PositiveInt]


class RunRecord(Open):
    """The content of `run.json`: everything that determines a run and, once it is finished, its
    results."""

    model_config = pydantic.ConfigDict(frozen=False)
    _path: Path = pydantic.PrivateAttr(default=Path(RUN_FILE))  # where it was read
    format: pydantic.PositiveInt = RUN_FORMAT
    identity: str  # hash of the schedule, the classes, the rows and their vectors
    schedule: dict[str, Any]
    classes: list[str] = pydantic.Field(min_length=1)
    words: dict[str, str]  # readable names of classes
    backbones: list[RunBackbone] = pydantic.Field(min_length=1)  # concatenated in this order
    spaces: dict[str, list[str]]  # view -> the space of each backbone
    rows: str  # hash of items, labels and splits
    data: dict[str, Any]
    versions: dict[str, str]
    started: Annotated[str, pydantic.AfterValidator(_moment)]
    notes: list[str]
    seconds: NotNegative | None = None
    best: Validation | None = None
    last: Validation | None = None
    trials: list[TrialJson] | None = None  # of a sweep
    winner: pydantic.NonNegativeInt | None = None
    candidates: list[dict[str, Any]] | None = None  # of a training without a schedule
    warnings: list[str] | None = None  # phases and views that did harm
    baseline: dict[str, Any] | None = None  # validation of logistic regression on the same rows
    chosen: pydantic.NonNegativeInt | None = None  # index of the candidate that was saved
    network: dict[str, Any] | None = None  # the configuration of a run of train-network

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> RunRecord:
        if self.format > RUN_FORMAT:
            raise ValueError("format: written by a newer featurecache; upgrade to read it")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name occurs twice")
        if any(len(names) != len(self.backbones) for names in self.spaces.values()):
            raise ValueError("spaces: every view needs one space per backbone")
        seed = self.schedule.get("augment_seed")
        if type(seed) is not int or seed < 0:
            raise ValueError("schedule.augment_seed: not a whole number from 0")
        if (self.best is None) != (self.last is None):
            raise ValueError("best and last belong together")
        if len({frozenset(trial["setting"]) for trial in self.trials or []}) > 1:
            raise ValueError("trials: their settings have different keys")
        if self.winner is not None and self.winner >= len(self.trials or []):
            raise ValueError("winner: there is no such trial")
        return self

    @property
    def is_finished(self) -> bool:
        return self.best is not None


def read_record(run: str | Path, damage: Damage = damaged_run) -> RunRecord:
    """The record of a run, finished or not. Raises GeneratorRun, CannotRead,
    or the error of `damage` if it does not fit (DamagedRun)."""

    def check(value: dict[str, Any], _: bytes) -> None:
        if "generator" in value:
            raise GeneratorRun(f"{run}: a run of fit-generator, which has no head")

    record = read_model(Path(run) / RUN_FILE, RunRecord, MAX_RUN_JSON, damage, check)
    record._path = Path(run) / RUN_FILE
    if record.network is not None:  # the folder itself is the backbone, wherever it was moved
        for number, backbone in enumerate(record.backbones, 1):
            is_alone = len(record.backbones) == 1
            backbone["name"] = str(run if is_alone else Path(run) / f"fold-{number}")
    return record


def read_run(run: str | Path) -> RunRecord:
    """The record of a finished run. Raises BadInput if there is none in the folder, DamagedRun."""
    if not (Path(run) / RUN_FILE).exists():
        raise BadInput(f"{run}: not the folder of a run (no readable {RUN_FILE} in it)")
    record = read_record(run)
    if not record.is_finished:
        command = "train-head" if record.network is None else "train-network"
        raise BadInput(f"{run}: its training is not finished; run the same {command} again")
    return record


def schedule_of(record: RunRecord) -> Schedule:
    """The schedule of the head that a run saved; for a sweep, the winner's. Raises DamagedRun."""
    path = record._path
    try:
        schedule = yaml_files.validate(Schedule, record.schedule, "schedule")
        if schedule.sweep is None or record.winner is None:
            return schedule
        settings = settings_of(schedule, "schedule")
    except BadInput as error:
        raise damaged_run(path, str(error)) from error
    if record.winner >= len(settings):
        raise damaged_run(path, f"winner: the sweep has {len(settings)} settings")
    return settings[record.winner].schedule


class _AnyRecord(Protocol):
    identity: str

    @property
    def is_finished(self) -> bool: ...


Record = TypeVar("Record", bound=_AnyRecord)


def finished_record(run: Path, identity: str) -> RunRecord | None:
    """The record of the same training if it is finished; None if it must be started or resumed."""
    return finished(run, identity, read_record)


def finished(run: Path, identity: str, read: Callable[[Path], Record]) -> Record | None:
    """`finished_record` of any kind of run, whose records `read` reads."""
    if not has_record(run):
        return None
    try:
        record = read(run)
    except BadInput as error:
        raise BadInput(f"{error}; choose another --out") from error
    if record.identity != identity:
        raise BadInput(
            f"{run}: holds a run with other settings or other data; choose another --out"
        )
    return record if record.is_finished else None


def has_record(run: str | Path) -> bool:
    """Is this the folder of a run? Raises BadInput for a file, and for a folder of other things, in
    neither of which a run can be made."""
    folder = Path(run)
    if (folder / RUN_FILE).is_file():
        return True
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{run}: a file, not the folder of a run; choose another --out")
    # A run that was killed at its start may leave hidden files.
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise BadInput(f"{run}: neither empty nor a run folder; choose another --out")
    return False


def make_folder(run: Path, option: str = "--out") -> None:
    """Make the folder of a run if it does not exist. Raises BadInput that names the option for
    another folder."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        durable.sync_folder(run.parent)
    except OSError as error:
        raise BadInput(f"can't create {run} ({error.strerror}); give another {option}") from error


def write_run(run: Path, record: pydantic.BaseModel) -> None:
    durable.replace(
        run / RUN_FILE, record.model_dump_json(indent=1, exclude_none=True).encode() + b"\n"
    )


@contextlib.contextmanager
def claimed_training(
    run: Path, finished: Callable[[], Record | None], waiting: Callable[[str], None]
) -> Iterator[Record | None]:
    """The record of a training that is `finished`, by this time or by the process that is waited
    for; else None, and this process alone may train in the run folder, which exists then."""
    record = finished()
    if record is not None:
        yield record
        return
    make_folder(run)
    with claimed_run(run, waiting):
        yield finished()


def claimed_run(
    run: Path, waiting: Callable[[str], None], name: str = "training"
) -> AbstractContextManager[None]:
    """Let one process at a time train in a run folder. The next one waits, and calls `waiting` with
    the reason. Trainings that share a folder have separate names."""
    return locks.claimed(
        run / f".{name}.lock",
        lambda holder: waiting(f"waiting for {holder}, which is training this run"),
    )
