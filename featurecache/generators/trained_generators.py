"""The files that make a run folder a generator.

`generator.safetensors` has the tensors of the network that makes data. `generator.json` describes
it, and is written last. Reading the description imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from featurecache.errors import BadInput
from featurecache.generator_files import (
    DESCRIPTION,
    WEIGHTS,
    TrainedGenerator,
    read_description,
)
from featurecache.generators.configs import SAVED
from featurecache.json_files import damaged_run, read_file
from featurecache.storage import durable
from featurecache.text import one_line
from featurecache.training.settings import YamlModel

if TYPE_CHECKING:
    from torch import nn

_MAX_WEIGHTS = 8 << 30  # bytes


def read_generator(folder: str | Path) -> TrainedGenerator:
    """The description of the generator in a folder, whose architecture is known here. Raises as
    `read_description`, and DamagedRun for an unknown one."""
    described = read_description(folder)
    try:
        _check_architecture(described)
    except ValueError as error:
        raise damaged_run(Path(folder) / DESCRIPTION, one_line(error)) from None
    return described


def _check_architecture(described: TrainedGenerator) -> None:
    """Raise ValueError for what no configuration could have been trained to."""
    config = SAVED.get(described.generator)
    if config is None or config.kind != described.kind:
        raise ValueError(f"generator: there is no {described.kind} {described.generator!r}")
    if set(described.parameters) != set(config.network_keys):
        raise ValueError(f"parameters: not {', '.join(config.network_keys)}")
    fields = {name: config.model_fields[name] for name in config.network_keys}
    types: dict[str, Any] = {name: (field.annotation, field) for name, field in fields.items()}
    pydantic.create_model("Parameters", __base__=YamlModel, **types)(**described.parameters)


def save_generator(folder: Path, network: nn.Module, described: TrainedGenerator) -> None:
    """Write the tensors, then the description; each file atomically."""
    from featurecache.training.tensors import packed

    durable.replace(folder / WEIGHTS, packed(network))
    durable.replace(folder / DESCRIPTION, described.model_dump_json(indent=2).encode() + b"\n")


def load_generator(folder: str | Path, digest: str | None = None) -> nn.Module:
    """The network in a folder, on the CPU, for evaluation; its weights are those of `digest`.

    The file is compared with the network that the description names before any of its tensors is
    used, and must have the described digest. Raises BadInput, DamagedRun, CannotRead.
    """
    import safetensors.torch
    import torch

    from featurecache.generators.architectures import ARCHITECTURES
    from featurecache.training.tensors import check_weights, digest_of_tensors

    described, path = read_generator(folder), Path(folder) / WEIGHTS
    if digest is not None and described.weights != digest:
        raise BadInput(
            f"{folder}: the generator has changed since this command began; run it again"
        )
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
