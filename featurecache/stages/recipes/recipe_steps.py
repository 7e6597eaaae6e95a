"""The steps of recipes: commands with their options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, cast

import pydantic
from pydantic import Field

from featurecache.errors import FeatureCacheError, located
from featurecache.features.settings import BackboneSetting
from featurecache.text import listed
from featurecache.training.head_shapes import MAX_WIDTH
from featurecache.training.settings import YamlModel

BEST_EPOCH = "best-epoch"  # as a split: the validation of a training in its best epoch
Names = str | Annotated[list[str], Field(min_length=1)]


class Augment(YamlModel):
    """A step of `featurecache augment`: it stores pictures that later steps would make again.
    `data` is that of `Featurize`."""

    data: str | None = Field(default=None, min_length=1)
    policy: Names
    jpeg_side: int | None = None
    seed: int = Field(default=0, ge=0)


class BackboneStep(YamlModel):
    """What steps that name a backbone share: its setting, and the seed of the views."""

    backbone: Names
    input_size: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    layer: str | None = None
    pooling: str | None = None
    jpeg_side: int | None = None
    seed: int = Field(default=0, ge=0)

    def setting(self) -> BackboneSetting:
        """The setting of the backbone, as commands take it."""
        return cast(BackboneSetting, self.model_dump(include=set(BackboneSetting.__annotations__)))


class Featurize(BackboneStep):
    """A step of `featurecache featurize`. `data` is another dataset than the recipe's, for example
    one that an earlier step generates."""

    data: str | None = Field(default=None, min_length=1)
    policy: Names = "none"
    weights: str | None = None
    precision: str = "f32"
    store: str | None = None


class SplitStep(YamlModel):
    """What steps that look at a split share."""

    split: str = "val"
    view: str = "none"


class Training(YamlModel):
    """What steps that train share: they train once with each of `seeds`."""

    seeds: list[int] | None = Field(default=None, min_length=1)  # None: the file's own

    @pydantic.field_validator("seeds")
    @classmethod
    def _seeds(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"a seed is listed twice in {value}")
        if any(not 0 <= seed < 2**32 for seed in value or ()):
            raise ValueError("seeds must be from 0 to 2**32 - 1")
        return value


class TrainHead(Training):
    """A step of `featurecache train-head`."""

    schedule: str = Field(min_length=1)


class TrainNetwork(Training):
    """A step of `featurecache train-network`."""

    config: str = Field(min_length=1)

    @property
    def schedule(self) -> str:
        """The name of its runs in the recipe."""
        return self.config


class FitGenerator(YamlModel):
    """A step of `featurecache fit-generator`. `out` is the run folder, named by policies of later
    steps."""

    config: str = Field(min_length=1)
    out: str = Field(min_length=1)


class Generate(YamlModel):
    """A step of `featurecache generate`: images of a generator, for example that of an earlier
    step, into the folder `out`."""

    generator: str = Field(min_length=1)
    out: str = Field(min_length=1)
    per_class: int = Field(default=500, ge=1)


class Evaluate(SplitStep):
    """A step of `featurecache evaluate`, for every run of the earlier steps. The split `best-epoch`
    is the validation of each training in its best epoch. `against` is the training that the others
    are compared with, seed by seed."""

    tta: str | list[str] = Field(default=[])
    against: str | None = Field(default=None, min_length=1)


class Ensemble(SplitStep):
    """A step of `featurecache ensemble`, for the runs of some earlier schedules. Runs of several
    schedules are combined seed by seed, or with `all_seeds` all in one ensemble; those of a single
    one over all its seeds."""

    tta: str | list[str] = Field(default=[])
    how: str | None = None
    all_seeds: bool = False
    of: list[str] | None = Field(default=None, min_length=1)  # None: all earlier schedules


class Report(SplitStep):
    """A step of `featurecache report`, for the first seed of some earlier schedules."""

    name: str = Field(default="report.html", pattern=r"^[\w-]+\.html$")  # in the folder of runs
    of: list[str] | None = Field(default=None, min_length=1)  # None: all earlier schedules


class Baselines(BackboneStep, SplitStep):
    """A step of `featurecache baselines`."""

    precision: str | None = None
    width: int | None = Field(default=None, ge=1, le=MAX_WIDTH)


class RunRecipe(YamlModel):
    """A step of `featurecache run`: all steps of another recipe, on the dataset `data` in the
    folder that is this recipe's data."""

    recipe: str = Field(min_length=1)
    data: str = Field(min_length=1)


Measure = Evaluate | Ensemble | Report  # what measures the runs of earlier steps
MakeStep = FitGenerator | Generate
# Of the recipe's own dataset.
DataStep = Augment | Featurize | MakeStep | TrainHead | TrainNetwork | Measure | Baselines
Step = DataStep | RunRecipe
COMMANDS: dict[str, type[Step]] = {
    "augment": Augment,
    "featurize": Featurize,
    "fit-generator": FitGenerator,
    "generate": Generate,
    "train-head": TrainHead,
    "train-network": TrainNetwork,
    "evaluate": Evaluate,
    "ensemble": Ensemble,
    "report": Report,
    "baselines": Baselines,
    "run": RunRecipe,
}


def views_of_step(step: Measure | Baselines) -> list[str]:
    """The views that a step averages over."""
    return [step.view, *(listed(step.tta) if isinstance(step, Evaluate | Ensemble) else ())]


@contextmanager
def in_step(where: str, step: Step) -> Iterator[None]:
    """Errors within begin with `where`, the step, and name its keys in place of the options of its
    command."""
    try:
        with located(where):
            yield
    except FeatureCacheError as error:
        error.args = (_with_keys(str(error), step),)
        raise


def _with_keys(message: str, step: Step) -> str:
    """A message in which `--input-size` is `input_size` if that is a key of the step. Commands in
    the message, and what belongs to the recipe within a recipe, stay as they are."""
    if isinstance(step, RunRecipe):
        return message
    synonyms = {"view": "policy", "policy": "view"}

    def key(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        names = [n for n in (name, synonyms.get(name)) if n in type(step).model_fields]
        return names[0] if names else match[0]

    text, command, rest = message.partition("featurecache ")
    return re.sub(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", key, text) + command + rest
