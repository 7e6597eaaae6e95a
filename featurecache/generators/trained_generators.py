"""The files that make a run folder a generator.

`generator.safetensors` has the tensors of the network that makes data. `generator.json` describes
it, and is written last. Reading the description imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from featurecache.errors import BadInput
from featurecache.generators.configs import CONFIGS, Kind
from featurecache.json_files import (
    MAX_RUN_JSON,
    Hex64,
    Strict,
    damaged_run,
    read_file,
    read_model,
)
from featurecache.storage import durable
from featurecache.text import one_line
from featurecache.training.settings import STRICT

if TYPE_CHECKING:
    from torch import nn

DESCRIPTION, WEIGHTS = "generator.json", "generator.safetensors"
_MAX_WEIGHTS = 8 << 30  # bytes


class TrainedGenerator(Strict):
    """The content of `generator.json`."""

    format: Literal[1] = 1
    kind: Kind
    generator: str  # the name of the architecture
    parameters: dict[str, Any]  # of the network
    image_size: int = pydantic.Field(ge=8, le=512)
    classes: list[str] = pydantic.Field(min_length=1)
    weights: Hex64  # digest of the tensors
    items: Hex64  # root hash of the images that it was fitted on

    @pydantic.model_validator(mode="after")
    def _of_an_architecture(self) -> TrainedGenerator:
        config = CONFIGS.get(self.generator)
        if config is None or config.kind != self.kind:
            raise ValueError(f"generator: there is no {self.kind} {self.generator!r}")
        if set(self.parameters) != set(config.network_keys):
            raise ValueError(f"parameters: not {', '.join(config.network_keys)}")
        fields = {name: config.model_fields[name] for name in config.network_keys}
        types: dict[str, Any] = {name: (field.annotation, field) for name, field in fields.items()}
        pydantic.create_model("Parameters", __config__=STRICT, **types)(**self.parameters)
        return self


def read_generator(folder: str | Path) -> TrainedGenerator:
    """The description of the generator in a folder. Raises BadInput for another folder, DamagedRun,
    CannotRead."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise BadInput(
            f"{folder}: not a generator (no {DESCRIPTION} in it); name the folder of a finished "
            "run of fit-generator"
        )
    return read_model(path, TrainedGenerator, MAX_RUN_JSON)


def save_generator(
    folder: Path,
    network: nn.Module,
    described: TrainedGenerator,
) -> None:
    """Write the tensors, then the description; each file atomically."""
    import safetensors.torch

    state = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    durable.replace(folder / WEIGHTS, safetensors.torch.save(state))
    durable.replace(folder / DESCRIPTION, described.model_dump_json(indent=2).encode() + b"\n")


def load_generator(folder: str | Path) -> nn.Module:
    """The network in a folder, on the CPU, for evaluation.

    The file is compared with the network that the description names before any of its tensors is
    used, and must have the described digest. Raises BadInput, DamagedRun, CannotRead.
    """
    import safetensors.torch
    import torch

    from featurecache.generators.architectures import ARCHITECTURES
    from featurecache.training.tensors import check_weights, digest_of_tensors

    described, path = read_generator(folder), Path(folder) / WEIGHTS
    content = read_file(path, _MAX_WEIGHTS, damaged_run)
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the library raises several kinds
        raise damaged_run(path, f"not a safetensors file ({one_line(error)})") from error
    with torch.device("meta"):  # no memory for a network that the file does not hold
        network: nn.Module = ARCHITECTURES[described.generator].build(
            described.parameters, described.image_size, len(described.classes)
        )
    expected = {name: (t.dtype, t.shape) for name, t in network.state_dict().items()}
    present = {name: (t.dtype, t.shape) for name, t in tensors.items()}
    if expected != present:
        names = sorted(
            name for name in {*expected, *present} if expected.get(name) != present.get(name)
        )
        raise damaged_run(path, f"not the tensors of {described.generator} (first: {names[0]})")
    network.load_state_dict(tensors, assign=True)
    if digest_of_tensors(network) != described.weights:
        raise damaged_run(path, f"not the tensors that {DESCRIPTION} describes")
    network.eval().requires_grad_(False)
    check_weights(network, BadInput, str(path))
    return network
