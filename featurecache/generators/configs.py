"""The configuration of a generator's training, written in YAML. Imports no torch.

Every architecture has a configuration of its own; CONFIGS lists them by the name in `generator`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field

from featurecache import yaml_files
from featurecache.errors import BadInput, UnknownName
from featurecache.training.settings import STRICT

Kind = Literal["transform"]  # transform: image -> image


class Folds(pydantic.BaseModel):
    """One generator per fold, each fitted without the images of its fold."""

    model_config = STRICT

    folds: int = Field(ge=2)


class GeneratorConfig(pydantic.BaseModel):
    """What every generator's configuration has.

    `classes` restricts the images to these classes. `validation: {folds: K}` fits one generator per
    fold, on the folds that a head's schedule with the same seed has. `kind` is what the generator
    maps, `min_images` the fewest images that a class must have, and `network_keys` are the keys
    that determine the network, apart from the image size and the classes.
    """

    model_config = STRICT

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


CONFIGS: dict[str, type[GeneratorConfig]] = {"cyclegan": CycleGanConfig}


def read_config(path: Path) -> GeneratorConfig:
    """The configuration in a YAML file. Raises BadInput that names the file and every wrong
    entry."""
    content = yaml_files.plain_value(yaml_files.read_yaml(path))
    name = content.get("generator")
    if not isinstance(name, str):
        raise BadInput(f"{path}: generator: name one of {', '.join(CONFIGS)}")
    if name not in CONFIGS:
        raise UnknownName("generator", name, CONFIGS, where=str(path))
    return yaml_files.validate(CONFIGS[name], content, path)
