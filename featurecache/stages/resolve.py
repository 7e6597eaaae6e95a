"""Resolve what was asked for into samples, items and spaces: the first step of most stages."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from featurecache import records
from featurecache.errors import BadInput, NotCached
from featurecache.features.backbones import ALIASES, Backbone, check_name, load_backbone
from featurecache.features.store import Cache, Space
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.datasets import Dataset, Sample, items_of, open_dataset
from featurecache.images.policies import Policy
from featurecache.images.views import View, find_view


@dataclass(frozen=True)
class Request:
    """A dataset with the items of its samples, and what to make of them."""

    dataset: Dataset
    items: tuple[bytes | None, ...]  # beside dataset.samples; None where the file can't be read
    unreadable: dict[str, str]  # sample id -> reason
    cache: Cache
    views: tuple[View, ...]
    backbones: tuple[Backbone, ...]
    precision: str = "f32"

    @property
    def sources(self) -> dict[bytes, Sample]:
        """item -> the first sample with these bytes, in dataset order."""
        found: dict[bytes, Sample] = {}
        for sample, item in zip(self.dataset.samples, self.items, strict=True):
            if item is not None:
                found.setdefault(item, sample)
        return found

    def picture_space(self, view: View) -> Space:
        """The space of a view's kept pictures."""
        return self.cache.space(records.picture_key(view.key()), view.name)

    def vector_space(self, view: View, backbone: Backbone) -> Space:
        """The space of a view's vectors."""
        key = records.vector_key(view.key(), backbone.key(), self.precision)
        return self.cache.space(key, view.name, backbone.name)

    def failures(self, spaces: Sequence[Space]) -> list[dict[str, str]]:
        """Every sample without a row, `{path, reason}`: unreadable, or undecodable in a space."""
        reasons = {
            item: why for space in spaces for item, why in space.failures(self.sources).items()
        }
        rows = [{"path": path, "reason": why} for path, why in self.unreadable.items()]
        for sample, item in zip(self.dataset.samples, self.items, strict=True):
            if item in reasons:
                rows.append({"path": sample.id, "reason": reasons[item]})
        return rows


def resolve(
    data: str | Path,
    cache: str | Path,
    policy: str | Sequence[str] = (),
    backbone: str | Sequence[str] = (),
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    precision: str = "f32",
    seed: int = 0,
) -> Request:
    """The dataset, its items, and the views and backbones by their names. Raises BadInput.

    Without a policy: the view `none`, and every view whose pictures `augment` has kept with this
    seed.
    """
    if seed < 0:
        raise BadInput(f"seed {seed}: must be 0 or more")
    opened = Cache(cache)
    names = [policy] if isinstance(policy, str) else list(policy)
    views = [find_view(name, seed) for name in names] or [View(None), *_kept_views(opened, seed)]
    dataset = open_dataset(data)
    for view in views:
        view.check()
    asked = [backbone] if isinstance(backbone, str) else list(backbone)
    if weights is not None and len(asked) > 1:
        raise BadInput("--weights belongs to one backbone; give one --backbone")
    backbones = [
        load_backbone(name, weights, input_size=input_size, crop=crop, interpolation=interpolation)
        for name in dict.fromkeys(asked)
    ]
    items, unreadable = items_of(dataset.samples)
    return Request(
        dataset,
        tuple(items),
        unreadable,
        opened,
        tuple(dict.fromkeys(views)),
        tuple(backbones),
        precision,
    )


def _kept_views(cache: Cache, seed: int) -> list[View]:
    """The views of the picture spaces that this seed and this imgaug would make again."""
    views = []
    for space in cache.spaces():
        wanted = space.key.get("view")
        if space.backbone is None and wanted is not None:
            name = space.view.rpartition("_")[0]
            view = View(Policy(name, wanted["policy"]["tree"]), wanted["draw"], seed)
            if records.picture_key(view.key()) == space.key:
                views.append(view)
    return views


def described(space: Space) -> dict[str, object]:
    """A space as `--json` shows it."""
    return {
        "space": space.path.name,
        "view": space.view,
        "backbone": space.backbone,
        "rows": len(space.rows),
        "bytes": space.size,
        "root_hash": space.root_hash,
    }


class Row(NamedTuple):
    """A labelled image to train or evaluate on."""

    item: bytes
    label: int
    split: str
    id: str


def labelled_rows(dataset: Dataset, splits: Sequence[str]) -> list[Row]:
    """The rows of these splits that can be read. Raises BadInput for an unlabelled split."""
    samples = [sample for split in splits for sample in dataset.split(split)]
    items, _ = items_of(samples)
    rows = []
    for sample, item in zip(samples, items, strict=True):
        if sample.label is None:
            raise BadInput(f"split {sample.split!r} of {dataset.root} has no labels; take another")
        if item is not None:
            rows.append(Row(item, sample.label, sample.split, sample.id))
    return rows


def decodable(rows: Sequence[Row], spaces: Iterable[Space]) -> list[Row]:
    """The rows that have a vector in every one of these spaces. Raises BadInput for none."""
    bad = {item for space in spaces for item in space.failures(row.item for row in rows)}
    found = [row for row in rows if row.item not in bad]
    if not found:
        raise BadInput("none of these images could be decoded; see `featurecache inspect`")
    return found


def held_spaces(
    cache: Cache,
    views: Mapping[str, View],
    choice: BackboneChoice,
    items: Sequence[bytes],
    data: str | Path,
) -> dict[str, Space]:
    """For each view the space of the chosen backbone, found in the cache by its key, with no
    network loaded: vectors can be trained on where their weights can't be had.

    Raises NotCached with the command that makes what is missing, BadInput where the cache holds
    several settings of the backbone and the choice does not tell them apart.
    """
    fitting = [s for s in cache.spaces() if s.backbone is not None and _fits(s, choice)]
    settings = {records.digest(_settings(s)): _settings(s) for s in fitting}
    if len(settings) > 1:
        first, second, *_ = settings.values()
        raise BadInput(
            f"{cache.root} holds {len(settings)} settings of backbone {choice.name}, which differ "
            f"in {'; '.join(records.differences(first, second))}. Say which in the schedule, as in "
            f"backbone: {{name: {choice.name}, crop: 1.0}}"
        )
    if not settings and choice.name not in ALIASES:
        check_name(choice.name)
    found, lacking = {}, {}
    for name, view in views.items():
        for space in fitting:
            if space.key["view"] == view.key() and space.key["decode"] == records.DECODE_RULE:
                found[name] = space
        missing = found[name].missing(items) if name in found else items
        if missing:
            lacking[name] = len(missing)
    if lacking:
        seed = next((view.seed for view in views.values() if view.seed), 0)
        given = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
        command = featurize_command(data, cache, choice.name, lacking, given, seed)
        counts = ", ".join(f"{n} of {len(items)} images of view {v}" for v, n in lacking.items())
        raise NotCached(f"the cache lacks {counts}; make them with: {command}")
    return found


def featurize_command(
    data: str | Path,
    cache: Cache,
    backbone: str,
    views: Iterable[str],
    settings: Mapping[str, object],
    seed: int,
) -> str:
    """The command that makes the vectors of these views; options that are the default left out."""
    options: dict[str, object] = {"data": data, "cache": cache.root, "backbone": backbone}
    options |= {**settings, "seed": seed}
    default = {"data": "data", "cache": "data/cache", "precision": "f32", "seed": "0"}
    words = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in options.items()
        if str(value) != default.get(name)
    ]
    words += [f"--policy {shlex.quote(view)}" for view in views]
    return " ".join(["featurecache featurize", *words])


def _settings(space: Space) -> records.Json:
    return {**space.key["backbone"], "precision": space.key["precision"]}


def _fits(space: Space, choice: BackboneChoice) -> bool:
    settings = _settings(space)
    model = settings["name"]
    names = (space.backbone, model, model.split(".")[0])
    if choice.name not in names and ALIASES.get(choice.name) != model:
        return False
    given = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
    weights = str(settings["weights"]).startswith(choice.weights or "")
    return weights and all(settings[name] == value for name, value in given.items())
