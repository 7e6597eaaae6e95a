"""The configuration of a generator's training, written in YAML. Imports no torch.

Every architecture has a configuration of its own; CONFIGS lists them by the name in `generator`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field

from featurecache import yaml_files
from featurecache.errors import BadInput, UnknownName
from featurecache.training.settings import YamlModel

# transform: image -> image; sampler: class -> image; vector sampler: class -> vector
Kind = Literal["transform", "sampler", "vector sampler"]


class Folds(YamlModel):
    """One generator per fold, each fitted without the images of its fold."""

    folds: int = Field(ge=2)


class GeneratorConfig(YamlModel):
    """What every generator's configuration has.

    `classes` restricts the images to these classes. `validation: {folds: K}` fits one generator per
    fold, on the folds that a head's schedule with the same seed has. `kind` is what the generator
    maps, `min_images` the fewest images that a class must have, and `network_keys` are the keys
    that determine the network, apart from the image size and the classes.
    """

    kind: ClassVar[Kind]
    min_images: ClassVar[int] = 2
    network_keys: ClassVar[tuple[str, ...]] = ()

    generator: str
    image_size: int = Field(default=64, ge=8, le=512)  # pixels, both sides
    classes: list[str] | None = Field(default=None, min_length=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    validation: Folds | None = None

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys that have no effect here."""
        return ()

    def network(self) -> dict[str, Any]:
        """The keys that determine the network."""
        return self.model_dump(mode="json", include=set(self.network_keys))


class CycleGanConfig(GeneratorConfig):
    """CycleGAN (Zhu et al. 2017): images of the dataset are given the style of other images.

    `style` is a folder of images, or a class of the dataset. `channels` of the first layer and
    residual `blocks` make the network; `cycle` and `identity` are the weights of these losses.
    """

    kind: ClassVar[Kind] = "transform"
    network_keys: ClassVar[tuple[str, ...]] = ("channels", "blocks")

    generator: Literal["cyclegan"]
    style: str = Field(min_length=1)
    channels: int = Field(default=32, ge=1, le=256)
    blocks: int = Field(default=3, ge=1, le=16)
    lr: float = Field(default=2e-4, gt=0)
    cycle: float = Field(default=10.0, ge=0)
    identity: float = Field(default=5.0, ge=0)

    @pydantic.field_validator("image_size")
    @classmethod
    def _halved_twice(cls, value: int) -> int:
        if value % 4:
            raise ValueError("the network halves the sides twice; use a multiple of 4")
        return value


class AugNetConfig(GeneratorConfig):
    """AugNet (paper 004), which `neural_augmentation` in a configuration of train-network fits: the
    kind of its pairs, and how many `images` and `partners` it knows."""

    kind: ClassVar[Kind] = "transform"
    network_keys: ClassVar[tuple[str, ...]] = ("pairs", "images", "partners")

    generator: Literal["augnet"]
    pairs: Literal["random", "same"]
    images: int = Field(ge=0, lt=2**32)
    partners: int = Field(ge=0, lt=2**32)


class SamplerConfig(GeneratorConfig):
    """Class and noise -> image. `noise_size` numbers of noise make an image. With `mirror` the
    critic sees half of the real images mirrored."""

    kind: ClassVar[Kind] = "sampler"
    has_classes: ClassVar[bool] = True

    noise_size: int = Field(default=100, ge=1, le=1024)
    lr: float = Field(default=2e-4, gt=0)
    mirror: bool = False


class WganConfig(SamplerConfig):
    """Paper 000's WGAN (Arjovsky et al. 2017): dense layers, and networks of its own per class.

    A step has `critic_steps` of the critic, whose weights are kept within `clip`.
    """

    network_keys: ClassVar[tuple[str, ...]] = ("noise_size",)

    generator: Literal["wgan"]
    lr: float = Field(default=5e-5, gt=0)
    critic_steps: int = Field(default=5, ge=1)
    clip: float = Field(default=0.01, gt=0)


class ConvolutionalConfig(SamplerConfig):
    """A convolutional generator. `channels` is the number before the last convolution; each layer
    before it has twice as many."""

    network_keys: ClassVar[tuple[str, ...]] = ("noise_size", "channels")

    batch_size: int = Field(default=64, ge=2)
    channels: int = Field(default=16, ge=1, le=256)

    @pydantic.field_validator("image_size")
    @classmethod
    def _halved_four_times(cls, value: int) -> int:
        if value % 16:
            raise ValueError("the network halves the sides four times; use a multiple of 16")
        return value


class DcganConfig(ConvolutionalConfig):
    """DCGAN (Radford et al. 2016) as paper 001 describes it, which knows no classes."""

    has_classes: ClassVar[bool] = False

    generator: Literal["dcgan"]


class ConditionalConfig(ConvolutionalConfig):
    """A class-conditional generator. `average` is the decay of the mean of its weights over the
    steps, which is what is saved."""

    generator: Literal["wgan_gp", "conditional_dcgan"]
    average: float = Field(default=0.99, ge=0, lt=1)


class ProjectedConfig(ConditionalConfig):
    """A projected GAN (Sauer et al. 2021)."""

    generator: Literal["projected"]  # type: ignore[assignment]
    lr: float = Field(default=1e-3, gt=0)


class VectorSamplerConfig(GeneratorConfig):
    """Class -> vector. It is fitted on cached vectors of `backbone`, as in a schedule, in `view`.
    `width`, the numbers per vector, is filled in from them."""

    kind: ClassVar[Kind] = "vector sampler"

    backbone: str | dict[str, Any] | list[str | dict[str, Any]]
    view: str = Field(default="none", min_length=1)
    width: int = Field(default=0, ge=0)

    @property
    def unused_keys(self) -> tuple[str, ...]:
        return ("image_size",)

    def with_width(self, width: int, path: Path) -> Self:
        """The configuration for vectors of this width. Raises BadInput, which names `path`, for a
        `width` that differs."""
        if self.width not in (0, width):
            raise BadInput(f"{path}: width: the vectors have {width:,} numbers; remove the key")
        return self.model_copy(update={"width": width})


class GaussianConfig(VectorSamplerConfig):
    """A normal distribution per class with shrunk covariance. `covariance: shared` has one for all
    classes; `class` has one per class, exact in its `rank` strongest directions."""

    network_keys: ClassVar[tuple[str, ...]] = ("width", "covariance", "rank")

    generator: Literal["gaussian"]
    steps: Literal[1] = 1
    covariance: Literal["shared", "class"] = "shared"
    rank: int = Field(default=64, ge=1)

    @property
    def unused_keys(self) -> tuple[str, ...]:
        keys = (*super().unused_keys, "batch_size")  # it is fitted in one step on all vectors
        return keys if self.covariance == "class" else (*keys, "rank")

    def with_width(self, width: int, path: Path) -> Self:
        if self.covariance == "class" and self.rank > width:
            raise BadInput(
                f"{path}: rank: vectors of width {width:,} have no more directions than that; "
                f"write a number from 1 to {width:,}"
            )
        return super().with_width(width, path)


class VectorGanConfig(VectorSamplerConfig):
    """A conditional WGAN-GP of vectors. `hidden` are the layers of both networks; a step has
    `critic_steps` of the critic."""

    network_keys: ClassVar[tuple[str, ...]] = ("width", "noise_size", "hidden")

    generator: Literal["vector_wgan_gp"]
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=256, ge=2)
    noise_size: int = Field(default=64, ge=1, le=1024)
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[256], min_length=1)
    lr: float = Field(default=5e-4, gt=0)
    critic_steps: int = Field(default=3, ge=1)


CONFIGS: dict[str, type[GeneratorConfig]] = {
    "cyclegan": CycleGanConfig,
    "wgan": WganConfig,
    "wgan_gp": ConditionalConfig,
    "dcgan": DcganConfig,
    "conditional_dcgan": ConditionalConfig,
    "projected": ProjectedConfig,
    "gaussian": GaussianConfig,
    "vector_wgan_gp": VectorGanConfig,
}
SAVED = CONFIGS | {"augnet": AugNetConfig}  # with those that fit-generator does not fit


def read_config(path: Path) -> GeneratorConfig:
    """The configuration in a YAML file. Raises BadInput that names the file and every wrong
    entry."""
    content = yaml_files.read_mapping(path)
    name = content.get("generator")
    if not isinstance(name, str):
        raise BadInput(f"{path}: generator: name one of {', '.join(CONFIGS)}")
    if name in SAVED.keys() - CONFIGS.keys():
        raise BadInput(
            f"{path}: generator: {name} is trained with a network; write neural_augmentation in "
            "a configuration of train-network"
        )
    if name not in CONFIGS:
        raise UnknownName("generator", name, CONFIGS, where=str(path))
    config = yaml_files.validate(CONFIGS[name], content, path)
    # Not checked by the models: saved configurations have all keys.
    for key in config.unused_keys:
        if key in content:
            kind = f"{name} with covariance: shared" if key == "rank" else name
            raise BadInput(f"{path}: {key}: {kind} does not use it; remove the key")
    return config
