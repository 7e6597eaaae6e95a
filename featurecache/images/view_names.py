"""The grammar of a view's name: `POLICY_DRAW`, or `none`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

POLICY_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ViewName:
    """The parts of a view's name: `color_2`, `color` (no draw), `path/mine.yaml_2`, `none`."""

    policy: str  # a policy's name, the path of its YAML file, or `none`
    draw: int | None = None  # None if the name has no draw

    @classmethod
    def parse(cls, text: str) -> ViewName:
        """Parse any text: `color_1` and `color_01` are both draw 1 of `color`."""
        match = re.fullmatch(r"(.+)_(\d+)", text)
        return cls(text) if match is None else cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return self.policy if self.draw is None else f"{self.policy}_{self.draw}"

    @property
    def is_file(self) -> bool:
        """Whether the policy is the path of a YAML file."""
        return self.policy.endswith(POLICY_SUFFIXES)

    @property
    def display_name(self) -> str:
        """The name that `ls` shows: the policy file without its folder and suffix."""
        policy = self.policy.rpartition("/")[2]
        for suffix in POLICY_SUFFIXES:
            policy = policy.removesuffix(suffix)
        return str(replace(self, policy=policy))

    def with_draw(self) -> ViewName:
        """The name with its draw written out: `color` means `color_1`. `none` has no draw."""
        if self.draw is not None or self.policy == "none":
            return self
        return replace(self, draw=1)


def policy_files(name: str) -> list[str]:
    """The existing policy files that a name without a suffix may mean: `pol/mine.yaml`."""
    return [name + suffix for suffix in POLICY_SUFFIXES if Path(name + suffix).is_file()]
