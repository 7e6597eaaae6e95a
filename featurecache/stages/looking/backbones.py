"""List the named backbones and whether their weights are at hand, or the layers of a network."""

from __future__ import annotations

from featurecache.features.backbones import alias_rows, layers_of


def backbones(layers: str | None = None) -> list[dict[str, str]]:
    """{name, model, weights, state} for each alias; any other timm model goes by timm's name.

    With `layers`, the name of a network: {layer, pooling} for each layer that can be read, and the
    poolings that it can be read by; `pre_logits` and `features` first, the others in their order.
    """
    if layers is None:
        return alias_rows()
    poolings = layers_of(layers)
    return [{"layer": layer, "pooling": ", ".join(how)} for layer, how in poolings.items()]
