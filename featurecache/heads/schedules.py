"""The curriculum that a person writes in YAML: which views, how long, with what optimizer.

Reading a schedule says everything that is wrong with it before any work begins, and imports no
torch. The files under `shipped/` are found by their file name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from featurecache import records
from featurecache.errors import UnknownName

# Strict: `epochs: yes` or `lr: "1"` is a mistake to be told, not a number to be guessed.
_STRICT = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
_MOMENTUM = 0.9


class BackboneChoice(pydantic.BaseModel):
    """Whose vectors to train on. What is None is whatever the cache holds one setting of."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    input_size: int | None = Field(default=None, ge=1)  # pixels, both sides
    crop: float | None = Field(default=None, gt=0, le=1)
    interpolation: str | None = None
    precision: str | None = None
    weights: str | None = Field(default=None, min_length=4)  # first digits of their SHA-256


class HeadSpec(pydantic.BaseModel):
    """Shape of a head: [linear, norm, activation, dropout] for each of `hidden`, then linear.

    `hidden` holds the widths; with none of them the head is linear (logistic regression).
    """

    model_config = _STRICT

    hidden: list[int] = [1024]
    dropout: float = Field(default=0.5, ge=0, lt=1)
    norm: Literal["batch", "layer", "none"] = "batch"
    activation: Literal["relu", "gelu", "silu"] = "relu"

    @pydantic.field_validator("hidden")
    @classmethod
    def _widths(cls, value: list[int]) -> list[int]:
        if any(width < 1 for width in value):
            raise ValueError(f"every width must be at least 1, not {value}")
        return value


class Optimizer(pydantic.BaseModel):
    """The optimizer and its settings; `momentum` is of sgd alone (0.9 where it isn't given)."""

    model_config = _STRICT

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _sgd_has_momentum(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") == "sgd":
            return {"momentum": _MOMENTUM, **value}
        return value

    @pydantic.model_validator(mode="after")
    def _others_have_none(self) -> Optimizer:
        if self.name != "sgd" and self.momentum is not None:
            raise ValueError(f"momentum is for sgd only, not for {self.name}; take it out")
        return self


class PhaseOptimizer(pydantic.BaseModel):
    """What a phase changes of the optimizer, for the length of that phase; None keeps it."""

    model_config = _STRICT

    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class Phase(pydantic.BaseModel):
    """Some epochs on one view or a mixture. `views` maps names to shares that sum to 1.

    In YAML `views` is a name, a list of names (equal shares) or the mapping itself.
    """

    model_config = _STRICT

    views: dict[str, float]
    epochs: int = Field(ge=1)
    optimizer: PhaseOptimizer = PhaseOptimizer()

    @pydantic.field_validator("views", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        if isinstance(value, str) and value:
            return {value: 1.0}
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            if len(set(value)) < len(value):
                raise ValueError(f"a view is listed twice in {value}; give shares instead")
            return {name: 1 / len(value) for name in value}
        if isinstance(value, dict) and value and all(isinstance(v, str) and v for v in value):
            return value
        raise ValueError("expected a view, a list of views, or a mapping of views to shares")

    @pydantic.field_validator("views")
    @classmethod
    def _sum_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if any(share <= 0 for share in value.values()):
            raise ValueError(f"every share must be above 0, not {value}")
        total = math.fsum(value.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares must sum to 1, not to {total:.6g}")
        return dict(sorted(value.items()))  # the order they are written in must change no draw


class Validation(pydantic.BaseModel):
    """Where the validation rows come from: exactly one of `fraction`, `split` and `folds`.

    `view` is the view validated on, whatever views a phase trains on.
    """

    model_config = _STRICT

    fraction: float | None = Field(default=None, gt=0, lt=1)  # of the images, in every class
    split: str | None = Field(default=None, min_length=1)  # a split that the dataset brings
    folds: int | None = Field(default=None, ge=2)
    view: str = Field(default="none", min_length=1)

    @pydantic.model_validator(mode="after")
    def _exactly_one(self) -> Validation:
        given = [n for n in ("fraction", "split", "folds") if getattr(self, n) is not None]
        if len(given) != 1:
            shown = " and ".join(given) or "none of them"
            raise ValueError(f"give exactly one of fraction, split, folds; there is {shown}")
        return self


class Schedule(pydantic.BaseModel):
    """Everything that decides a training but the vectors themselves."""

    model_config = _STRICT

    backbone: BackboneChoice
    head: HeadSpec = HeadSpec()
    optimizer: Optimizer = Optimizer()
    batch_size: int = Field(default=256, ge=1)
    # scikit-learn takes seeds of 32 bits, and every seed here is one that it can take.
    seed: int = Field(default=0, ge=0, lt=2**32)
    augment_seed: int = Field(default=0, ge=0)  # the --seed that the views were made with
    validation: Validation = Validation(fraction=0.2)
    phases: list[Phase]

    @pydantic.field_validator("backbone", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict | BackboneChoice):
            raise ValueError("expected a name, or a mapping with a name")
        return value

    @pydantic.field_validator("phases")
    @classmethod
    def _some_phase(cls, value: list[Phase]) -> list[Phase]:
        if not value:
            raise ValueError("a schedule needs at least one phase: - {views: none, epochs: 10}")
        return value

    @pydantic.model_validator(mode="after")
    def _norm_needs_rows(self) -> Schedule:
        if self.batch_size == 1 and self.head.norm == "batch" and self.head.hidden:
            raise ValueError("batch_size: batch norm needs at least 2; or take head.norm: layer")
        return self

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def views(self) -> list[str]:
        """Every view that the phases name, then the validation view, in first-seen order."""
        named = [view for phase in self.phases for view in phase.views]
        return list(dict.fromkeys([*named, self.validation.view]))


def read_schedule(path: Path) -> Schedule:
    """The schedule in a YAML file; a BadInput names the file and every wrong key or value."""
    return records.validated(Schedule, records.plain(records.read_yaml(path)), path)


def shipped() -> dict[str, Path]:
    """The schedules that come with the package, by file name."""
    folder = Path(__file__).parent / "shipped"
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_schedule(name: str) -> Path:
    """The file that `name` means: an existing path wins, else a shipped schedule so called.

    Raises UnknownName where it is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if name not in shipped():
        raise UnknownName("schedule", name, shipped(), "no such file, and none shipped")
    return shipped()[name]
