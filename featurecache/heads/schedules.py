"""Schedules, written in YAML: which views to train on, for how long, with which optimizer.

Reading a schedule reports everything that is wrong with it before any work begins, and imports no
torch. The files under `shipped/` are found by their file name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field

from featurecache import yaml_files
from featurecache.errors import BadInput, UnknownName
from featurecache.heads.settings import TRAINED_KINDS, Features, HeadSettings, Input, Pruning
from featurecache.training.curriculum import Phase, Planned, TrainingPlan, planned_epochs
from featurecache.training.settings import YamlModel


class BackboneChoice(YamlModel):
    """The backbone whose vectors to train on. A setting that is None matches any value, as long as
    the cache holds only one."""

    name: str = Field(min_length=1)
    input_size: int | None = Field(default=None, ge=1)  # pixels, both sides
    crop: float | None = Field(default=None, gt=0, le=1)
    interpolation: str | None = None
    precision: str | None = None
    weights: str | None = Field(default=None, min_length=4)  # first digits of their SHA-256
    layer: str | None = Field(default=None, min_length=1)
    pooling: str | None = Field(default=None, min_length=1)
    jpeg_side: int | None = Field(default=None, ge=1)


def backbone_choice(
    name: str, setting: Mapping[str, Any] | None = None, where: str = "backbone"
) -> BackboneChoice:
    """The choice of a backbone with this setting. Raises BadInput, which names `where`, for a wrong
    value."""
    return yaml_files.validate(BackboneChoice, {**(setting or {}), "name": name}, where)


class Schedule(TrainingPlan):
    """Everything that determines a training, except the vectors."""

    backbone: tuple[BackboneChoice, ...]  # the vectors of several are concatenated, in order
    input: Input | None = None
    head: HeadSettings = HeadSettings()
    features: Features | None = None
    pruning: Pruning | None = None
    precision: Literal["bf16"] | None = None  # of matrix products in training; None is f32

    SWEPT: ClassVar = (*TrainingPlan.SWEPT, "input", "features", "pruning")

    @pydantic.field_validator("backbone", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        entries = value if isinstance(value, list | tuple) else [value]
        named = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
        if not named or not all(isinstance(entry, dict | BackboneChoice) for entry in named):
            raise ValueError("expected a name, a mapping with a name, or a list of them")
        if entries is value:
            return tuple(named)
        # Validated here so that errors do not mention a list index that the user did not write.
        return (BackboneChoice.model_validate(named[0]),)

    @pydantic.field_validator("precision", mode="before")
    @classmethod
    def _f32_is_the_default(cls, value: Any) -> Any:
        return None if value == "f32" else value

    @pydantic.field_validator("backbone")
    @classmethod
    def _each_once(cls, value: tuple[BackboneChoice, ...]) -> tuple[BackboneChoice, ...]:
        for number, choice in enumerate(value):
            if choice in value[:number]:
                raise ValueError(f"{choice.name} is listed twice with the same settings; keep one")
        return value

    @pydantic.field_serializer("backbone", mode="wrap")
    def _as_written(self, value: Any, dump: pydantic.SerializerFunctionWrapHandler) -> Any:
        dumped = dump(value)  # a single backbone is a mapping in the identity of existing runs
        return dumped[0] if len(dumped) == 1 else dumped

    @pydantic.model_validator(mode="after")
    def _norm_needs_rows(self) -> Schedule:
        if self.batch_size == 1 and self.head.norm == "batch" and self.head.hidden:
            raise ValueError("batch_size: batch norm needs at least 2; or use head.norm: layer")
        return self

    @pydantic.model_validator(mode="after")
    def _an_end(self) -> Schedule:
        if self.early_stopping is not None and self.pruning is not None:
            raise ValueError("early_stopping would end before pruning begins; remove one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _solvable(self) -> Schedule:
        if self.head.kind == "attention" and (self.input is not None or len(self.backbone) > 1):
            raise ValueError("head: kind attention takes maps of one backbone, without input")
        if self.head.is_solved and (reason := self._untrainable()):
            raise ValueError(f"head: kind {self.head.kind} {reason}")
        if self.optimizer.name == "lbfgs" and (reason := self._unsolvable()):
            raise ValueError(f"optimizer: lbfgs {reason}")
        return self

    def _untrainable(self) -> str:
        """The reason why a head without a training loop can't have these settings; else empty."""
        parts = "optimizer lr_schedule early_stopping label_smoothing mixup features pruning"
        for name in (*parts.split(), "class_weights", "batch_size", "precision"):
            if getattr(self, name) != type(self).model_fields[name].default:
                return f"is solved without {name}; remove one of them"
        if self.head.kind == "logistic" and self.input is not None:
            return "chooses the scaling of its input itself; remove input"
        return self._phase_to_solve()

    def _phase_to_solve(self) -> str:
        first, *others = self.phases
        settings = (first.ramp_to, first.order, first.optimizer.lr, first.optimizer.weight_decay)
        if others or first.epochs != 1 or any(setting is not None for setting in settings):
            return "solves one phase with epochs: 1 and without ramp_to, order and optimizer"
        return ""

    def _unsolvable(self) -> str:
        """The reason why lbfgs cannot solve this schedule; empty if it can."""
        if self.head.hidden or self.head.queries:
            return "solves linear heads only; write head: {hidden: []}"
        parts = "lr_schedule early_stopping label_smoothing mixup features pruning precision"
        for name in parts.split():
            if getattr(self, name) is not None:
                return f"does not work with {name}; remove one of them"
        for part, name in ((self.optimizer, "lr"), (self, "batch_size")):
            if getattr(part, name) != type(part).model_fields[name].default:
                return f"has no {name}; remove it"
        head = self.head
        if head.input_dropout or head.l1 or head.l2 or self.class_weights == "errors":
            return "does not work with input_dropout, l1, l2 or class_weights: errors; remove them"
        return self._phase_to_solve()

    @property
    def is_solved(self) -> bool:
        """Whether its heads are solved in one epoch, not trained in steps."""
        return self.head.is_solved or self.optimizer.name == "lbfgs"

    @property
    def is_read_in_blocks(self) -> bool:
        """Whether the head is solved from blocks of the vectors, without minibatches."""
        return self.head.is_solved and self.sweep is None

    def plan(self) -> list[Planned]:
        """The epochs in order. Those after pruning form one more phase, on the final views of the
        last phase."""
        phases = list(self.phases)
        if self.pruning is not None:
            last = phases[-1]
            views = last.shares(last.epochs)
            phases.append(Phase(views=views, epochs=self.pruning.epochs, optimizer=last.optimizer))
        return planned_epochs(phases)

    def check_fits(self, classes: Sequence[str], rows: int, width: int) -> None:
        """Raise BadInput for weights of classes that do not exist, for channels that vectors of
        this width can't have, or for more PCA components than `rows` training vectors can have."""
        self.check_classes(classes)
        if self.head.channels is not None and width % self.head.channels:
            raise BadInput(
                f"head.channels: vectors of {width} numbers can't be maps of {self.head.channels} "
                f"channels; choose a divisor of {width}"
            )
        limit = min(rows - 1, width)
        if self.input is not None and type(self.input.pca) is int and self.input.pca > limit:
            raise BadInput(
                f"input.pca: {self.input.pca} components of {rows} training vectors of width "
                f"{width}; there can be at most {limit}"
            )


def is_written_as_solved(written: Mapping[str, Any]) -> bool:
    """`Schedule.is_solved` of a schedule as it is written in YAML, which may be invalid."""
    head, optimizer = written.get("head"), written.get("optimizer")
    kind = head.get("kind") if isinstance(head, Mapping) else None
    solver = optimizer.get("name") if isinstance(optimizer, Mapping) else None
    return kind not in TRAINED_KINDS or solver == "lbfgs"


def read_schedule(path: Path) -> Schedule:
    """The schedule in a YAML file. Raises BadInput that names the file and every wrong entry."""
    return yaml_files.validate(Schedule, yaml_files.read_mapping(path), path)


def shipped() -> dict[str, Path]:
    """The schedules that come with the package, by file name."""
    folder = Path(__file__).parent / "shipped"
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_schedule(name: str) -> Path:
    """The schedule file that `name` refers to: an existing path, else the shipped schedule.

    Raises UnknownName, with the shipped ones, if it is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if name not in shipped():
        where = f"there is no such file, and the shipped schedules are {', '.join(shipped())}"
        raise UnknownName("schedule", name, shipped(), where)
    return shipped()[name]
