"""The trainings of a search: of candidates on its sample, and of the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from featurecache.executors import Progress
from featurecache.features.spaces import Space
from featurecache.images.policies import Policy
from featurecache.keys import digest
from featurecache.runs.training_data import TrainingData
from featurecache.stages.heads.outcomes import outcome_of
from featurecache.stages.search.halving import Weights
from featurecache.stages.search.search_config import NONE, SearchConfig
from featurecache.stages.search.search_images import SearchImages, Vectors
from featurecache.study.paired import Right, difference

Spaces = Mapping[str, Sequence[Space]]


class ComparisonRow(TypedDict):
    """A policy that was trained like the found one: top-1 on the images that the search chose with
    (`searched`) and on those that it never touched, and what the found policy gains over it on the
    latter, with its interval."""

    policy: str
    searched: float
    untouched: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Trains heads, each once: the outcomes are files in the folder of the run."""

    run: Path
    identity: str
    config: SearchConfig
    vectors: Vectors
    device: str
    progress: Progress

    @property
    def seeds(self) -> list[int]:
        """The seeds of trainings that are compared."""
        return list(range(self.config.seed, self.config.seed + self.config.judge.seeds))

    def right(
        self, images: SearchImages, spaces: Spaces, weights: Weights, epochs: int, seed: int
    ) -> np.ndarray:
        """(M,) which validation images are right after a training on the sample."""
        used = {name: spaces[name] for name in dict.fromkeys([NONE, *weights])}
        data = self.vectors.training_data(images.sample, images.validation, used)
        return self._outcome(data, weights, epochs, seed)

    def judge(
        self, images: SearchImages, policy: Policy, rivals: Mapping[str, Policy]
    ) -> list[ComparisonRow]:
        """Train with the found policy, clean, and with each rival, for as many steps; the found
        policy comes first."""
        spaces = self.vectors.embed_policies(
            images.training, {policy.name: policy, **rivals}, self.run
        )
        rows = [*images.training, *images.validation, *images.judged]
        spaces[NONE] = self.vectors.embed(rows, [NONE])[NONE]
        images = images.decoded(spaces, "training")
        others = [*images.validation, *images.judged]
        data = self.vectors.training_data(images.training, others, spaces)
        epochs, count = self.config.epochs, len(images.validation)
        rights: dict[str, Right] = {}
        for name in (policy.name, NONE, *rivals):
            outcomes = [self._outcome(data, {name: 1.0}, epochs, seed) for seed in self.seeds]
            rights[name] = np.array(outcomes)
        compared: list[ComparisonRow] = []
        for name, right in rights.items():
            change = difference(rights[policy.name][:, count:], right[:, count:])
            compared.append(
                {
                    "policy": name,
                    "searched": float(right[:, :count].mean()),
                    "untouched": float(right[:, count:].mean()),
                    "difference": change.difference,
                    "low": change.low,
                    "high": change.high,
                }
            )  # fmt: skip
        return compared

    def _outcome(self, data: TrainingData, weights: Weights, epochs: int, seed: int) -> np.ndarray:
        schedule = self.config.schedule(self._shares(weights), epochs, seed)
        written = schedule.as_json()
        key = digest({"search": self.identity, "rows": data.rows_hash(), "schedule": written})

        def show(done: int) -> None:
            self.progress(done, epochs, f"search (training with {', '.join(weights)})")

        pairs = data.pairs or []
        return outcome_of(self.run, key, schedule, data, pairs, self.device, show).array()

    def _shares(self, weights: Weights) -> Weights:
        """The share of each view in a training: that of the search times the weight, and clean."""
        share, total = self.config.share, sum(weights.values())
        shares = {name: share * weight / total for name, weight in weights.items()}
        shares[NONE] = shares.get(NONE, 0.0) + 1 - share
        return {name: part for name, part in shares.items() if part > 0}
