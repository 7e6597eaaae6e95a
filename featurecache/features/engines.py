"""Engines: where a backbone's arithmetic runs. Same vectors, other speed.

The engine is not part of a space's key (law 2); it is provenance, and a contract test holds each
to timm's eager f32. Every engine takes micro-batches of one fixed size, zero-padded at the tail:
for engines that are not `row_stable` the neighbours in a batch shift a row's last bits (law 5).
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from featurecache import records
from featurecache.errors import BadInput, FeatureCacheError, UnknownName
from featurecache.features.backbones import Backbone, Preprocess

PRECISIONS = ("f32", "bf16", "fp16")
ENGINES = ("openvino", "torch-cpu", "torch-cuda")


class Engine(Protocol):
    """A backbone made ready to run."""

    name: str
    micro_batch: int
    row_stable: bool  # does a row come out the same bytes whatever its batch, slot and neighbours?

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(micro_batch, S, S, 3) uint8 to (micro_batch, D) float32."""
        ...

    def provenance(self) -> dict[str, str]:
        """What may shift last bits and is not in the key: engine, device, library versions."""
        ...


class TorchEngine:
    """timm's own module, eager, on a CPU or a CUDA device."""

    row_stable = False

    def __init__(self, backbone: Backbone, precision: str, device: str) -> None:
        import torch

        self.name = f"torch-{device}"
        self.micro_batch = 128 if device == "cuda" else 16
        self._device = torch.device(device)
        self._dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            precision
        ]
        self._module = _with_normalisation(backbone, self._dtype).to(self._device)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode(), _exact_cuda(self._device.type == "cuda"):
            try:
                batch = torch.from_numpy(pixels).to(self._device)
                return self._module(batch).float().cpu().numpy()  # type: ignore[no-any-return]
            except torch.OutOfMemoryError as error:
                raise FeatureCacheError(
                    f"the GPU's memory does not hold {self.micro_batch} images at this size; free "
                    "it, or give a smaller --input-size or another --engine"
                ) from error

    def provenance(self) -> dict[str, str]:
        import torch

        gpu = self._device.type == "cuda"
        device = torch.cuda.get_device_name() if gpu else "cpu"
        return _provenance(self, device)


class OpenVINOEngine:
    """OpenVINO on the CPU: several times timm eager, and its rows never depend on the batch."""

    name = "openvino"
    micro_batch = 16
    row_stable = True

    def __init__(self, backbone: Backbone, precision: str) -> None:
        import openvino
        import torch

        size = backbone.preprocess.input_size
        shape = (self.micro_batch, size, size, 3)
        module = _with_normalisation(backbone, torch.float32)
        with torch.no_grad(), warnings.catch_warnings():
            # OpenVINO's converter runs torch's tracer, which is deprecated and warns of shapes that
            # become constants: here they are constant.
            warnings.simplefilter("ignore")
            model = openvino.convert_model(
                module, example_input=torch.zeros(shape, dtype=torch.uint8)
            )
        model.reshape(list(shape))
        hints = {
            "PERFORMANCE_HINT": "LATENCY",  # THROUGHPUT was half as fast for one batch at a time
            "INFERENCE_PRECISION_HINT": precision,  # left alone, OpenVINO takes bf16 where it can
        }
        self._compiled = _core().compile_model(model, "CPU", hints)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return np.array(self._compiled(pixels)[0], dtype=np.float32)  # a copy: the buffer is reused

    def provenance(self) -> dict[str, str]:
        return _provenance(self, "cpu") | records.versions("openvino")


def open_engine(backbone: Backbone, engine: str = "auto", precision: str = "f32") -> Engine:
    """`backbone` on `engine`, one of ENGINES or "auto": CUDA if there, else OpenVINO, else torch.

    Raises BadInput where the engine is not here or lacks the precision.
    """
    name = choose_engine(engine, precision)
    if name == "openvino":
        return OpenVINOEngine(backbone, precision)
    return TorchEngine(backbone, precision, name.removeprefix("torch-"))


def choose_engine(engine: str, precision: str) -> str:
    """The name of the engine that `open_engine` would take. Raises BadInput."""
    here = engines_here()
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if engine == "auto":
        order = ("torch-cuda", "openvino", "torch-cpu")
        able = [e for e in order if precision in here.get(e, ())]
        if not able:
            raise BadInput(f"no engine here computes in {precision}; there are: {_described(here)}")
        return able[0]
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ["auto", *ENGINES])
    if engine not in here:
        raise BadInput(f"engine {engine} is not on this machine; there are: {_described(here)}")
    if precision not in here[engine]:
        raise BadInput(f"engine {engine} does not compute in {precision}: {_described(here)}")
    return engine


@functools.cache
def engines_here() -> dict[str, tuple[str, ...]]:
    """The engines of this machine, each with the precisions it computes in."""
    import torch

    here: dict[str, tuple[str, ...]] = {"torch-cpu": ("f32", "bf16")}
    if torch.cuda.is_available():
        here["torch-cuda"] = PRECISIONS
    try:
        core = _core()
    except ImportError:  # not built for every platform; torch-cpu is always there
        return here
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    here["openvino"] = ("f32", "bf16") if "BF16" in able else ("f32",)
    return here


@functools.cache
def _core() -> Any:
    """OpenVINO, once in a process and until its end.

    Each Core gives its thread a stack for signals, and puts back the one before when it ends. Of
    two that end in the order they were made, the second puts back the freed stack of the first, and
    the next signal that Python handles (a worker that ends, Ctrl-C) kills the process.
    """
    import openvino

    return openvino.Core()


def run_rows(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """(n, S, S, 3) uint8 with n up to the micro-batch, to (n, D) float32: pads, runs, cuts.

    Raises FeatureCacheError if a vector is not finite: such a row must never be stored.
    """
    n = len(pixels)
    if n < engine.micro_batch:
        padded = np.zeros((engine.micro_batch, *pixels.shape[1:]), np.uint8)
        padded[:n] = pixels
        pixels = padded
    # torch warns of an array that can't be written, such as a memory map's.
    rows = engine(np.require(pixels, requirements=["C", "W"]))[:n]
    if not np.isfinite(rows).all():
        raise FeatureCacheError(
            f"engine {engine.name} gave vectors that are not finite; try --precision f32, "
            "and `featurecache doctor`"
        )
    return rows


def _provenance(engine: Engine, device: str) -> dict[str, str]:
    about = {"engine": engine.name, "device": device, "micro_batch": str(engine.micro_batch)}
    return about | records.versions("torch", "timm")


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least cosine between rows (n, D) of two computations of the same pictures."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-30)).min())


def _with_normalisation(backbone: Backbone, dtype: Any) -> Any:
    """The network behind its mean and std, from uint8 NHWC pictures to vectors."""
    import copy

    import torch

    class Normalised(torch.nn.Module):
        def __init__(self, network: torch.nn.Module, preprocess: Preprocess) -> None:
            super().__init__()
            self.network = network
            self.mean: torch.Tensor
            self.std: torch.Tensor
            shape = (1, -1, 1, 1)
            self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(shape))
            self.register_buffer("std", torch.tensor(preprocess.std).reshape(shape))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.permute(0, 3, 1, 2).float() / 255
            x = (x - self.mean) / self.std
            return self.network(x.to(dtype))  # type: ignore[no-any-return]

    # A copy: engines of several precisions may be opened on one backbone.
    network = copy.deepcopy(backbone.module).to(dtype)
    return Normalised(network, backbone.preprocess).eval()


@contextlib.contextmanager
def _exact_cuda(on: bool) -> Iterator[None]:
    """f32 means f32 (no TF32), and the same algorithm every time; the caller's settings return."""
    import torch

    if not on:
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def _described(here: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} ({'/'.join(precisions)})" for name, precisions in here.items())
