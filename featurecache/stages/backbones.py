"""List the named backbones, and whether their weights are at hand."""

from __future__ import annotations

from featurecache.features.backbones import at_hand


def backbones() -> list[dict[str, str]]:
    """{name, model, weights, state} for each alias; any other timm model goes by timm's name."""
    return at_hand()
