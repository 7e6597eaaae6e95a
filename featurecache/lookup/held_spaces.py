"""The spaces of a cache that hold given rows, and the command that fills a gap.

No network is loaded here, so vectors can be used where their weights are not available."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, NotCached
from featurecache.features.backbones import ALIASES, check_layer, check_name
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.views import View

# The settings of a backbone that an option of `featurize` can say.
OPTIONS = ("input_size", "crop", "interpolation", "layer", "pooling", "precision")


def side_by_side(spaces: Sequence[Space], items: Sequence[bytes]) -> np.ndarray:
    """(N, D) float32: of each item its vectors in these spaces, end to end in their order."""
    parts = [space.vectors(items)[0] for space in spaces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def spaces_of(
    cache: Cache,
    views: Mapping[str, View],
    choices: Sequence[BackboneChoice],
    items: Sequence[bytes],
    data: str | Path,
) -> dict[str, list[Space]]:
    """For each view the spaces of the chosen backbones, in their order; as `held_spaces`.

    Raises NotCached with a command for each that lacks rows, BadInput for the same vectors twice.
    """
    by_choice, lacking = [], []
    for choice in choices:
        try:
            by_choice.append(held_spaces(cache, views, choice, items, data))
        except NotCached as error:
            lacking.append(str(error))
    if lacking:
        raise NotCached("; ".join(lacking))  # a command for each of them
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

    The cache must hold one setting of the backbone that the choice fits; with it the whole key of
    each space is known, and spaces are found by key alone (law 2). Raises NotCached with the
    command that makes what is missing, BadInput where several settings fit.
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
    # The name that the vectors were made by tells where the weights came from; the choice may not.
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
    """Those of the spaces, in `where`, whose backbone the choice fits: of one setting, or none.

    Raises BadInput, with the fields that differ, where several settings fit.
    """
    matches = [s for s in spaces if s.backbone is not None and _fits(s, choice)]
    settings = {keys.digest(_settings(s)): _settings(s) for s in matches}
    if len(settings) > 1:
        first, second, *_ = settings.values()
        raise BadInput(
            f"{where} holds {len(settings)} settings of backbone {choice.name}, which differ "
            f"in {'; '.join(keys.differences(first, second))}. Say which: in a schedule as in "
            f"backbone: {{name: {choice.name}, crop: 1.0}}, in a command as in --crop 1.0"
        )
    return matches


OTHER_VERSIONS = "it was made by other versions of what draws it"


def is_drawn_alike(view: View, space: Space) -> bool:
    """Would this view, drawn here and now, give the pictures that a space was made of?"""
    return keys.digest(view.key()) == keys.digest(space.key["view"])


def not_cached_error(
    cache: Cache,
    lacking: Mapping[str, Sequence[bytes]],
    backbone: str,
    setting: Mapping[str, object],
    seed: int,
    data: str | Path,
) -> NotCached:
    """The error for images that views lack, with the command that makes them."""
    counts = ", ".join(f"{len(missing)} images of view {v}" for v, missing in lacking.items())
    command = featurize_command(data, cache, backbone, lacking, setting, seed)
    return NotCached(f"the cache lacks {counts}; make them with: {command}")


def featurize_command(
    data: str | Path,
    cache: Cache,
    backbone: str,
    views: Iterable[str],
    setting: Mapping[str, object],
    seed: int,
) -> str:
    """The command that makes the vectors of these views; options that are the default left out."""
    options: dict[str, object] = {"data": data, "cache": cache.root, "backbone": backbone}
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
