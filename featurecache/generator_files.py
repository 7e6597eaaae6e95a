"""What the file `generator.json` of a run folder says: which network makes data, and its tensors;
and the index `generated.json` of a dataset that a network made.

They are read by policies, which name generators, by the code that loads them, and by the layout of
tar shards. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic

from featurecache.errors import BadInput, DamagedRun
from featurecache.json_files import MAX_RUN_JSON, Hex64, Strict, damaged_run, read_model

DESCRIPTION, WEIGHTS = "generator.json", "generator.safetensors"
CHECKPOINT = "generator.checkpoint"  # of fit-generator, until its training is finished
NETWORK_CHECKPOINT = "network.checkpoint"  # of train-network, whose AugNet is a generator
INDEX = "generated.json"  # of a dataset of generated images; every shard has a member of this name


class TrainedGenerator(Strict):
    """The content of `generator.json`."""

    format: Literal[1] = 1
    kind: str  # transform, sampler or vector sampler (generators/configs.py)
    generator: str  # the name of the architecture
    parameters: dict[str, Any]  # of the network
    image_size: int = pydantic.Field(ge=1, le=4096)
    classes: list[str] = pydantic.Field(min_length=1)
    weights: Hex64  # digest of the tensors
    items: Hex64  # root hash of the images that it was fitted on
    # The weights of the frozen network through which its discriminator saw images.
    discriminator_backbone: Hex64 | None = None


def is_generator(folder: str | Path) -> bool:
    """Whether a folder has the description of a generator."""
    return (Path(folder) / DESCRIPTION).is_file()


class GeneratedDataset(Strict):
    """The content of `generated.json`: the generator, and the digests of the shards."""

    format: Literal[1] = 1
    generator: TrainedGenerator
    version: pydantic.PositiveInt  # of the code that computes what a generator makes
    per_class: pydantic.PositiveInt
    shards: dict[str, Hex64] = pydantic.Field(min_length=1)
    root: Hex64  # digest of `shards`


def read_generated(folder: str | Path) -> GeneratedDataset:
    """The index of the dataset of generated images in a folder. Raises DamagedRun, CannotRead."""
    return read_model(Path(folder) / INDEX, GeneratedDataset, MAX_RUN_JSON, damaged_dataset)


def check_shards(folder: str | Path) -> None:
    """Raise DamagedRun if a shard of the dataset of generated images in a folder is missing."""
    for name in read_generated(folder).shards:
        if not (Path(folder) / name).exists():
            raise damaged_dataset(Path(folder) / name, "missing")


def damaged_dataset(path: object, what: str) -> DamagedRun:
    """The error about a damaged file of such a dataset."""
    return damaged_run(Path(str(path)), what, "delete the folder, and generate it again")


def read_description(folder: str | Path) -> TrainedGenerator:
    """The description of the generator in a folder. Raises BadInput for another folder, DamagedRun,
    CannotRead."""
    path = Path(folder) / DESCRIPTION
    if not is_generator(folder):
        remedy = "name the folder of a finished run of fit-generator, or of train-network with "
        remedy += "neural_augmentation"
        folds = sorted(Path(folder).glob("fold[_-]*"))
        finished = [fold.name for fold in folds if is_generator(fold)]
        parts = [Path(folder), *folds]
        if finished:
            remedy = f"it has one per fold; name one of {', '.join(finished)} in it"
            if len(finished) < len(folds):
                remedy += ", or finish the others by the same command"
        elif any((part / CHECKPOINT).exists() for part in parts):
            remedy = "its training is not finished; run the same command again"
        elif any((part / NETWORK_CHECKPOINT).exists() for part in parts):
            remedy = "its training is not finished; if it has neural_augmentation, run the same "
            remedy += "command again"
        raise BadInput(f"{folder}: not a generator (no {DESCRIPTION} in it); {remedy}")
    return read_model(path, TrainedGenerator, MAX_RUN_JSON)
