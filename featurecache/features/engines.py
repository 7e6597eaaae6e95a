"""Engines: the libraries and devices that run a backbone. Same vectors, different speed.

The engine is not part of a space's key (law 2, "The key says everything"). It is recorded as
provenance, and a contract test compares each engine with timm's eager f32. Every engine takes
micro-batches of a fixed size, padded with zeros: unless an engine is `row_stable`, the other rows
of a batch change a row's last bits (law 5, "Same bytes").
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from featurecache.errors import BadInput, FeatureCacheError, UnknownName
from featurecache.features.accelerators import has_cuda
from featurecache.features.backbones import Backbone
from featurecache.features.openvino_library import core
from featurecache.features.openvino_models import compile_backbone
from featurecache.text import one_line
from featurecache.versions import installed_versions

PRECISIONS = ("f32", "bf16", "fp16")
ENGINES = ("openvino", "torch-cpu", "torch-cuda", "torch-cuda-compiled")
CUDA_ROWS = 128  # per micro-batch on a GPU
MIN_BATCH_ROWS = 16  # per call of `start`, since each call has a fixed cost


class Slot(Protocol):
    """Runs one micro-batch while the caller does something else."""

    def begin(self, pixels: np.ndarray) -> None:
        """Start on (micro_batch, S, S, 3) uint8, which must not change until `result` returns."""

    def result(self) -> np.ndarray:
        """Wait for the vectors, (micro_batch, D) float32, in an array that the caller owns."""


_Part = np.ndarray | Exception  # the rows of a micro-batch, or the error that prevented them


class Engine:
    """A backbone that is ready to run, in one or more slots that are used in turn."""

    def __init__(
        self,
        name: str,
        slots: Sequence[Slot],
        micro_batch: int,
        row_stable: bool,
        about: dict[str, str],
    ) -> None:
        self.name = name
        self.micro_batch = micro_batch
        # Whether a row has the same bytes whatever its slot and the other rows of its batch.
        self.row_stable = row_stable
        self._about = about
        self._slots = len(slots)
        self._free = list(slots)
        self._running: collections.deque[tuple[Slot, list[_Part]]] = collections.deque()

    @property
    def batch_rows(self) -> int:
        """The number of rows to pass to `start`, a multiple of the micro-batch. Two such batches
        keep all slots busy. If the engine is not row-stable, this number affects the bytes."""
        rows = max(MIN_BATCH_ROWS, self.micro_batch * self._slots // 2 if self.row_stable else 0)
        return -(-rows // self.micro_batch) * self.micro_batch

    def start(self, pixels: np.ndarray) -> Callable[[], np.ndarray]:
        """Start on (n x micro_batch, S, S, 3) uint8.

        The returned function waits for the vectors, (n x micro_batch, D) float32, or raises the
        error that prevented them. Start the next batch before waiting for this one, to keep the
        device busy.
        """
        parts: list[_Part] = []
        for start in range(0, len(pixels), self.micro_batch):
            if not self._free:
                self._collect()
            slot = self._free.pop()
            self._running.append((slot, parts))
            try:
                slot.begin(pixels[start : start + self.micro_batch])
            except BaseException:
                self._running.pop()
                self._free.append(slot)
                raise

        def wait() -> np.ndarray:
            while len(parts) * self.micro_batch < len(pixels):
                self._collect()
            failed = [part for part in parts if isinstance(part, Exception)]
            if failed:
                raise failed[0]
            return np.concatenate([part for part in parts if not isinstance(part, Exception)])

        return wait

    def _collect(self) -> None:
        """Wait for the oldest micro-batch, so that all finish in the order of their start."""
        slot, parts = self._running.popleft()
        try:
            parts.append(slot.result())
        except Exception as error:  # noqa: BLE001 - the caller that waits for this part raises it
            parts.append(error)
        self._free.append(slot)

    def provenance(self) -> dict[str, str]:
        """What can change the last bits but is not in the key: engine, device, library versions."""
        return {"engine": self.name, **self._about, "micro_batch": str(self.micro_batch)}


def openvino_engine(backbone: Backbone, precision: str) -> Engine:
    """OpenVINO on the CPU: several times faster than timm eager, and row-stable.

    One small micro-batch per core is faster than a large one on all cores: no core waits for
    another, and each needs less of its cache.
    """
    # Measured: 2 is fastest for Lite0 at 224 px, and 1 for B3 at 300 px.
    micro_batch = 2 if backbone.preprocess.input_size < 256 else 1
    compiled = compile_backbone(backbone, micro_batch, precision)
    streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    # Twice as many as run at once, so that each stream has its next micro-batch ready.
    slots = [_Request(compiled.create_infer_request()) for _ in range(2 * streams)]
    about = {"device": "cpu"} | installed_versions("torch", "timm", "openvino")
    return Engine("openvino", slots, micro_batch, True, about)


class _Request:
    """A Slot of OpenVINO."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def begin(self, pixels: np.ndarray) -> None:
        self._pixels = pixels  # OpenVINO reads them in place
        self._request.start_async({0: pixels}, share_inputs=True)

    def result(self) -> np.ndarray:
        self._request.wait()
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)


def torch_engine(backbone: Backbone, precision: str, name: str) -> Engine:
    """timm's module on a CPU or a CUDA device, with folded batch norms, in channels-last order.

    `torch-cuda-compiled` is for long runs: torch.compile takes a minute or two at the start.
    """
    import torch

    from featurecache.features.frozen import freeze
    from featurecache.training.devices import warn_of_slow_bf16

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    network: Any = freeze(backbone, dtype, folded=True)
    versions = installed_versions("torch", "timm")
    if name == "torch-cpu":
        warn_of_slow_bf16(precision, "cpu")
        network = network.to(memory_format=torch.channels_last)
        return Engine(name, [_Eager(network)], 16, False, {"device": "cpu"} | versions)
    with _gpu_memory(CUDA_ROWS):
        network = network.to("cuda", memory_format=torch.channels_last)
    if name == "torch-cuda-compiled":
        network = torch.compile(network, dynamic=False)
    cuda: Any = torch.cuda  # parts of it have no types
    size, upload = backbone.preprocess.input_size, cuda.Stream()
    lanes = [_Lane(network, (CUDA_ROWS, size, size, 3), backbone.dim, upload) for _ in range(2)]
    about = {"device": torch.cuda.get_device_name()} | versions
    engine = Engine(name, lanes, CUDA_ROWS, False, about)
    if name == "torch-cuda-compiled":
        _compile(engine, size)
    return engine


def _compile(engine: Engine, size: int) -> None:
    """Compile now. Otherwise torch would compile at the first batch."""
    try:
        run_rows(engine, np.zeros((1, size, size, 3), np.uint8))
    except FeatureCacheError:
        raise
    except Exception as error:
        raise FeatureCacheError(
            f"engine {engine.name} could not be compiled ({type(error).__name__}: "
            f"{one_line(error)}); it needs triton and a C compiler: use --engine torch-cuda"
        ) from error


class _Eager:
    """A Slot of torch on the CPU, where `begin` does all the work."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def begin(self, pixels: np.ndarray) -> None:
        import torch

        with torch.inference_mode():
            self._rows: np.ndarray = self._network(torch.from_numpy(pixels)).float().numpy()

    def result(self) -> np.ndarray:
        return self._rows


class _Lane:
    """A Slot of a CUDA device, with pinned memory in both directions, so that copies don't block.

    Bytes are uploaded on a separate stream while the previous lane computes.
    """

    def __init__(self, network: Any, shape: tuple[int, ...], dim: int, upload: Any) -> None:
        import torch

        self._network = network
        self._upload = upload
        self._pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._rows = torch.empty((shape[0], dim), dtype=torch.float32, pin_memory=True)
        cuda: Any = torch.cuda
        self._done = cuda.Event()

    def begin(self, pixels: np.ndarray) -> None:
        import torch

        self._pixels.numpy()[:] = pixels
        with torch.inference_mode(), _exact_cuda(), _gpu_memory(len(pixels)):
            with torch.cuda.stream(self._upload):
                batch = self._pixels.to("cuda", non_blocking=True)
            arithmetic = torch.cuda.current_stream()
            arithmetic.wait_stream(self._upload)
            batch.record_stream(arithmetic)  # so that an upload can't reuse the memory too early
            self._rows.copy_(self._network(batch), non_blocking=True)
            self._done.record()

    def result(self) -> np.ndarray:
        self._done.synchronize()
        return self._rows.numpy().copy()


def open_engine(backbone: Backbone, engine: str = "auto", precision: str = "f32") -> Engine:
    """`backbone` on `engine`, one of ENGINES or "auto": CUDA, else OpenVINO, else torch.

    Raises BadInput if the engine is not available or lacks the precision.
    """
    name = choose_engine(engine, precision)
    if name == "openvino":
        return openvino_engine(backbone, precision)
    return torch_engine(backbone, precision, name)


def choose_engine(engine: str, precision: str) -> str:
    """The name of the engine that `open_engine` would use. Raises BadInput."""
    available = engines_here()
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if engine == "auto":
        order = ("torch-cuda", "openvino", "torch-cpu")
        capable = [e for e in order if precision in available.get(e, ())]
        if not capable:
            raise BadInput(
                f"no engine on this machine computes in {precision}; available: "
                f"{_described(available)}"
            )
        return capable[0]
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ["auto", *ENGINES])
    if engine not in available:
        raise BadInput(
            f"engine {engine} is not on this machine; available: {_described(available)}"
        )
    if precision not in available[engine]:
        raise BadInput(
            f"engine {engine} does not compute in {precision}; available: {_described(available)}"
        )
    return engine


def check_engine(engine: str, precision: str) -> None:
    """Raise BadInput if `open_engine` would. Asks no library if the answer is known: "auto" always
    computes in f32."""
    if (engine, precision) != ("auto", "f32"):
        choose_engine(engine, precision)


def devices(engine: str, precision: str) -> int:
    """The number of GPUs of this machine that `engine` would use; 0 if it runs on the CPU."""
    if "cuda" not in choose_engine(engine, precision):
        return 0
    import torch

    cuda: Any = torch.cuda  # parts of it have no types
    return int(cuda.device_count())


@functools.cache
def engines_here() -> dict[str, tuple[str, ...]]:
    """The engines of this machine, with the precisions that each computes in."""
    available: dict[str, tuple[str, ...]] = {"torch-cpu": ("f32", "bf16")}
    if has_cuda():
        available["torch-cuda"] = available["torch-cuda-compiled"] = PRECISIONS
    try:
        capable = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError:  # not built for every platform; torch-cpu always works
        return available
    available["openvino"] = ("f32", "bf16") if "BF16" in capable else ("f32",)
    return available


def start_rows(engine: Engine, pixels: np.ndarray) -> Callable[[], np.ndarray]:
    """Start on any number of pictures, (n, S, S, 3) uint8; the last micro-batch is padded with
    zeros. The returned function waits for the vectors, (n, D) float32.

    It raises FeatureCacheError if a vector is not finite, since such a row must never be stored.
    """
    n = len(pixels)
    padding = -n % engine.micro_batch
    if padding:
        pixels = np.concatenate([pixels, np.zeros((padding, *pixels.shape[1:]), np.uint8)])
    # torch warns about read-only arrays, such as those of a memory map.
    wait = engine.start(np.require(pixels, requirements=["C", "W"]))

    def checked() -> np.ndarray:
        rows = wait()[:n]
        if not np.isfinite(rows).all():
            raise FeatureCacheError(
                f"engine {engine.name} returned vectors that are not finite; try --precision f32, "
                "and run `featurecache doctor`"
            )
        return rows

    return checked


def run_rows(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """The vectors (n, D) float32 of pictures (n, S, S, 3) uint8. Raises as `start_rows` does."""
    return start_rows(engine, pixels)()


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest cosine similarity between the rows (n, D) of two computations."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-30)).min())


@contextlib.contextmanager
def _exact_cuda() -> Iterator[None]:
    """Use true f32 (no TF32) and deterministic algorithms; restores the settings at exit."""
    import torch

    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        allow_tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32


@contextlib.contextmanager
def _gpu_memory(rows: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise FeatureCacheError(
            f"{rows} images of this size do not fit into the GPU's memory; free some, or use a "
            "smaller --input-size or another --engine"
        ) from error


def _described(available: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} ({'/'.join(precisions)})" for name, precisions in available.items())
