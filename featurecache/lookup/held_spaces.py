"""The spaces of a cache that hold given rows, and the command that fills a gap.

No network is loaded here, so vectors can be used where their weights are not available."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, NotCached, located
from featurecache.features.backbones import check_layer, default_setting
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.features.timm_models import ALIASES, find_model
from featurecache.features.trained_networks import trained_network
from featurecache.heads.schedules import BackboneChoice
from featurecache.images.datasets import Dataset, DataSource, names_of
from featurecache.images.views import View
from featurecache.items import ItemArray
from featurecache.settings import command_line
from featurecache.text import counted

# The settings of a backbone that `featurize` has an option for.
OPTIONS = ("input_size", "crop", "interpolation", "layer", "pooling", "precision", "jpeg_side")


def side_by_side(spaces: Sequence[Space], items: ItemArray) -> np.ndarray:
    """The vectors of the items in these spaces, concatenated in order: (N, D) float32."""
    parts = [space.vectors(items)[0] for space in spaces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def spaces_of(
    cache: Cache,
    views: Mapping[str, View],
    choices: Sequence[BackboneChoice],
    items: ItemArray,
    data: DataSource,
    where: object = "",
) -> dict[str, list[Space]]:
    """For each view the spaces of the chosen backbones, in order; see `held_spaces`.

    Raises NotCached with one command per backbone that lacks rows, BadInput if two choices are the
    same vectors. `where` is the file of the choices, which errors about them name.
    """
    by_choice, lacking = [], []
    for choice in choices:
        try:
            by_choice.append(held_spaces(cache, views, choice, items, data, where))
        except NotCached as error:
            lacking.append(str(error))
    if lacking:
        raise NotCached("; ".join(lacking))
    for view in views:
        names = [spaces[view].name for spaces in by_choice]
        for number, name in enumerate(names):
            if name in names[:number]:
                same = " and ".join(choices[n].name for n in (names.index(name), number))
                with located(where):
                    raise BadInput(f"backbone: {same} are the same vectors; keep one of them")
    return {view: [spaces[view] for spaces in by_choice] for view in views}


def held_spaces(
    cache: Cache,
    views: Mapping[str, View],
    choice: BackboneChoice,
    items: ItemArray,
    data: DataSource,
    where: object = "",
) -> dict[str, Space]:
    """For each view the space of the chosen backbone that holds all `items`.

    The choice is made among the settings of the backbone in the cache that match it and hold all
    items in all views. Of several, the one with the model's defaults is taken. A setting gives the
    whole key of each space, and spaces are looked up by key alone (law 2, "The key says everything
    that changes a vector"). Raises NotCached with the command that computes the missing rows,
    BadInput if several settings match and none is the default. `where` is as in `spaces_of`.
    """
    seed = max((view.seed for view in views.values()), default=0)  # of `none` it is 0
    spaces = cache.spaces()
    matches = _by_setting(spaces, choice)
    if not matches:
        setting_options = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
        if ":" not in choice.name:  # what timm does not know is not built for an error
            with located(where):
                if choice.name not in ALIASES:
                    has_weights = find_model(choice.name).config.has_weights
                    if trained_network(choice.name) is None and not has_weights:
                        setting_options["weights_file"] = "FILE"
                check_layer(choice.name, choice.layer, choice.pooling)
        error = not_cached_error(
            cache, dict.fromkeys(views, items), choice.name, setting_options, seed, data
        )
        raise NotCached(f"{error}{hint_about_runs(spaces, choice)}")
    by_setting = [spaces_like(cache, views, spaces[0]) for spaces in matches]
    lacking = [
        {name: rows for name, space in by_view.items() if (rows := space.missing(items))}
        for by_view in by_setting
    ]
    counts = [sum(map(len, gaps.values())) for gaps in lacking]
    nearest = [n for n, count in enumerate(counts) if count == min(counts)]
    chosen = _preferred([matches[n][0] for n in nearest], choice)
    if len(chosen) > 1:
        raise ambiguity(cache.root, choice, chosen)
    number = next(n for n in nearest if matches[n][0] is chosen[0])
    if lacking[number]:
        setting, made_by = _settings(chosen[0]), str(chosen[0].backbone)
        raise not_cached_error(cache, lacking[number], made_by, setting, seed, data)
    return by_setting[number]


def spaces_like(cache: Cache, views: Mapping[str, View], space: Space) -> dict[str, Space]:
    """For each view the space, there or not, with the backbone and the setting of `space`."""
    backbone, precision = space.key["backbone"], space.key["precision"]
    side = keys.jpeg_side(space.key)
    # The stored name says where the weights came from; the name in a choice may not.
    return {
        name: cache.space(
            keys.vector_key(view.key(), backbone, precision, side), view.name, space.backbone
        )
        for name, view in views.items()
    }


def is_alike(space: Space, other: Space) -> bool:
    """Do the spaces have the same backbone with the same setting?"""
    return keys.canonical(_settings(space)) == keys.canonical(_settings(other))


def fitting_spaces(spaces: Iterable[Space], choice: BackboneChoice, where: object) -> list[Space]:
    """The spaces whose backbone matches the choice; all have the same setting, the model's default
    if there are several. Raises BadInput, which names `where`, if none of several is the default.
    """
    matches = _by_setting(spaces, choice)
    chosen = _preferred([spaces[0] for spaces in matches], choice)
    if len(chosen) > 1:
        raise ambiguity(where, choice, chosen)
    return next((spaces for spaces in matches if spaces[0] is chosen[0]), [])


def ambiguity(where: object, choice: BackboneChoice, spaces: Sequence[Space]) -> BadInput:
    """The error for several settings that match a choice, one for each space, with the options
    that select them."""
    settings = [_settings(space) for space in spaces]
    default = default_setting(choice.name)
    fields = [n for n in OPTIONS if len({keys.canonical(s[n]) for s in settings}) > 1]
    entries = [{n: s[n] for n in fields if s[n] != default.get(n)} for s in settings]
    options = [
        " ".join(f"--{n.replace('_', '-')} {shlex.quote(str(v))}" for n, v in entry.items())
        for entry in entries
    ]
    command = ""
    if fields:
        assignments = " ".join(f"--set backbone.{n}={v}" for n, v in entries[0].items())
        command = f"with {' or '.join(options)}, for train-head with {assignments}, or "
    else:
        entries = [{"weights": str(s["weights"])[:12]} for s in settings]
    written = [
        f"backbone: {{{', '.join(f'{n}: {v}' for n, v in [('name', choice.name), *e.items()])}}}"
        for e in entries[: 1 if fields else None]
    ]
    return BadInput(
        f"{where} holds {len(settings)} settings of backbone {choice.name}, which differ in "
        f"{'; '.join(keys.differences(settings[0], settings[1]))}. Choose one {command}"
        f"in a schedule: {' or '.join(written)}"
    )


OTHER_VERSIONS = "it was drawn by other versions of the augmentation libraries"


def is_drawn_alike(view: View, space: Space) -> bool:
    """Would this machine draw the same pictures for this view as the space was made from?"""
    return keys.digest(view.key()) == keys.digest(space.key["view"])


def not_cached_error(
    cache: Cache,
    lacking: Mapping[str, ItemArray],
    backbone: str,
    setting: Mapping[str, object],
    seed: int,
    data: DataSource,
) -> NotCached:
    """The error for images that are missing in views, with the command that computes them."""
    counts = ", ".join(
        f"{counted(len(missing), 'image')} of view {v}" for v, missing in lacking.items()
    )
    command = featurize_command(data, cache, backbone, lacking, setting, seed)
    return NotCached(f"the cache lacks {counts}; compute them with: {command}")


def featurize_command(
    data: DataSource,
    cache: Cache,
    backbone: str,
    views: Iterable[str],
    setting: Mapping[str, object],
    seed: int,
) -> str:
    """The command that computes the vectors of these views; default options are omitted."""
    options: dict[str, object] = {"data": names_of(data), "cache": cache.root, "backbone": backbone}
    options |= data.columns if isinstance(data, Dataset) else {}
    options |= {name: setting[name] for name in (*OPTIONS, "store") if setting.get(name)}
    if str(setting.get("weights")).startswith("random-"):
        options["weights"] = "random"
    if setting.get("weights_file"):
        options["weights"] = setting["weights_file"]
    options["seed"] = seed
    default = {"layer": "pre_logits", "pooling": "model", "precision": "f32", "seed": "0"}
    options = {n: value for n, value in options.items() if str(value) != default.get(n)}
    words = [f"--view {shlex.quote(view)}" for view in views]
    return " ".join([command_line("featurize", **options), *words])


def no_backbone_error(what: str, cache: str | Path) -> BadInput:
    """The error for a command that needs the name of a backbone."""
    command = command_line("ls", cache=cache)
    return BadInput(f"{what} needs --backbone NAME; `{command}` lists the cached ones")


def _settings(space: Space) -> keys.Json:
    return {keys.JPEG_SIDE: None, **keys.setting_of(space.key)}


def _by_setting(spaces: Iterable[Space], choice: BackboneChoice) -> list[list[Space]]:
    """The spaces whose backbone matches the choice, those with the same setting together."""
    by_setting: dict[bytes, list[Space]] = {}
    for space in spaces:
        if space.backbone is not None and _fits(space, choice):
            by_setting.setdefault(keys.canonical(_settings(space)), []).append(space)
    return list(by_setting.values())


def _preferred(spaces: Sequence[Space], choice: BackboneChoice) -> list[Space]:
    """Those of several spaces, one for each setting, that have the model's default in the fields
    in which they differ; all of them if none has."""
    if len(spaces) < 2:
        return list(spaces)
    settings = [_settings(space) for space in spaces]
    fields = [n for n in OPTIONS if len({keys.canonical(s[n]) for s in settings}) > 1]
    default = default_setting(choice.name) if fields else {}
    fitting = [
        s for s in spaces if all(n in default and _settings(s)[n] == default[n] for n in fields)
    ]
    published = [s for s in fitting if not str(_settings(s)["weights"]).startswith("random-")]
    return published or fitting or list(spaces)


def names_of_network(space: Space) -> set[str]:
    """The exact names of the network of a space of vectors: the one it was stored by, timm's with
    its tag, and the aliases. A run goes by its folder only: the name of its architecture means
    other weights."""
    backbone, model = str(space.backbone), str(space.key["backbone"]["name"])
    names = {model, *(alias for alias, known in ALIASES.items() if known == model)}
    # No run, since a colon is in `hf-hub:owner/name` and `module:factory` before any slash.
    is_named = backbone in {*names, model.split(".")[0]} or ":" in backbone.partition("/")[0]
    return {backbone, *names} if is_named else {backbone}


def hint_about_runs(spaces: Iterable[Space], choice: BackboneChoice) -> str:
    """A clause for an error about the name of an architecture, where there are only vectors of runs
    that were trained from it: how to choose them. Empty where there are none."""
    digests = {
        str(space.backbone): str(_settings(space)["weights"])[:12]
        for space in spaces
        if space.backbone is not None and is_of_run(space) and _is_architecture(choice.name, space)
    }
    if choice.weights is not None or not digests:
        return ""
    ways = (f"{name} (or by weights: {digest})" for name, digest in digests.items())
    return f"; vectors of this network with other weights are found by the name {', '.join(ways)}"


def is_of_run(space: Space) -> bool:
    """Were the vectors stored by the folder of a run?"""
    return str(space.key["backbone"]["name"]) not in names_of_network(space)


def _is_architecture(name: str, space: Space) -> bool:
    """Is this a name of the architecture of a space's network, whatever its weights are?"""
    model = str(space.key["backbone"]["name"])
    return ALIASES.get(name, name) in (model, model.split(".")[0])


def _fits(space: Space, choice: BackboneChoice) -> bool:
    settings = _settings(space)
    if settings["pooling"] == "none" and choice.pooling != "none":
        return False  # maps are for train-network, and for heads that ask for them
    is_named = choice.name in names_of_network(space)
    if choice.weights is not None or not is_of_run(space):
        is_named |= _is_architecture(choice.name, space)
    if not is_named:
        trained = trained_network(choice.name)
        if trained is None or trained.weights != settings["weights"]:
            return False
    options = choice.model_dump(exclude={"name", "weights"}, exclude_none=True)
    weights = str(settings["weights"]).startswith(choice.weights or "")
    return weights and all(settings[name] == value for name, value in options.items())
