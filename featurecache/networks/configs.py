"""The configuration of a network's training, written in YAML. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from featurecache import yaml_files
from featurecache.training.curriculum import TrainingPlan
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.settings import YamlModel


class NetworkSpec(YamlModel):
    """The network and its initial weights. In YAML a name or a mapping.

    `name` is an alias, a timm name, or the folder of a run of train-network, whose weights are
    taken. `pretrained` takes the published weights, `weights` those of a file; otherwise the
    weights are random, by the seed. `dropout` and `drop_path` are timm's `drop_rate` and
    `drop_path_rate`. The other settings are those of a backbone.
    """

    name: str = Field(min_length=1)
    pretrained: bool = False
    weights: str | None = Field(default=None, min_length=1)
    input_size: int | None = Field(default=None, ge=1)  # pixels, both sides
    crop: float | None = Field(default=None, gt=0, le=1)
    interpolation: str | None = None
    dropout: float | None = Field(default=None, ge=0, lt=1)
    drop_path: float | None = Field(default=None, ge=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _weights_from_one_source(self) -> NetworkSpec:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights are two sources of weights; remove one")
        return self


class Maps(YamlModel):
    """Cached maps to train on in place of pictures. In YAML a layer or a mapping."""

    layer: str = Field(min_length=1)
    store: Literal["f32", "f16"] = "f32"


class Pretraining(YamlModel):
    """The order in which layers join the training. In YAML a name or a mapping.

    `layerwise`: in the first `epochs` epochs only the first layer is trained, in the next also the
    second, and so on.
    """

    name: Literal["layerwise"]
    epochs: int = Field(default=1, ge=1)  # per layer


class NeuralAugmentation(YamlModel):
    """A network that makes pictures for the training, and learns with it. In YAML its loss or a
    mapping.

    `pairs`: each picture is made of two `random` images of a class, or of the `same` image twice,
    as a control. `loss` compares it with a third image of the class. What is minimized is `alpha`
    times the classification loss plus `beta` times this one.
    """

    pairs: Literal["random", "same"] = "random"
    loss: Literal["none", "content", "style"] = "none"
    alpha: float = Field(default=0.75, gt=0)
    beta: float = Field(default=0.25, ge=0)

    @pydantic.model_validator(mode="after")
    def _weight_of_a_loss(self) -> NeuralAugmentation:
        if self.loss == "none" and self.beta != type(self).model_fields["beta"].default:
            raise ValueError("beta is the weight of the loss content or style; remove it")
        return self


def _trainable(value: Any) -> Any:
    if value in ("all", "head"):
        return value
    if isinstance(value, dict) and list(value) == ["from"] and isinstance(value["from"], str):
        return value
    raise ValueError("expected all, head, or {from: LAYER}")


def _mapping_of(key: str) -> pydantic.BeforeValidator:
    """A validator that takes a word alone as the value of `key`."""
    return pydantic.BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class NetworkConfig(TrainingPlan):
    """Everything that determines the training of a network, except the images.

    `views` and `epochs` may stand at the top in place of a single phase. `trainable` is `all`,
    `head` (only the layers after the network's vector) or `{from: LAYER}`; what comes before is
    frozen and runs as in evaluation. With `maps` it is not run: its cached maps are read.
    `batch_norm: frozen` keeps the statistics of batch norms as they are. `head` is the shape of the
    layers after the network's vector, by default one linear layer. `init_head` is a run whose head
    the training starts from (Kumar et al. 2022). With `every_view` an epoch has every image in all
    views of its phase; otherwise in one of them, by the shares.
    """

    network: Annotated[NetworkSpec, _mapping_of("name")]
    trainable: Annotated[
        Literal["all", "head"] | dict[str, str], pydantic.PlainValidator(_trainable)
    ] = "all"
    maps: Annotated[Maps, _mapping_of("layer")] | None = None
    batch_norm: Literal["trained", "frozen"] = "trained"
    pretrain: Annotated[Pretraining, _mapping_of("name")] | None = None
    every_view: Literal[True] | None = None
    neural_augmentation: Annotated[NeuralAugmentation, _mapping_of("loss")] | None = None
    head: HeadSpec = HeadSpec(hidden=[])
    init_head: str | None = Field(default=None, min_length=1)
    precision: Literal["f32", "bf16"] = "f32"
    compile: bool = False

    SHORT_KEYS: ClassVar = ("views", "epochs")  # keys at the top in place of phases
    SWEPT: ClassVar = (
        *TrainingPlan.SWEPT, "trainable", "batch_norm", "network.dropout", "network.drop_path",
    )  # fmt: skip

    @pydantic.model_validator(mode="before")
    @classmethod
    def _single_phase(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value.keys() & set(cls.SHORT_KEYS):
            return value
        if "phases" in value:
            raise ValueError("phases have their own views and epochs; remove those at the top")
        rest = {key: v for key, v in value.items() if key not in cls.SHORT_KEYS}
        phase = {"views": "none"} | {k: value[k] for k in cls.SHORT_KEYS if k in value}
        return {**rest, "phases": [phase]}

    @pydantic.model_validator(mode="after")
    def _supported(self) -> NetworkConfig:
        if self.optimizer.name == "lbfgs":
            raise ValueError("optimizer: lbfgs solves linear heads only; use train-head")
        if any(phase.order is not None for phase in self.phases):
            raise ValueError("phases: order is for heads only; remove it")
        if self.head.l1 or self.head.l2 or self.head.drop_connect:
            raise ValueError("head: l1, l2 and drop_connect are for cached vectors; remove them")
        if self.head.queries is not None:
            raise ValueError("head: attention is a head on cached maps; use train-head")
        if self.batch_size == 1 and self.batch_norm == "trained":
            raise ValueError("batch_size: batch norm needs at least 2; or write batch_norm: frozen")
        if self.maps is not None and self.first_layer is None:
            raise ValueError("maps: the layers to train must be named: trainable: {from: LAYER}")
        if self.every_view and any(
            phase.ramp_to is not None or len(set(phase.views.values())) > 1 for phase in self.phases
        ):
            raise ValueError("every_view: all views have the same share; list them without shares")
        if self.neural_augmentation is not None and (
            self.mixup or self.pretrain or self.trainable != "all"
        ):
            raise ValueError(
                "neural_augmentation: can't be joined with mixup, pretrain or a frozen part"
            )
        return self

    def pictures_per_epoch(self, rows: int) -> list[int]:
        """The number of pictures that each epoch shows, for this number of training images."""
        return [rows * (len(p.phase.views) if self.every_view else 1) for p in self.plan()]

    @property
    def first_layer(self) -> str | None:
        """The first layer that is trained; None for all, or for none but the head."""
        return self.trainable["from"] if isinstance(self.trainable, dict) else None


def is_network_config(path: Path) -> bool:
    """Whether a file configures a network, and not a head."""
    return "network" in yaml_files.read_mapping(path)


def read_config(path: Path) -> NetworkConfig:
    """The configuration in a YAML file. Raises BadInput that names the file and every wrong
    entry."""
    return yaml_files.validate(NetworkConfig, yaml_files.read_mapping(path), path)
