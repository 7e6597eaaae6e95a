"""The configuration of a search, in YAML: a schedule without phases, and what to search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.heads.schedules import Schedule, is_written_as_solved
from featurecache.images import policies
from featurecache.images.operations import OPERATIONS, atomic_policies
from featurecache.images.policies import Policy
from featurecache.training.settings import YamlModel

EPOCHS = 12
NONE = "none"
RIVALS = ("randaugment", "trivialaugment")  # that every found policy is compared with
TEST_TIME = ("mirror", "crops")  # shipped policies for test-time views
_FIXED = ("early_stopping", "pruning", "sweep")  # settings that would change the number of steps


class Judge(YamlModel):
    """The images that the search never touches, and the trainings that are compared on them: with
    the best shipped policy, or with all of `compare`."""

    split: str = Field(default="val", min_length=1)
    sample: int | None = Field(default=None, ge=1)  # training images per class; None: all
    seeds: int = Field(default=3, ge=1, le=100)
    policies: Literal["all"] | None = None


class SearchConfig(Schedule):
    """What to search: `operations` at `strengths` steps of their ranges, `depth` of them in
    sequence, on `sample` training images per class. `share` is that of the policy in training; the
    rest is clean. The best of `compare` on the validation images is compared with what is found.
    """

    SHORT_KEYS: ClassVar = ("epochs",)  # at the top in place of phases

    operations: list[str | dict[str, list[float]]] = Field(
        default=[*OPERATIONS, *(name for name in policies.shipped() if name not in TEST_TIME)],
        min_length=1,
    )
    strengths: int = Field(default=3, ge=1, le=9)
    depth: int = Field(default=1, ge=1, le=2)
    sample: int = Field(default=10, ge=2)
    share: float = Field(default=0.5, gt=0, le=1)
    judge: Judge = Judge()
    compare: list[str] = Field(
        default=["mild", "crop_flip", "spatial", "color", "traditional", "autoaugment_imagenet"],
        min_length=1,
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_phase(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "phases" in value:
            raise ValueError("phases: the search makes its own; write `epochs: 12`")
        rest = {name: setting for name, setting in value.items() if name != "epochs"}
        epochs = value.get("epochs", 1 if is_written_as_solved(value) else EPOCHS)
        return rest | {"phases": [{"views": NONE, "epochs": epochs}]}

    @pydantic.model_validator(mode="after")
    def _searchable(self) -> SearchConfig:
        for name in _FIXED:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: all trainings need the same number of steps; remove it")
        if self.head.queries is not None:
            raise ValueError("head: attention takes maps, and a search scores vectors; remove kind")
        validation, judge = self.validation, self.judge.split
        if validation.folds is not None or validation.view != NONE:
            raise ValueError("validation: a search takes a fraction or a split, and the view none")
        if judge in ("train", validation.split):
            raise ValueError(
                f"judge.split: the search uses the split {judge}; name one that it never touches, "
                "or write validation: {fraction: 0.2}"
            )
        if any(choice.pooling == "none" for choice in self.backbone):
            raise ValueError("backbone.pooling: none makes maps, and a search scores vectors")
        if any(choice.weights is not None for choice in self.backbone):
            raise ValueError("backbone.weights: a search computes vectors with the published ones")
        return self

    def schedule(self, views: Mapping[str, float], epochs: int, seed: int) -> Schedule:
        """The training on views with these shares, for a number of epochs."""
        added = set(SearchConfig.model_fields) - set(Schedule.model_fields)
        plan = self.as_json(exclude=added)
        phase = {"views": dict(views), "epochs": epochs}
        return Schedule.model_validate(plan | {"phases": [phase], "seed": seed})

    def policies(self, path: Path) -> dict[str, list[Policy]]:
        """The atomic policies of each operation, by its name. Raises BadInput that names the path
        of the configuration."""
        where = f"{path}: operations"
        by_name: dict[str, list[Policy]] = {}
        for entry in self.operations:
            ranges = dict.fromkeys([entry]) if isinstance(entry, str) else entry
            for name, strengths in ranges.items():
                if name in by_name:
                    raise BadInput(f"{where}: {name} is listed twice; keep one")
                if strengths is not None and len(strengths) != 2:
                    raise BadInput(f"{where}: {name}: expected two strengths, [low, high]")
                by_name[name] = atomic_policies(name, strengths, self.strengths, where)
        names = [policy.name for group in by_name.values() for policy in group]
        for name in names:
            is_other = name in policies.shipped() and name not in by_name
            if names.count(name) > 1 or is_other or (name in OPERATIONS and name not in by_name):
                raise BadInput(f"{where}: two policies are called {name}; rename the file")
        return by_name


def read_config(path: Path) -> SearchConfig:
    """The configuration in a YAML file. Raises BadInput that names the file and every wrong
    entry."""
    return yaml_files.validate(SearchConfig, yaml_files.read_mapping(path), path)
