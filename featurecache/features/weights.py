"""Weights files: which tensors of a checkpoint are the network's.

docs/cli.md has the table of the recognised names.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import BadInput
from featurecache.text import one_line
from featurecache.training.tensors import without_counters

if TYPE_CHECKING:
    import torch

# The names that training scripts give to the weights in a checkpoint; the first one present counts.
# Averaged weights (EMA) come before the others, as in timm.models.load_state_dict.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
PLAIN = ("state_dict", "model", "model_state_dict", "params", "net", "module")
# Names of modules that wrap a network (DDP, a LightningModule, an average), used as prefixes of its
# tensors' names.
WRAPPERS = ("module", "model", "net", "network", "backbone", "encoder")
AVERAGE_WRAPPERS = ("model_ema", "ema_model", "ema", "averaged_model")
# Parts that torch.compile, FSDP and activation checkpointing insert anywhere into a name.
INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# The beginnings of files that are found where a download of weights failed.
_FAILED_DOWNLOADS = (
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (b"<!doctype html", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def load_weights(path: Path, module: Any, classifier: str | tuple[str, ...] | None) -> list[str]:
    """Load a weights file: it must contain every tensor of the network, in the right shape.

    If the file contains several sets of weights, notes say which were used. Raises BadInput.
    """
    if not path.is_file():
        reason = "is a folder or a device, not a file" if path.exists() else "no such file"
        raise BadInput(f"--weights {path}: {reason}")
    tensors, notes = read_tensors(path)
    expected = without_counters(module.state_dict())
    prefix = _prefix(path, tensors, expected, notes)
    inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    ends = (classifier,) if isinstance(classifier, str) else classifier or ()
    # Batch counters are not weights, and the classifier does not affect a vector.
    missing = [name for name in expected if name not in inner]
    state = module.state_dict()
    extra = [n for n in inner if n not in state and not n.startswith(tuple(f"{e}." for e in ends))]
    misfit = [n for n in expected if n in inner and expected[n].shape != inner[n].shape]
    if missing or extra or misfit:
        counts = f"{len(missing)} missing, {len(extra)} unknown, {len(misfit)} of another shape"
        first = next(iter([*missing, *extra, *misfit]))
        choices = "".join(f"; {note.removeprefix(f'--weights {path}: ')}" for note in notes)
        raise BadInput(
            f"--weights {path}: does not fit the backbone ({counts}; first: {first}); "
            f"name the backbone that these weights were trained as{choices}"
        )
    for name, tensor in expected.items():
        if tensor.is_floating_point() and not inner[name].is_floating_point():
            raise BadInput(
                f"--weights {path}: {name} is {inner[name].dtype}, not floating-point; quantised "
                "weights are not supported: use the weights from before quantisation"
            )
    module.load_state_dict({n: t for n, t in inner.items() if n in state}, strict=False)
    return notes


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a weights file by name, and notes. Never runs code from the file."""
    import torch

    loaded, chosen = _read(path), []
    while isinstance(loaded, Mapping):
        # A script that has not averaged yet saves an empty mapping.
        names = [n for n in (*AVERAGED, *PLAIN) if isinstance(loaded.get(n), Mapping) and loaded[n]]
        if not names:
            break
        loaded = loaded[names[0]]
        chosen.append(names)
    tensors = {}
    for name, tensor in loaded.items() if isinstance(loaded, Mapping) else ():
        if isinstance(name, str) and torch.is_tensor(tensor):
            tensors[_without_inserted(name)] = tensor
    if not tensors:
        raise BadInput(
            f"--weights {path}: contains no mapping of names to tensors, neither at the top level "
            f"nor as one of {', '.join((*AVERAGED, *PLAIN))}"
        )
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise BadInput(f"--weights {path}: {name} is not a plain tensor; save it dense")
    notes = [_note(path, names[0], names[1:]) for names in chosen if len(names) > 1]
    return tensors, notes


def _read(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(
            f"--weights {path}: expected a .safetensors, .pth, .pt, .bin, .ckpt or .tar file; "
            "or for vgg16, resnet50 and legacy_xception a .keras, .h5 or .onnx file"
        )
    try:
        if suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's version: real problems are raised
            # timm's training script also saves its arguments; a Namespace contains only values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BadInput:
    """The error for a file that its library can't read; the first bytes may show its kind."""
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    for start, kind in _FAILED_DOWNLOADS:
        if head.startswith(start):
            return BadInput(f"--weights {path}: not a weights file: {kind}")
    if not head:
        return BadInput(f"--weights {path}: not a weights file: it is empty; download it again")
    if isinstance(error, pickle.UnpicklingError):  # torch suggests running the file's code
        return BadInput(
            f"--weights {path}: not a weights file that can be read safely: it is not a pickle, or "
            "one that contains more than tensors and could run code; save only the state_dict, or "
            "save as .safetensors"
        )
    return BadInput(
        f"--weights {path}: not a weights file that can be read safely ({one_line(error)})"
    )


def _prefix(path: Path, tensors: Iterable[str], expected: Iterable[str], notes: list[str]) -> str:
    """The prefix of the network's names in a file: "", or the wrapping modules (`model.`)."""
    names, anchor = set(tensors), next(iter(expected), "")
    prefixes = {name.removesuffix(anchor) for name in names if name.endswith(anchor)}
    wrappers = {*WRAPPERS, *AVERAGE_WRAPPERS, ""}
    prefixes = {p for p in prefixes if wrappers.issuperset(p.split(".")) and p[-1:] in ("", ".")}
    complete = sorted(p for p in prefixes if all(p + name in names for name in expected))
    averaged = [p for p in complete if _is_averaged(p)]
    plain = [p for p in complete if p not in averaged]
    chosen = averaged or plain
    if len(chosen) > 1:
        raise BadInput(
            f"--weights {path}: contains several networks with these names, under "
            f"{', '.join(map(repr, chosen))}; save the one you want in a file of its own"
        )
    if averaged and plain:
        notes.append(_note(path, averaged[0], plain))
    # If the file does not fit, the error is about the names under the likeliest prefix.
    return chosen[0] if chosen else max(sorted(prefixes), key=len, default="")


def _note(path: Path, used_name: str, others: Iterable[str]) -> str:
    names = ", ".join(repr(name) for name in others)
    kind = "the averaged weights (EMA)" if _is_averaged(used_name) else "the weights"
    return f"--weights {path}: used {kind} under {used_name!r}; the file also contains {names}"


def _is_averaged(name: str) -> bool:
    return name in AVERAGED or not set(AVERAGE_WRAPPERS).isdisjoint(name.split("."))


def _without_inserted(name: str) -> str:
    for part in INSERTED:
        name = name.replace(part, "")
    return name
