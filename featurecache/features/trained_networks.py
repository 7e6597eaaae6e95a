"""Networks that were trained here: the files that make a run folder a backbone.

`network.safetensors` has the network's tensors, without the head. `network.json` describes it, and
is written last.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import pydantic

from featurecache.errors import DamagedRun
from featurecache.features.settings import LoadSetting
from featurecache.json_files import MAX_RUN_JSON, Hex64, Strict, damaged_run, read_model
from featurecache.storage import durable
from featurecache.text import one_line

if TYPE_CHECKING:
    import torch

DESCRIPTION, WEIGHTS = "network.json", "network.safetensors"


class TrainedNetwork(Strict):
    """The content of `network.json`."""

    format: Literal[1] = 1
    model: str = pydantic.Field(min_length=1)  # timm's full name
    weights: Hex64  # digest of the tensors
    # Root hash of the images that the tensors were trained on, or of none; older files lack it.
    items: Hex64 | None = None
    input_size: pydantic.PositiveInt
    crop: float = pydantic.Field(gt=0, le=1)
    interpolation: str

    def setting(self, changed: LoadSetting) -> LoadSetting:
        """How the network saw pictures in its training; with the `changed` that are not None."""
        present = self.model_dump(include={"input_size", "crop", "interpolation"})
        other = {name: value for name, value in changed.items() if value is not None}
        return cast(LoadSetting, present | other)


def trained_network(name: str) -> TrainedNetwork | None:
    """The network in a run folder; None if `name` is not the folder of one. Raises DamagedRun."""
    path = Path(name) / DESCRIPTION
    return read_model(path, TrainedNetwork, MAX_RUN_JSON, _no_network) if path.is_file() else None


def weights_file(name: str) -> Path:
    """The file with the tensors of the network in a run folder. Raises DamagedRun."""
    from safetensors import SafetensorError, safe_open

    path = Path(name) / WEIGHTS
    if not path.is_file():
        raise DamagedRun(f"{path}: missing, but {DESCRIPTION} names it; train again")
    try:
        with safe_open(path, "numpy"):  # reads the header, and compares it with the file's size
            return path
    except SafetensorError as error:
        raise damaged_run(path, f"not a safetensors file ({one_line(error)})") from error


def run_of_network(name: str, weights: str | Path | None, digest: str) -> Path | None:
    """The run folder of a network, which is its name or has its file of weights, if the folder
    describes a network with these tensors. Raises DamagedRun."""
    path = Path(name) / WEIGHTS if weights is None else Path(weights)
    described = trained_network(str(path.parent)) if path.name == WEIGHTS else None
    return path.parent if described is not None and described.weights == digest else None


def save_network(run: Path, network: torch.nn.Module, described: TrainedNetwork) -> None:
    """Write the tensors, then the description; each file atomically."""
    from featurecache.training.tensors import packed

    durable.replace(run / WEIGHTS, packed(network))
    durable.replace(run / DESCRIPTION, described.model_dump_json(indent=2).encode() + b"\n")


def _no_network(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, f"not the description of a network: {what}")
