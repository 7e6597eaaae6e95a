"""Typed models of the files in a run folder: the validation of its head, the trials of a sweep."""

from __future__ import annotations

from typing import Annotated

import pydantic

from featurecache.json_files import Json, Open, Share, Strict, fit
from featurecache.training.epoch_metrics import MAX_NUMBER, Number


def fitting(model: type[pydantic.BaseModel]) -> pydantic.AfterValidator:
    """A validator for a field that stays a plain dict and must fit `model`."""

    def checked(value: Json) -> Json:
        fit(model, value)
        return value

    return pydantic.AfterValidator(checked)


class Validated(Open):
    """The validation of an epoch: means over the folds."""

    epoch: Number
    top1: Share
    loss: float


Validation = Annotated[Json, fitting(Validated)]


class TrialFields(Strict):
    """The fields of a trial (heads/sweep.py)."""

    setting: Json
    n: Annotated[int, pydantic.Field(ge=0, le=MAX_NUMBER)]
    top1: Share | None
    low: float | None
    high: float | None
    diverged: Annotated[int, pydantic.Field(ge=0, le=MAX_NUMBER)]
    best: Validation | None
    last: Validation | None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrialFields:
        if len({value is None for value in (self.top1, self.best, self.last)}) > 1:
            raise ValueError("top1, best and last belong together")
        return self


TrialJson = Annotated[Json, fitting(TrialFields)]


class TrialsFile(Strict):
    """`trials.json`: the results of settings that were trained together."""

    identity: str = pydantic.Field(alias="of")  # the hash of everything that decides the trials
    trials: list[TrialJson]
