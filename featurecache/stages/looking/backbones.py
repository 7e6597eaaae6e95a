"""List the named backbones and whether their weights are on this machine, or a network's layers."""

from __future__ import annotations

from featurecache.features.backbones import alias_rows, layers_of


def backbones(layers: str | None = None) -> list[dict[str, str]]:
    """{name, model, weights, state} for each alias; other timm models are used by their timm name.

    With `layers`, the name of a network: {layer, pooling} for each readable layer and the poolings
    that fit it; `pre_logits` and `features` come first, the others in network order.
    """
    if layers is None:
        return alias_rows()
    poolings = layers_of(layers)
    return [{"layer": layer, "pooling": ", ".join(how)} for layer, how in poolings.items()]
