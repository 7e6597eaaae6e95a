"""List the named backbones, search timm's, or list the layers of a network."""

from __future__ import annotations

from typing import Any

from featurecache.errors import BadInput
from featurecache.features.backbone_table import alias_rows, search_rows
from featurecache.features.backbones import layers_of


def backbones(layers: str | None = None, *, search: str | None = None) -> list[dict[str, Any]]:
    """{name, model, weights, state, dim, input_size, parameters, licence} for each alias.

    With `search`, a part of a name, the same for each pretrained network of timm that has it;
    `dim` and `parameters` are None after the first 20. With `layers`, the name of a network:
    {layer, pooling} for each readable layer and the poolings that fit it; `pre_logits` and
    `features` come first, the others in network order. Raises BadInput.
    """
    if layers is None:
        return alias_rows() if search is None else search_rows(search)
    if search is not None:
        raise BadInput("--layers NAME and a word to search for exclude each other")
    poolings = layers_of(layers)
    return [{"layer": layer, "pooling": ", ".join(how)} for layer, how in poolings.items()]
