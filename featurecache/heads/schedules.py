"""Schedules, written in YAML: which views to train on, for how long, with which optimizer.

Reading a schedule reports everything that is wrong with it before any work begins, and imports no
torch. The files under `shipped/` are found by their file name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field

from featurecache import yaml_files
from featurecache.errors import BadInput, UnknownName
from featurecache.heads.settings import Features, HeadSpec, Input, Order, Pruning, Sweep
from featurecache.training.settings import STRICT, EarlyStopping, LrSchedule, Optimizer


class BackboneChoice(pydantic.BaseModel):
    """The backbone whose vectors to train on. A setting that is None matches any value, as long as
    the cache holds only one."""

    model_config = STRICT

    name: str = Field(min_length=1)
    input_size: int | None = Field(default=None, ge=1)  # pixels, both sides
    crop: float | None = Field(default=None, gt=0, le=1)
    interpolation: str | None = None
    precision: str | None = None
    weights: str | None = Field(default=None, min_length=4)  # first digits of their SHA-256
    layer: str | None = Field(default=None, min_length=1)
    pooling: str | None = Field(default=None, min_length=1)


def backbone_choice(
    name: str, setting: Mapping[str, Any] | None = None, where: str = "backbone"
) -> BackboneChoice:
    """The choice of a backbone with this setting. Raises BadInput, which names `where`, for a wrong
    value."""
    return yaml_files.validate(BackboneChoice, {**(setting or {}), "name": name}, where)


class PhaseOptimizer(pydantic.BaseModel):
    """Optimizer settings that a phase overrides; None keeps the schedule's."""

    model_config = STRICT

    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class Phase(pydantic.BaseModel):
    """Epochs on one view or a mixture of views. `views` maps names to shares that sum to 1.

    In YAML `views` is a name, a list of names (equal shares) or the mapping itself. With `ramp_to`
    the shares change in equal steps and reach those of `ramp_to` in the last epoch.
    """

    model_config = STRICT

    views: dict[str, float]
    ramp_to: dict[str, float] | None = None
    epochs: int = Field(ge=1)
    optimizer: PhaseOptimizer = PhaseOptimizer()
    order: Order | None = None

    @pydantic.field_validator("views", "ramp_to", mode="before")
    @classmethod
    def _shares(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if value is None and info.field_name == "ramp_to":
            return None
        if isinstance(value, str) and value:
            return {value: 1.0}
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            if len(set(value)) < len(value):
                raise ValueError(f"a view is listed twice in {value}; give shares instead")
            return {name: 1 / len(value) for name in value}
        if isinstance(value, dict) and value and all(isinstance(v, str) and v for v in value):
            return value
        raise ValueError("expected a view, a list of views, or a mapping of views to shares")

    @pydantic.field_validator("views", "ramp_to")
    @classmethod
    def _sum_to_one(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is None:
            return None
        if any(share <= 0 for share in value.values()):
            raise ValueError(f"every share must be above 0, not {value}")
        total = math.fsum(value.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares must sum to 1, not to {total:.6g}")
        return dict(sorted(value.items()))  # so that the order in the file changes no draw

    @pydantic.model_validator(mode="after")
    def _room_for_a_ramp(self) -> Phase:
        if self.ramp_to is not None and self.epochs < 2:
            raise ValueError(
                "ramp_to needs at least 2 epochs: the first uses `views`, the last `ramp_to`"
            )
        return self

    def shares(self, epoch: int) -> dict[str, float]:
        """The share of every view in this `epoch` of the phase, counted from 1."""
        if self.ramp_to is None:
            return self.views
        progress = (epoch - 1) / (self.epochs - 1)
        views = sorted({*self.views, *self.ramp_to})
        shares = {
            view: (1 - progress) * self.views.get(view, 0.0)
            + progress * self.ramp_to.get(view, 0.0)
            for view in views
        }
        return {view: share for view, share in shares.items() if share > 0}


class Planned(NamedTuple):
    """One epoch of a training; all numbers count from 1."""

    epoch: int  # over all phases
    number: int  # of the phase
    phase: Phase
    in_phase: int  # the epoch's number in its phase


def _class_weights(value: Any) -> Any:
    named = isinstance(value, dict) and value
    if value in ("balanced", "errors"):
        return value
    if named and all(type(w) in (int, float) and 0 < w < math.inf for w in value.values()):
        return {name: float(weight) for name, weight in value.items()}
    raise ValueError("expected balanced, errors, or a mapping of classes to weights above 0")


# `balanced`: all classes count the same, however many rows they have. `errors`: a class counts
# more, the higher its error rate in the last epoch's validation (paper 003's "more for weak
# classes"). A mapping: the weights of the classes it names; others have 1.
ClassWeights = Annotated[
    Literal["balanced", "errors"] | dict[str, float], pydantic.PlainValidator(_class_weights)
]


class Validation(pydantic.BaseModel):
    """The source of the validation rows: exactly one of `fraction`, `split` and `folds`.

    In YAML a word alone is a split. `view` is used for validation, whatever views a phase trains
    on.
    """

    model_config = STRICT

    fraction: float | None = Field(default=None, gt=0, lt=1)  # of the images of every class
    split: str | None = Field(default=None, min_length=1)  # a split of the dataset
    folds: int | None = Field(default=None, ge=2)
    view: str = Field(default="none", min_length=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _split_alone(cls, value: Any) -> Any:
        return {"split": value} if isinstance(value, str) else value

    @pydantic.field_validator("split")
    @classmethod
    def _not_train(cls, value: str | None) -> str | None:
        if value == "train":
            raise ValueError("'train' is the training split; use another")
        return value

    @pydantic.model_validator(mode="after")
    def _exactly_one(self) -> Validation:
        names = [n for n in ("fraction", "split", "folds") if getattr(self, n) is not None]
        if len(names) != 1:
            listed = " and ".join(names) or "none of them"
            raise ValueError(f"give exactly one of fraction, split, folds, not {listed}")
        return self


class Schedule(pydantic.BaseModel):
    """Everything that determines a training, except the vectors."""

    model_config = STRICT

    backbone: tuple[BackboneChoice, ...]  # the vectors of several are concatenated, in order
    input: Input | None = None
    head: HeadSpec = HeadSpec()
    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule | None = None
    early_stopping: EarlyStopping | None = None
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    mixup: float | None = Field(default=None, gt=0)  # alpha of the Beta distribution
    features: Features | None = None
    class_weights: ClassWeights | None = None
    pruning: Pruning | None = None
    batch_size: int = Field(default=256, ge=1)
    # scikit-learn accepts only 32-bit seeds.
    seed: int = Field(default=0, ge=0, lt=2**32)
    augment_seed: int = Field(default=0, ge=0)  # the --seed that the views were made with
    validation: Validation = Validation(fraction=0.2)
    phases: list[Phase]
    sweep: Sweep | None = None

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

    @pydantic.field_validator("phases")
    @classmethod
    def _some_phase(cls, value: list[Phase]) -> list[Phase]:
        if not value:
            raise ValueError("a schedule needs at least one phase: - {views: none, epochs: 10}")
        return value

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
        if self.optimizer.name == "lbfgs" and (reason := self._unsolvable()):
            raise ValueError(f"optimizer: lbfgs {reason}")
        return self

    def _unsolvable(self) -> str:
        """The reason why lbfgs cannot solve this schedule; empty if it can."""
        if self.head.hidden:
            return "solves linear heads only; write head: {hidden: []}"
        parts = ("lr_schedule", "early_stopping", "label_smoothing", "mixup", "features", "pruning")
        for name in parts:
            if getattr(self, name) is not None:
                return f"does not work with {name}; remove one of them"
        head = self.head
        if head.input_dropout or head.l1 or head.l2 or self.class_weights == "errors":
            return "does not work with input_dropout, l1, l2 or class_weights: errors; remove them"
        first, *others = self.phases
        settings = (first.ramp_to, first.order, first.optimizer.lr, first.optimizer.weight_decay)
        if others or first.epochs != 1 or any(setting is not None for setting in settings):
            return "solves one phase with epochs: 1 and without ramp_to, order and optimizer"
        return ""

    @property
    def epochs(self) -> int:
        """The total number of epochs of all phases, including those after pruning."""
        return len(self.plan())

    def plan(self) -> list[Planned]:
        """The epochs in order. Those after pruning form one more phase, on the final views of the
        last phase."""
        phases = list(self.phases)
        if self.pruning is not None:
            last = phases[-1]
            views = last.shares(last.epochs)
            phases.append(Phase(views=views, epochs=self.pruning.epochs, optimizer=last.optimizer))
        phase_epochs = [
            (number, phase, epoch)
            for number, phase in enumerate(phases, 1)
            for epoch in range(1, phase.epochs + 1)
        ]
        return [Planned(epoch, *planned) for epoch, planned in enumerate(phase_epochs, 1)]

    def check_fits(self, classes: Sequence[str], rows: int, width: int) -> None:
        """Raise BadInput for weights of classes that do not exist, or for more PCA components than
        `rows` training vectors of this width can have."""
        if isinstance(self.class_weights, dict):
            for name in self.class_weights:
                if name not in classes:
                    raise UnknownName("class of class_weights", name, classes)
        limit = min(rows - 1, width)
        if self.input is not None and type(self.input.pca) is int and self.input.pca > limit:
            raise BadInput(
                f"input.pca: {self.input.pca} components of {rows} training vectors of width "
                f"{width}; there can be at most {limit}"
            )

    def views(self) -> list[str]:
        """Every view that the phases name, then the validation view, in first-seen order."""
        named = [view for p in self.phases for view in (*p.views, *(p.ramp_to or {}))]
        return list(dict.fromkeys([*named, self.validation.view]))


def read_schedule(path: Path) -> Schedule:
    """The schedule in a YAML file. Raises BadInput that names the file and every wrong entry."""
    return yaml_files.validate(Schedule, yaml_files.plain_value(yaml_files.read_yaml(path)), path)


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
        where = f"no such file, and the shipped schedules are {', '.join(shipped())}"
        raise UnknownName("schedule", name, shipped(), where)
    return shipped()[name]
