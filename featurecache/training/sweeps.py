"""Sweeps: many settings of a training, as they are written in YAML."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import Field

from featurecache.training.settings import YamlModel


class Drawn(YamlModel):
    """The distribution of a setting in a random sweep; exactly one of the fields. `range` [a, b] is
    uniform, `log` [a, b] uniform in the logarithm, `choice` picks from a list."""

    range: list[float] | None = None
    log: list[float] | None = None
    choice: list[Any] | None = Field(default=None, min_length=1)

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Drawn:
        names = [n for n in ("range", "log", "choice") if getattr(self, n) is not None]
        if len(names) != 1:
            listed = " and ".join(names) or "none of them"
            raise ValueError(f"give exactly one of range, log, choice, not {listed}")
        ends = self.range or self.log
        if ends is not None and (len(ends) != 2 or ends[0] >= ends[1]):
            raise ValueError(f"{names[0]} takes two numbers, low then high: [a, b]")
        if self.log is not None and self.log[0] <= 0:
            raise ValueError("log takes numbers above 0")
        return self


class Sweep(YamlModel):
    """Many settings trained in one command, each with every seed of `seeds`.

    Settings are named by their dotted key, such as `optimizer.lr`. `grid` lists values and trains
    every combination. `random` is the number of settings drawn, with `seed`, from the distributions
    in `over`.
    """

    seeds: list[int] | None = Field(default=None, min_length=1)  # None: that of the file
    grid: dict[str, list[Any]] | None = Field(default=None, min_length=1)
    random: int | None = Field(default=None, ge=1)
    over: dict[str, Drawn] | None = Field(default=None, min_length=1)
    seed: int = Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _grid_or_random(self) -> Sweep:
        if (self.random is None) != (self.over is None):
            raise ValueError(
                "random and over belong together: the number of draws and their distributions"
            )
        if self.grid is not None and self.random is not None:
            raise ValueError("use grid or random, not both")
        if self.grid is None and self.random is None and self.seeds is None:
            raise ValueError("nothing to sweep; give grid, random with over, or seeds")
        if any(not values for values in (self.grid or {}).values()):
            raise ValueError("every list of the grid needs at least one value")
        if len(set(self.seeds or ())) < len(self.seeds or ()):
            raise ValueError(f"a seed is listed twice in {self.seeds}")
        if any(not 0 <= seed < 2**32 for seed in self.seeds or ()):
            raise ValueError("seeds must be from 0 to 2**32 - 1")
        return self

    @property
    def keys(self) -> list[str]:
        """The dotted keys that it sweeps over."""
        return [*(self.grid or ()), *(self.over or ())]
