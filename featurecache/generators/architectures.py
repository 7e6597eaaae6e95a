"""The generators that can be trained and loaded, by the name in a configuration."""

from __future__ import annotations

from typing import Any

from featurecache.generators.cyclegan import CycleGan

# The values are subclasses of Generator, each with the configuration of CONFIGS of the same name.
ARCHITECTURES: dict[str, Any] = {"cyclegan": CycleGan}
