"""Rows of the network alone: pictures in memory, (N, S, S, 3) uint8, to vectors."""

from __future__ import annotations

import os
import resource
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.harness import AGAIN, OURS, Case, Check, Setting, compare, timed
from benchmarks.rows import B3, LITE0
from featurecache.features import openvino_library
from featurecache.features.backbones import Backbone, load_backbone
from featurecache.features.engines import (
    Engine,
    engines_here,
    least_cosine,
    open_engine,
    run_rows,
    start_rows,
)
from featurecache.filling.vectors import one_ahead

F32_ERROR = 1e-5  # the greatest |difference| over the greatest |value|, against timm
EAGER = "timm eager f32"
BF16_COSINE = 0.99  # the least cosine of a bf16 row with timm's in f32


def featurize_f32(setting: Setting) -> list[Case]:
    """Pictures that lie in memory as uint8 go through `open_engine` and `run_rows`, as `featurize`
    sends them. Peer: timm as its README shows it, `create_model`, `eval`, `inference_mode`, one
    batch of normalised float32 after the other, in f32; normalising is within its time. Lite0 has
    its ImageNet weights, B3 random ones. The other engines of this machine run beside it, unjudged.

    Relative error: the greatest difference of a vector's element over the greatest element."""
    cases = []
    for name, backbone, pixels in _networks(setting):
        module, engine = timm_module(backbone), open_engine(backbone, cpu_engine())
        sides = {
            OURS: lambda e=engine, p=pixels: through(e, p),
            EAGER: lambda m=module, b=backbone, p=pixels: timm_eager(m, b, p),
        }
        for other, precisions in engines_here().items():
            if other != engine.name and other.endswith("-cpu") and "f32" in precisions:
                opened = open_engine(backbone, other)
                sides[f"featurecache on {other}"] = lambda e=opened, p=pixels: through(e, p)
        seconds, results = compare(sides, setting.repeats)
        truth = results[EAGER]
        error = relative_error(results[OURS], truth)
        check = Check(f"relative error {error:.1e}, against timm", error <= F32_ERROR)
        side = backbone.preprocess.input_size
        line, allowed = _of_peak(module, side, seconds, len(pixels), "f32")
        profile = [*_profile(engine, pixels), line]
        figures = {"relative error": error} | allowed
        cases.append(
            Case(name, seconds, len(pixels), checks=[check], figures=figures, profile=profile)
        )
    return cases


def featurize_bf16(setting: Setting) -> list[Case]:
    """The same with `--precision bf16`. Peers: timm eager in f32 as above, and OpenVINO called
    bare: the same timm network converted with its normalisation, compiled for bf16 with the LATENCY
    hint, and called in a loop over slices of the pictures, sixteen at a time and as many as ours.

    bf16 is another key than f32, asked for by name; what it costs is the least cosine of a vector
    with timm's in f32."""
    cases = []
    for name, backbone, pixels in _networks(setting):
        module, engine = timm_module(backbone), open_engine(backbone, "openvino", "bf16")
        large = openvino_bare(backbone, 16, "bf16")
        small = openvino_bare(backbone, engine.micro_batch, "bf16")
        seconds, results = compare(
            {
                OURS: lambda e=engine, p=pixels: through(e, p),
                EAGER: lambda m=module, b=backbone, p=pixels: timm_eager(m, b, p),
                "OpenVINO bf16, bare": lambda run=large, p=pixels: run(p),
                "OpenVINO bf16, bare, our micro-batch": lambda run=small, p=pixels: run(p),
            },
            setting.repeats,
        )
        truth = results[EAGER]
        cosine = least_cosine(results[OURS], truth)
        theirs = least_cosine(results["OpenVINO bf16, bare"], truth)
        check = Check(
            f"least cosine with timm in f32 {cosine:.5f}; OpenVINO's bare {theirs:.5f}",
            cosine >= BF16_COSINE,
        )
        side = backbone.preprocess.input_size
        line, allowed = _of_peak(module, side, seconds, len(pixels), "bf16")
        profile = [*_profile(engine, pixels), line]
        cases.append(
            Case(name, seconds, len(pixels), checks=[check], figures=allowed, profile=profile)
        )
    return cases


def cpu_engine() -> str:
    """What `auto` takes on a machine without a GPU: rows of CPUs mean that on every machine."""
    return "openvino" if "openvino" in engines_here() else "torch-cpu"


def _networks(setting: Setting) -> list[tuple[str, Backbone, np.ndarray]]:
    size = 32 if setting.small else None
    names = [(LITE0, "efficientnet_lite0", None, setting.size(128, 18))]
    if not setting.small:  # B3 costs as much at any size to load
        names.append((B3, "efficientnet_b3_ap", "random", 32))
    found = []
    for name, backbone, weights, count in names:
        loaded = load_backbone(backbone, weights, input_size=size)
        side = loaded.preprocess.input_size
        found.append((name, loaded, pictures(count, side)))
    return found


def pictures(count: int, side: int) -> np.ndarray:
    """(count, side, side, 3) uint8 with coarse structure: what a network does with noise alone says
    little of its errors on images."""
    rng = np.random.default_rng(0)
    coarse = (
        rng.integers(0, 256, (count, 8, 8, 3)).repeat(-(-side // 8), 1).repeat(-(-side // 8), 2)
    )
    noisy = coarse[:, :side, :side] + rng.normal(0, 10, (count, side, side, 3)).astype(np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def through(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """Vectors of an engine, a batch begun before the last is waited for, as in `featurize`."""
    size = engine.batch_rows
    batches = [pixels[i : i + size] for i in range(0, len(pixels), size)]
    started = one_ahead(batches, lambda batch: start_rows(engine, batch))
    return np.concatenate([wait() for _, wait in started])


def timm_module(backbone: Backbone) -> torch.nn.Module:
    """The network as `timm.create_model(..., num_classes=0).eval()` gives it."""
    return backbone.module.eval()


def timm_eager(
    module: torch.nn.Module, backbone: Backbone, pixels: np.ndarray, batch_size: int = 32
) -> np.ndarray:
    """Vectors by timm's module, eager, in f32, from normalised NCHW batches."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            found.append(module(normalised(backbone, pixels[start : start + batch_size])))
    return torch.cat(found).numpy()


def normalised(backbone: Backbone, pixels: np.ndarray) -> torch.Tensor:
    """(n, S, S, 3) uint8 to (n, 3, S, S) float32, as timm's ToTensor and Normalize do it."""
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # as ToTensor lays them
    return (planes.float().div(255) - mean) / std


def openvino_bare(
    backbone: Backbone, batch_size: int, precision: str
) -> Callable[[np.ndarray], np.ndarray]:
    """OpenVINO by itself: convert, compile, call."""
    import openvino

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = backbone.module
            self.register_buffer("mean", torch.tensor(backbone.preprocess.mean).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(backbone.preprocess.std).view(1, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> Any:
            return self.network((x.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std)

    side = backbone.preprocess.input_size
    shape = (batch_size, side, side, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter runs torch's tracer, which is deprecated
        model = openvino.convert_model(
            Normalised().eval(), example_input=torch.zeros(shape, dtype=torch.uint8)
        )
    model.reshape(list(shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino_library.core().compile_model(
        model, "CPU", hints
    )  # two in a process can kill it

    def run(pixels: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(pixels), batch_size):
            batch = pixels[start : start + batch_size]
            short = batch_size - len(batch)
            if short:
                batch = np.pad(batch, ((0, short), (0, 0), (0, 0), (0, 0)))
            rows = compiled(batch)[0]
            found.append(np.array(rows[: batch_size - short]))
        return np.concatenate(found)

    return run


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def _profile(engine: Engine, pixels: np.ndarray) -> list[str]:
    """How busy the cores are, and what `run_rows` adds to the engine's own call."""
    before, wall = _cpu_seconds(), timed(lambda: through(engine, pixels))
    cores = (_cpu_seconds() - before) / wall
    whole = np.resize(pixels, (4 * engine.batch_rows, *pixels.shape[1:]))
    bare = min(timed(lambda: engine.start(whole)()) for _ in range(3))
    around = min(timed(lambda: run_rows(engine, whole)) for _ in range(3))
    return [
        f"engine {engine.name}, micro-batches of {engine.micro_batch}; {cores:.2f} of "
        f"{os.cpu_count()} cores are busy; checking and padding take {around / bare - 1:.1%}",
    ]


def _of_peak(
    module: torch.nn.Module, side: int, seconds: dict[str, list[float]], count: int, precision: str
) -> tuple[str, dict[str, float]]:
    """How near each side is to what the cores can do, a large product of matrices in the precision
    of the side, and the ratio to timm's eager f32 if ours were there."""
    operations = 0

    def counted(layer: Any, given: Any, out: torch.Tensor) -> None:
        nonlocal operations
        operations += 2 * layer.weight[0].numel() * out.numel()

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [m.register_forward_hook(counted) for m in module.modules() if isinstance(m, kinds)]
    with torch.inference_mode():
        module(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    roofs = {name: harness.roof(name) for name in sorted({"f32", precision})}
    medians = {n: statistics.median(spent) for n, spent in seconds.items() if n != AGAIN}
    least = operations * count / roofs[precision] / 1e9  # seconds of ours at the roof
    roof_of = {name: roofs["f32" if name == EAGER else precision] for name in medians}
    shares = ", ".join(
        f"{name} {operations * count / spent / 1e9 / roof_of[name]:.0%}"
        for name, spent in medians.items()
    )
    shown = " and ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in roofs.items())
    line = (
        f"{operations / 1e9:.2f} GFLOP an image; of what a product of 2,048 x 2,048 matrices in "
        f"the precision of the side reaches here ({shown}): {shares}"
    )
    return line, {f"x {EAGER} that the products allow": medians[EAGER] / least}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
