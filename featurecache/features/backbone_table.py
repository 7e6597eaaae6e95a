"""Facts about backbones that are not loaded: the aliases, and a search in timm."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from featurecache.errors import UnknownName
from featurecache.features.packaged_weights import PACKAGED
from featurecache.features.timm_models import ALIASES, TimmModel, find_model, search_names

MAX_MEASURED = 20  # networks per search that are built to measure them; 0.2 to 0.6 s each

# Dimension, input size and parameters (without the classifier) of the aliases, so that listing them
# imports neither torch nor timm. All have the same licence.
_ALIAS_SIZES = {
    "efficientnet_b0_ap": (1280, 224, 4_007_548),
    "efficientnet_b1_ap": (1280, 240, 6_513_184),
    "efficientnet_b2_ap": (1408, 260, 7_700_994),
    "efficientnet_b3_ap": (1536, 300, 10_696_232),
    "efficientnet_b4_ap": (1792, 380, 17_548_616),
    "efficientnet_b5_ap": (2048, 456, 28_340_784),
    "efficientnet_b6_ap": (2304, 528, 40_735_704),
    "efficientnet_b7_ap": (2560, 600, 63_786_960),
    "efficientnet_b8_ap": (2816, 672, 84_596_142),
    "efficientnet_lite0": (1280, 224, 3_371_008),
    "efficientnet_lite1": (1280, 240, 4_135_680),
    "efficientnet_lite2": (1280, 260, 4_811_072),
}
_ALIAS_LICENCE = "apache-2.0"


def alias_rows() -> list[dict[str, Any]]:
    """The aliases, with the source of their weights; imports neither torch nor timm."""
    rows = []
    for name, model in ALIASES.items():
        if name in PACKAGED:
            package = PACKAGED[name][0]
            is_installed = importlib.util.find_spec(package) is not None
            source = f"package {package.replace('_', '-')}"
        else:
            source, is_installed = f"hub timm/{model}", _is_in_hub_cache(f"timm/{model}")
        rows.append(_row(name, model, source, is_installed, _ALIAS_SIZES[name], _ALIAS_LICENCE))
    return rows


def search_rows(word: str) -> list[dict[str, Any]]:
    """The aliases, the networks of architectures/ and timm's pretrained networks whose name
    contains `word`; it may have * and ?.

    Only the first MAX_MEASURED have `dim` and `parameters`, the others have None. Nothing is
    downloaded. Raises UnknownName if there are none.
    """
    names = search_names(word)
    if not names:
        raise UnknownName("backbone", word, search_names("*"))
    aliases = {row["name"]: row for row in alias_rows()}
    measured: dict[tuple[str, int], tuple[int | None, int]] = {}
    rows = []
    for number, name in enumerate(names):
        if name in aliases:
            rows.append(aliases[name])
            continue
        model = find_model(name)
        kind = (model.architecture, model.size)
        if number < MAX_MEASURED and kind not in measured:
            measured[kind] = _measure(model)
        dim, parameters = measured.get(kind, (None, None))
        config = model.config
        if config.hf_hub_id:
            source, is_here = f"hub {config.hf_hub_id}", _is_in_hub_cache(config.hf_hub_id)
        elif config.has_weights:
            source, is_here = f"URL {config.url}", _is_downloaded(config.url)
        else:
            source, is_here = "none: train it", False
        sizes = (dim, model.size, parameters)
        rows.append(_row(name, model.model, source, is_here, sizes, config.license or "unknown"))
    return rows


def _row(
    name: str,
    model: str,
    source: str,
    is_here: bool,
    sizes: tuple[int | None, int, int | None],
    licence: str,
) -> dict[str, Any]:
    dim, input_size, parameters = sizes
    state = "at hand" if is_here else "not here"
    return {
        "name": name, "model": model, "weights": source, "state": state, "dim": dim,
        "input_size": input_size, "parameters": parameters, "licence": licence,
    }  # fmt: skip


def _measure(model: TimmModel) -> tuple[int | None, int]:
    """The dimension, None if it can't be told without weights, and the number of parameters."""
    import torch

    network = model.build_meta()
    parameters = sum(p.numel() for p in network.parameters())
    try:
        with torch.no_grad():
            out = network(torch.zeros(1, 3, model.size, model.size, device="meta"))
    except (RuntimeError, NotImplementedError):  # it needs numbers, which the meta device lacks
        return None, parameters
    is_vector = isinstance(out, torch.Tensor) and out.ndim == 2
    return (int(out.shape[1]) if is_vector else None), parameters


def _is_in_hub_cache(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _is_downloaded(url: str) -> bool:
    import torch

    return bool(url) and Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2]).is_file()
