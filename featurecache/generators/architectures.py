"""The generators that can be trained and loaded, by the name in a configuration."""

from __future__ import annotations

from typing import Any

from featurecache.generators.augnet import FrozenAugNet
from featurecache.generators.cyclegan import CycleGan
from featurecache.generators.dcgans import ConditionalDcgan, Dcgan
from featurecache.generators.gaussians import Gaussians
from featurecache.generators.projected import ProjectedGan
from featurecache.generators.vector_gans import VectorGan
from featurecache.generators.wgans import ConvolutionalWganGp, DenseWgan

# The values are subclasses of Generator, each with the configuration of CONFIGS of the same name,
# and the network that train-network saves, which is only loaded here.
ARCHITECTURES: dict[str, Any] = {
    "augnet": FrozenAugNet,
    "cyclegan": CycleGan,
    "wgan": DenseWgan,
    "wgan_gp": ConvolutionalWganGp,
    "dcgan": Dcgan,
    "conditional_dcgan": ConditionalDcgan,
    "projected": ProjectedGan,
    "gaussian": Gaussians,
    "vector_wgan_gp": VectorGan,
}
