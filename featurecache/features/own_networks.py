"""A network of your own: `module:factory`, a function that returns a torch.nn.Module.

What its vectors depend on is fingerprinted by its tensors, by what torch prints of its structure,
and by the source of its code (network_code.py).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import BadInput
from featurecache.features.network_code import (
    check_imports,
    digests_of,
    fresh_modules,
    reason_in,
    sources_of,
)
from featurecache.features.timm_models import preprocessing_of
from featurecache.features.weights import load_weights
from featurecache.training.tensors import check_weights, digest_of_tensors

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MAX_DIFFERENCE = 1e-3  # of a vector in another batch, relative; rounding makes less


def is_own(name: str) -> bool:
    """Is this the name of a network of one's own?"""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class OwnModel:
    """A network that a factory made, with its own weights."""

    model: str
    module: torch.nn.Module
    code: Mapping[str, str]  # module -> SHA-256 of its source; distribution -> its version
    config: Mapping[str, Any]  # the network's pretrained_cfg, as timm's
    notes: list[str]
    known: frozenset[str]  # the modules that were imported before

    def check_size(self, size: int) -> None:
        """Raise BadInput unless it maps pictures (N, 3, size, size) to finite vectors (N, D), each
        of which depends on its picture alone (law 1) and is the same in every pass."""
        import torch

        generator = torch.Generator().manual_seed(0)
        pictures = torch.randn(3, 3, size, size, generator=generator)
        with torch.inference_mode():
            vectors, repeat, alone = (self._pass(p) for p in (pictures, pictures, pictures[:1]))
        scale = float(vectors.abs().max()) * _MAX_DIFFERENCE
        if not torch.allclose(vectors, repeat, rtol=0, atol=scale):
            raise BadInput(
                f"backbone {self.model}: it gives other vectors when it sees the same pictures "
                "again; remove what is random or kept between calls"
            )
        if not torch.allclose(vectors[:1], alone, rtol=0, atol=scale):
            raise BadInput(
                f"backbone {self.model}: the vector of a picture depends on the other pictures of "
                "its batch; use statistics that are not of the batch"
            )
        check_imports(self.model, self.known, self.code)

    def resized(self, network: torch.nn.Module, size: int) -> torch.nn.Module:
        """`network`, which must take pictures of this size as it is (`check_size`)."""
        return network

    @property
    def data(self) -> Mapping[str, Any]:
        """The preprocessing that the weights were trained with."""
        return preprocessing_of(self.config)

    @property
    def size(self) -> int:
        """The size of pictures, in pixels, unless told otherwise."""
        return int(self.data["input_size"][-1])

    def build_meta(self) -> Any:
        """The network without memory or arithmetic."""
        return copy.deepcopy(self.module).to("meta")

    def load(self, weights: str | Path | None) -> list[str]:
        """Load a file in place of the factory's weights; notes on the choice of weights."""
        if weights is None:
            return []
        if weights == "random":
            raise BadInput(f"backbone {self.model}: its function makes the weights; omit --weights")
        notes = load_weights(Path(weights), self.module, None)
        check_weights(self.module, BadInput, f"--weights {weights}")
        return notes

    def _pass(self, pictures: torch.Tensor) -> torch.Tensor:
        import torch

        shape = f"pictures of shape {tuple(pictures.shape)}"
        try:
            with _stdout_is_stderr():
                out = self.module(pictures)
        except Exception as error:
            raise BadInput(
                f"backbone {self.model}: it fails on {shape} ({reason_in(self.model, error)}); "
                "check --input-size, and the network's pretrained_cfg"
            ) from error
        if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(pictures):
            kind = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise BadInput(
                f"backbone {self.model}: for {shape} it returns {kind}, not one vector per "
                "picture, (N, D); pool and flatten its output"
            )
        if not out.is_floating_point() or not torch.isfinite(out).all():
            raise BadInput(
                f"backbone {self.model}: its vector of a test picture is not finite (NaN or "
                "infinity), or not of floating-point numbers"
            )
        return out


def make_network(name: str) -> OwnModel:
    """The network that the factory `name` makes, in evaluation mode, with its fingerprint.

    The module is imported as Python would: an installed one, or one from the working folder. Raises
    BadInput.
    """
    import torch

    module_name, _, attribute = name.partition(":")
    if module_name == "__main__":
        raise BadInput(f"backbone {name}: move {attribute} into a module of its own, and name that")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # behind all others, so that a file here does not replace a library
    importlib.invalidate_caches()
    before = sources_of(name, module_name)
    known = frozenset(sys.modules)
    with fresh_modules(before), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for what the module draws when it is imported
        factory = _factory(name, module_name, attribute)
        network, other = _call(name, factory), _call(name, factory)
    after = sources_of(name, module_name)
    changed = [module for module in before if after.get(module) != before[module]]
    if changed:
        raise BadInput(f"backbone {name}: {changed[0]} changed while it was imported; run again")
    check_weights(network, BadInput, f"backbone {name}")
    if digest_of_tensors(network) != digest_of_tensors(other):
        raise BadInput(
            f"backbone {name}: it has other weights each time that it is made; load them from a "
            "file, or seed whatever draws them"
        )
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    code = digests_of(after) | {"structure": hashlib.sha256(structure.encode()).hexdigest()}
    config, notes = _config_of(name, network)
    return OwnModel(name, network, code, config, notes, known)


def _factory(name: str, module_name: str, attribute: str) -> Any:
    try:
        with _stdout_is_stderr():
            module = importlib.import_module(module_name)
    except Exception as error:
        raise BadInput(
            f"backbone {name}: importing {module_name} failed ({reason_in(name, error)})"
        ) from error
    where = getattr(module, "__file__", None) or module_name
    if not hasattr(module, attribute):
        raise BadInput(f"backbone {name}: {where} has no {attribute}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise BadInput(
            f"backbone {name}: {attribute} in {where} is a {type(factory).__name__}, not a "
            "function that returns a network"
        )
    return factory


def _call(name: str, factory: Any) -> Any:
    import torch

    try:
        with _stdout_is_stderr():
            torch.default_generator.manual_seed(0)
            network = factory()
    except Exception as error:
        raise BadInput(
            f"backbone {name}: the function failed ({reason_in(name, error)}); it is called "
            "without arguments"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise BadInput(
            f"backbone {name}: it returns a {type(network).__name__}, not a torch.nn.Module"
        )
    for tensor_name, tensor in network.state_dict().items():
        is_plain = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        if not is_plain or tensor.is_quantized or tensor.device.type != "cpu":
            raise BadInput(
                f"backbone {name}: {tensor_name} is not a plain tensor on the CPU, so it can't be "
                "fingerprinted"
            )
    return network.eval().requires_grad_(False)


def _config_of(name: str, network: Any) -> tuple[dict[str, Any], list[str]]:
    """The network's preprocessing, and a note where it has none."""
    config = getattr(network, "pretrained_cfg", None)
    if config is None:
        note = (
            f"backbone {name}: it has no pretrained_cfg, so pictures are prepared as for ImageNet: "
            "224 pixels, crop 0.875, bicubic, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)"
        )
        return {"input_size": (3, 224, 224)}, [note]
    try:
        channels, *sides = config.get("input_size", (3, 224, 224))
        mean, std = config.get("mean", (0.5,) * 3), config.get("std", (0.5,) * 3)
        is_right = channels == 3 and len(sides) == 2 and all(type(n) is int for n in sides)
        is_right &= len(mean) == len(std) == 3 and all(math.isfinite(n) for n in mean)
        is_right &= all(0 < n < math.inf for n in std)
    except (AttributeError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise BadInput(
            f"backbone {name}: its pretrained_cfg must be a mapping such as "
            "{'input_size': (3, 224, 224), 'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}"
        )
    return dict(config), []


def _stdout_is_stderr() -> contextlib.redirect_stdout[Any]:
    """What a network prints must not be taken for a command's result."""
    return contextlib.redirect_stdout(sys.stderr)
