"""Curricula: phases of views, the order of their rows, validation, and what every training has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic
from pydantic import Field

from featurecache.errors import UnknownName
from featurecache.training.settings import EarlyStopping, LrSchedule, Optimizer, YamlModel
from featurecache.training.sweeps import Sweep


class Order(YamlModel):
    """The order in which a phase adds its training rows: a share `start` of them in the first
    epoch, more in every epoch, all in the last.

    `easy` or `hard` rows come first, by their loss under a linear head trained beforehand
    (`reference`) or under the head itself before each epoch (`self`: self-paced learning).
    `random` adds rows in random order, as a control for the other two.
    """

    by: Literal["reference", "self", "random"]
    first: Literal["easy", "hard"] | None = None
    start: float = Field(default=0.3, gt=0, le=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _easy_first(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("by") in ("reference", "self"):
            return {"first": "easy", **value}
        return value

    @pydantic.model_validator(mode="after")
    def _random_has_no_first(self) -> Order:
        if self.by == "random" and self.first is not None:
            raise ValueError("a random order has no `first`; remove it")
        return self


class PhaseOptimizer(YamlModel):
    """Optimizer settings that a phase overrides; None keeps the schedule's."""

    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class Phase(YamlModel):
    """Epochs on one view or a mixture of views. `views` maps names to shares that sum to 1.

    In YAML `views` is a name, a list of names (equal shares) or the mapping itself. With `ramp_to`
    the shares change in equal steps and reach those of `ramp_to` in the last epoch.
    """

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


class Validation(YamlModel):
    """The source of the validation rows: exactly one of `fraction`, `split` and `folds`.

    In YAML a word alone is a split. `view` is used for validation, whatever views a phase trains
    on.
    """

    fraction: float | None = Field(default=None, gt=0, lt=1)  # of the images of every class
    split: str | None = Field(default=None, min_length=1)  # a split of the dataset
    folds: int | None = Field(default=None, ge=2)
    fold: int | None = Field(default=None, ge=1)  # only this one of the folds
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
        if self.fold is not None and self.fold > (self.folds or 0):
            raise ValueError(f"fold {self.fold} is not one of {self.folds or 'no'} folds")
        return self


class TrainingPlan(YamlModel):
    """What every training has: phases of views, an optimizer, a rule of validation."""

    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule | None = None
    early_stopping: EarlyStopping | None = None
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    mixup: float | None = Field(default=None, gt=0)  # alpha of the Beta distribution
    class_weights: ClassWeights | None = None
    batch_size: int = Field(default=256, ge=1)
    # scikit-learn accepts only 32-bit seeds.
    seed: int = Field(default=0, ge=0, lt=2**32)
    augment_seed: int = Field(default=0, ge=0)  # the --seed that the views were made with
    validation: Validation = Validation(fraction=0.2)
    sweep: Sweep | None = None
    phases: list[Phase]

    # Keys that a sweep may change: they affect the training, but not its rows or views.
    SWEPT: ClassVar[tuple[str, ...]] = (
        "head", "optimizer", "batch_size", "lr_schedule", "early_stopping", "label_smoothing",
        "mixup", "class_weights",
    )  # fmt: skip

    @pydantic.field_validator("phases")
    @classmethod
    def _some_phase(cls, value: list[Phase]) -> list[Phase]:
        if not value:
            raise ValueError("a schedule needs at least one phase: - {views: none, epochs: 10}")
        return value

    @property
    def is_steered(self) -> bool:
        """Whether the validation of an epoch changes the training after it."""
        plateau = self.lr_schedule is not None and self.lr_schedule.name == "plateau"
        return self.early_stopping is not None or plateau or self.class_weights == "errors"

    @property
    def epochs(self) -> int:
        """The total number of epochs of all phases."""
        return len(self.plan())

    def plan(self) -> list[Planned]:
        """The epochs in order."""
        return planned_epochs(self.phases)

    @property
    def splits(self) -> list[str]:
        """The splits of a dataset that the training uses."""
        return [split for split in ("train", self.validation.split) if split is not None]

    def views(self) -> list[str]:
        """Every view that the phases name, then the validation view, in first-seen order."""
        named = [view for p in self.phases for view in (*p.views, *(p.ramp_to or {}))]
        return list(dict.fromkeys([*named, self.validation.view]))

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise BadInput for weights of classes that do not exist."""
        if isinstance(self.class_weights, dict):
            for name in self.class_weights:
                if name not in classes:
                    raise UnknownName("class of class_weights", name, classes)


def planned_epochs(phases: Sequence[Phase]) -> list[Planned]:
    """The epochs of some phases in order."""
    phase_epochs = [
        (number, phase, epoch)
        for number, phase in enumerate(phases, 1)
        for epoch in range(1, phase.epochs + 1)
    ]
    return [Planned(epoch, *planned) for epoch, planned in enumerate(phase_epochs, 1)]
