"""The spaces of a cache that hold given rows, and the command that fills a gap.

No network is loaded here, so vectors can be used where their weights are not available."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, NotCached
from featurecache.features.backbones import check_layer
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.features.timm_models import ALIASES, check_name
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.views import View
from featurecache.text import counted

# The settings of a backbone that `featurize` has an option for.
OPTIONS = ("input_size", "crop", "interpolation", "layer", "pooling", "precision")


def side_by_side(spaces: Sequence[Space], items: Sequence[bytes]) -> np.ndarray:
    """The vectors of the items in these spaces, concatenated in order: (N, D) float32."""
    parts = [space.vectors(items)[0] for space in spaces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def spaces_of(
    cache: Cache,
    views: Mapping[str, View],
    choices: Sequence[BackboneChoice],
    items: Sequence[bytes],
    data: str | Path,
) -> dict[str, list[Space]]:
    """For each view the spaces of the chosen backbones, in order; see `held_spaces`.

    Raises NotCached with one command per backbone that lacks rows, BadInput if two choices are the
    same vectors.
    """
    by_choice, lacking = [], []
    for choice in choices:
        try:
            by_choice.append(held_spaces(cache, views, choice, items, data))
        except NotCached as error:
            lacking.append(str(error))
    if lacking:
        raise NotCached("; ".join(lacking))
    for view in views:
        names = [spaces[view].name for spaces in by_choice]
        for number, name in enumerate(names):
            if name in names[:number]:
                same = " and ".join(choices[n].name for n in (names.index(name), number))
                raise BadInput(f"backbone: {same} are the same vectors; keep one of them")
    return {view: [spaces[view] for spaces in by_choice] for view in views}


def held_spaces(
    cache: Cache,
    views: Mapping[str, View],
    choice: BackboneChoice,
    items: Sequence[bytes],
    data: str | Path,
) -> dict[str, Space]:
    """For each view the space of the chosen backbone that holds all `items`.

    The cache must hold exactly one setting of the backbone that matches the choice. That setting
    gives the whole key of each space, and spaces are looked up by key alone (law 2, "The key says
    everything that changes a vector"). Raises NotCached with the command that computes the missing
    rows, BadInput if several settings match.
    """
    seed = max((view.seed for view in views.values()), default=0)  # of `none` it is 0
    of_choice = fitting_spaces(cache.spaces(), choice, cache.root)
    if not of_choice:
        if choice.name not in ALIASES:
            check_name(choice.name)
        check_layer(choice.name, choice.layer, choice.pooling)
        setting_options = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
        raise not_cached_error(
            cache, dict.fromkeys(views, items), choice.name, setting_options, seed, data
        )
    setting = _settings(of_choice[0])
    backbone = {name: value for name, value in setting.items() if name != "precision"}
    # The stored name says where the weights came from; the name in the choice may not.
    made_by = str(of_choice[0].backbone)
    by_view = {
        name: cache.space(
            keys.vector_key(view.key(), backbone, setting["precision"]), view.name, made_by
        )
        for name, view in views.items()
    }
    lacking = {name: space.missing(items) for name, space in by_view.items()}
    lacking = {name: missing for name, missing in lacking.items() if missing}
    if lacking:
        raise not_cached_error(cache, lacking, made_by, setting, seed, data)
    return by_view


def fitting_spaces(spaces: Iterable[Space], choice: BackboneChoice, where: object) -> list[Space]:
    """The spaces whose backbone matches the choice; all have the same setting. Errors name `where`.

    Raises BadInput with the differing fields if several settings match.
    """
    matches = [s for s in spaces if s.backbone is not None and _fits(s, choice)]
    settings = {keys.digest(_settings(s)): _settings(s) for s in matches}
    if len(settings) > 1:
        first, second, *_ = settings.values()
        raise BadInput(
            f"{where} holds {len(settings)} settings of backbone {choice.name}, which differ "
            f"in {'; '.join(keys.differences(first, second))}. Choose one: in a schedule, for "
            f"example backbone: {{name: {choice.name}, crop: 1.0}}, or in a command --crop 1.0"
        )
    return matches


OTHER_VERSIONS = "it was drawn by other versions of the augmentation libraries"


def is_drawn_alike(view: View, space: Space) -> bool:
    """Would this machine draw the same pictures for this view as the space was made from?"""
    return keys.digest(view.key()) == keys.digest(space.key["view"])


def not_cached_error(
    cache: Cache,
    lacking: Mapping[str, Sequence[bytes]],
    backbone: str,
    setting: Mapping[str, object],
    seed: int,
    data: str | Path,
) -> NotCached:
    """The error for images that are missing in views, with the command that computes them."""
    counts = ", ".join(
        f"{counted(len(missing), 'image')} of view {v}" for v, missing in lacking.items()
    )
    command = featurize_command(data, cache, backbone, lacking, setting, seed)
    return NotCached(f"the cache lacks {counts}; compute them with: {command}")


def featurize_command(
    data: str | Path,
    cache: Cache,
    backbone: str,
    views: Iterable[str],
    setting: Mapping[str, object],
    seed: int,
) -> str:
    """The command that computes the vectors of these views; default options are omitted."""
    options: dict[str, object] = {"data": data, "cache": cache.root, "backbone": backbone}
    options |= getattr(data, "columns", {})  # of a Dataset
    options |= {name: setting[name] for name in OPTIONS if name in setting}
    if str(setting.get("weights")).startswith("random-"):
        options["weights"] = "random"
    options["seed"] = seed
    default = {
        "data": "data",
        "cache": "data/cache",
        "layer": "pre_logits",
        "pooling": "model",
        "precision": "f32",
        "seed": "0",
    }
    words = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in options.items()
        if str(value) != default.get(name)
    ]
    words += [f"--view {shlex.quote(view)}" for view in views]
    return " ".join(["featurecache featurize", *words])


def _settings(space: Space) -> keys.Json:
    return {**space.key["backbone"], "precision": space.key["precision"]}


def _fits(space: Space, choice: BackboneChoice) -> bool:
    settings = _settings(space)
    model = settings["name"]
    names = (space.backbone, model, model.split(".")[0])
    if choice.name not in names and ALIASES.get(choice.name) != model:
        return False
    options = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
    weights = str(settings["weights"]).startswith(choice.weights or "")
    return weights and all(settings[name] == value for name, value in options.items())
