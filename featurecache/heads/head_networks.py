"""The small networks on top of vectors, and their files. For the command line they are all of a
head: scikit-learn, which mlp.py adds, takes a second to import.

On disk a head is `head.json` (its description, with the SHA-256 of its weights) and one safetensors
file, or one per fold. `head.json` is written last, so it never describes weights that don't exist.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydantic
import safetensors
import safetensors.torch
import torch
from torch import nn

from featurecache.errors import BadInput, DamagedRun
from featurecache.heads.attention import AttentionPool
from featurecache.json_files import MAX_RUN_JSON, Strict, damaged_run, read_file, read_model
from featurecache.storage import durable
from featurecache.text import one_line
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.tensors import packed

HEAD_FORMAT: Literal[1] = 1
_MAX_WEIGHT_BYTES = 2 << 30
_MAX_WIDTH = 1 << 24  # of a layer; with a thousand outputs it has 64 GiB of weights
_ROWS_AT_ONCE = 8192  # bounds the memory of a prediction; 8192 x 1024 float32 is 32 MiB


def build(in_features: int, classes: int, head: HeadSpec) -> nn.Sequential:
    """An untrained head: (B, in_features) to logits (B, classes). Uses torch's global RNG."""
    layers: list[nn.Module] = []
    if head.input_dropout is not None:
        layers.append(nn.Dropout(head.input_dropout))
    if head.queries is not None and head.channels is not None:
        layers.append(AttentionPool(in_features, head.channels, head.queries))
        in_features = head.channels
        layers += _norms(head, in_features)
    widths = itertools.pairwise([in_features, *head.hidden])
    for (fan_in, width), dropout in zip(widths, head.per_layer("dropout"), strict=True):
        layers.append(nn.Linear(fan_in, width))
        layers += _norms(head, width)
        layers.append({"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[head.activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear([in_features, *head.hidden][-1], classes))
    return nn.Sequential(*layers)


def _norms(head: HeadSpec, width: int) -> list[nn.Module]:
    kinds = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    return [kinds[head.norm](width)] if head.norm in kinds else []


def in_features_of(head: nn.Sequential) -> int:
    """The length of the vectors that a head takes."""
    return next(int(m.in_features) for m in head if isinstance(m, nn.Linear | AttentionPool))


class _Described(Strict):
    """The content of `head.json`."""

    format: Literal[1]
    in_features: int = pydantic.Field(ge=1, le=_MAX_WIDTH)
    classes: list[str] = pydantic.Field(min_length=1)
    head: HeadSpec
    sha256: list[str] = pydantic.Field(min_length=1)  # of each member's weights


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadNetworks:
    """Trained networks of shape `spec` whose probabilities are averaged: one, or one per fold.
    `classes` names the labels 0..C-1."""

    members: Sequence[nn.Sequential]
    classes: Sequence[str]
    spec: HeadSpec

    @property
    def in_features(self) -> int:
        """The length of the vectors that it takes."""
        return in_features_of(self.members[0])

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Probabilities (N, C) float32 of vectors (N, D); every row sums to 1.

        Raises BadInput for a wrong shape or for values that are not finite.
        """
        vectors = np.asarray(X, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.in_features:
            raise BadInput(
                f"this head takes vectors of shape (N, {self.in_features}), "
                f"not {vectors.shape}; were they computed by another backbone?"
            )
        if not np.isfinite(vectors).all():
            raise BadInput("the vectors hold NaN or infinity")
        result = np.empty((len(vectors), len(self.classes)), dtype=np.float32)
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            batch = torch.tensor(vectors[rows])
            with torch.inference_mode():
                by_member = [member.eval()(batch).softmax(1) for member in self.members]
                result[rows] = torch.stack(by_member).mean(0).numpy()
        return result

    def network(self, index: int) -> HeadNetworks:
        """The network at this index, which was trained on one fold, by itself."""
        return HeadNetworks(members=[self.members[index]], classes=self.classes, spec=self.spec)

    def save(self, folder: Path) -> None:
        """Write the weights, then `head.json`; each file atomically."""
        hashes = []
        for path, member in zip(
            _weight_files(folder, len(self.members)), self.members, strict=True
        ):
            content = packed(member)
            durable.replace(path, content)
            hashes.append(hashlib.sha256(content).hexdigest())
        described = _Described(
            format=HEAD_FORMAT,
            in_features=self.in_features,
            classes=list(self.classes),
            head=self.spec,
            sha256=hashes,
        )
        durable.replace(folder / "head.json", described.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> HeadNetworks:
        """The networks that `save` wrote into `folder`; nothing is unpickled.

        Raises BadInput if there is no head, DamagedRun if its files don't fit together.
        """
        description = folder / "head.json"
        if not description.is_file():
            raise BadInput(f"{folder}: no trained head here (no head.json); run train-head first")
        described = read_model(description, _Described, MAX_RUN_JSON, _not_a_head)
        members = []
        paths = _weight_files(folder, len(described.sha256))
        for path, sha256 in zip(paths, described.sha256, strict=True):
            if not path.is_file():
                raise DamagedRun(f"{path}: missing, but {description} names it; train again")
            content = read_file(path, _MAX_WEIGHT_BYTES, damaged_run)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise DamagedRun(f"{path}: not the weights named in {description}; train again")
            members.append(_member(described, content, path))
        return cls(members=members, classes=described.classes, spec=described.head)


def side_by_side(heads: Sequence[HeadNetworks]) -> HeadNetworks:
    """Heads of one shape on different networks as one head on the networks' vectors, concatenated:
    each member has weights of zero for the vectors of the other networks."""
    widths = [head.in_features for head in heads]
    ends = [*itertools.accumulate(widths)]
    members = []
    for head, width, end in zip(heads, widths, ends, strict=True):
        member = copy.deepcopy(head.members[0])
        first = next(layer for layer in member if isinstance(layer, nn.Linear))
        first.weight = nn.Parameter(
            nn.functional.pad(first.weight.detach(), (end - width, ends[-1] - end))
        )
        first.in_features = ends[-1]
        members.append(member)
    return HeadNetworks(members=members, classes=heads[0].classes, spec=heads[0].spec)


def _weight_files(folder: Path, members: int) -> list[Path]:
    if members == 1:
        return [folder / "head.safetensors"]
    return [folder / f"head-{number}.safetensors" for number in range(1, members + 1)]


def _not_a_head(path: Path, what: str) -> DamagedRun:
    return damaged_run(path, f"not the description of a head: {what}")


def _member(described: _Described, content: bytes, path: Path) -> nn.Sequential:
    try:
        state = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged_run(path, f"not a safetensors file ({one_line(error)})") from error
    # The meta device draws no initial weights, so loading leaves the global RNG unchanged.
    try:
        with torch.device("meta"):
            module = build(described.in_features, len(described.classes), described.head)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise _not_a_head(path.parent / "head.json", f"head: {one_line(error)}") from error
    expected = {name: (t.shape, t.dtype) for name, t in module.state_dict().items()}
    if {name: (t.shape, t.dtype) for name, t in state.items()} != expected:
        raise DamagedRun(f"{path}: its tensors don't match the head in head.json")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all() or (
            name.endswith("running_var") and (tensor < 0).any()
        ):
            raise damaged_run(
                path, f"{name} holds values that are not finite, or negative variances"
            )
    module.load_state_dict(state, assign=True)
    return module.eval()
