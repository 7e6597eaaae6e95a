"""The rows of a CUDA device: `python -m benchmarks --gpu` measures all of them where there is one.
With `--repeats 3` they are planned for ten minutes, most of them compiling; never timed yet."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.autograd import DeviceType

from benchmarks import heads
from benchmarks.datasets import encoded, write_files
from benchmarks.harness import OURS, Case, Check, Setting, compare
from benchmarks.network import normalised, pictures, through, timm_module
from benchmarks.networks import epoch_of_resnet
from benchmarks.pipeline import opened_once
from featurecache.executors.pool import checked_workers
from featurecache.features.backbones import Backbone, load_backbone
from featurecache.features.engines import least_cosine, open_engine
from featurecache.stages.cache.featurize import Featurized, featurize

B3 = "efficientnet_b3_ap"
BYTES_AN_IMAGE = 159e6  # traffic of B3 at 300 px in bf16, norm and activation fused: the roof
BATCH = 128
BF16_COSINE, F32_COSINE = 0.99, 0.99999


def gpu(setting: Setting) -> list[Case]:
    """B3 at 300 px (random weights), in bf16 and in f32. Images in memory: uint8 pictures on the
    host to float32 vectors on the host, uploads included, on every side. Ours is `--engine
    torch-cuda-compiled`; what `auto` takes, torch-cuda, is beside it. Peers, in batches of 128:
    timm eager, in bf16 under autocast, as its README's inference example with AMP, then also under
    torch.compile (default mode); float32 normalised batches made from the same pictures on the
    device. No side computes f32 in TF32. timm's own table has 4,282 images/s for an RTX 5090
    with AMP and torch.compile, from pictures that are on the device already.

    Share of the roof: images/s times 159 MB, over the bandwidth that a copy on the device reaches
    here. End to end: `featurize` of spatial_1 from JPEG files of 64x64, with a worker
    for each core but one augmenting (sixteen at most)."""
    return featurize_on("cuda", setting)


def featurize_on(device: str, setting: Setting) -> list[Case]:
    """The row `gpu`; on a CPU, for its test, a small network on the engine that has bf16 on
    every CPU."""
    on_cuda = device == "cuda"
    compiled, eager, name, size = "torch-cpu", "torch-cpu", "efficientnet_lite0", 32
    if on_cuda:
        compiled, eager, name, size = "torch-cuda-compiled", "torch-cuda", B3, None
    backbone = load_backbone(name, "random", input_size=size)
    pixels = pictures(setting.size(4096, 256 if on_cuda else 16), backbone.preprocess.input_size)
    bandwidth = _bandwidth(device, 2 ** (30 if on_cuda else 20))
    engines = {
        (engine, precision): open_engine(backbone, engine, precision)
        for engine in (compiled, eager)
        for precision in ("bf16", "f32")
    }
    module = timm_module(backbone).to(device)
    inductor = torch.compile(module, backend="inductor" if on_cuda else "eager")
    # Convolutions would take TF32 by default, and this is the truth.
    some = normalised(backbone, pixels[:BATCH]).to(device)
    with torch.inference_mode(), _exact():
        truth = module(some).float().cpu().numpy()
    cases = []
    for precision, peer in (("bf16", "AMP"), ("f32", "f32")):
        ours, also = engines[compiled, precision], engines[eager, precision]
        half = precision == "bf16"
        sides: dict[str, Callable[[], np.ndarray]] = {
            OURS: lambda e=ours: through(e, pixels),
            f"featurecache on {eager}": lambda e=also: through(e, pixels),
            f"timm eager {peer}": lambda h=half: _timm(module, backbone, pixels, device, h),
        }
        if half:
            sides["timm torch.compile AMP"] = lambda: _timm(
                inductor, backbone, pixels, device, True
            )
        seconds, results = compare(sides, setting.repeats, warm=setting.warm(sides))
        least = BF16_COSINE if half else F32_COSINE
        cosines = {side: least_cosine(rows[:BATCH], truth) for side, rows in results.items()}
        checks = [
            Check(f"{side}: least cosine with timm in f32 {cosine:.6f}", cosine >= least)
            for side, cosine in cosines.items()
        ]
        rate = len(pixels) / statistics.median(seconds[OURS])
        figures = {"images/s": rate, "device copy, TB/s": bandwidth / 1e12}
        if half:
            figures["share of the bandwidth roof"] = rate * BYTES_AN_IMAGE / bandwidth
            figures["images/s that the bandwidth allows"] = bandwidth / BYTES_AN_IMAGE
        profile = _kernels(lambda e=ours: through(e, pixels[: 4 * BATCH]), device)
        cases.append(Case(f"images in memory, {precision}", seconds, len(pixels), checks=checks,
                          figures=figures, profile=profile))  # fmt: skip
    return [*cases, _end_to_end(setting, compiled, name, size)]


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """True f32, no TF32."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _timm(
    module: Callable[..., torch.Tensor],
    backbone: Backbone,
    pixels: np.ndarray,
    device: str,
    half: bool,
) -> np.ndarray:
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    found = []
    amp = torch.autocast(device, torch.bfloat16, enabled=half)
    with torch.inference_mode(), _exact(), amp:
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(pixels[start : start + BATCH]).to(device)
            batch = (batch.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std
            found.append(module(batch).float().cpu())
    return torch.cat(found).numpy()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _bandwidth(device: str, size: int) -> float:
    """Bytes a second, read and written, of copying so many bytes on the device: the best of ten."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() / best


def _kernels(run: Callable[[], object], device: str, most: int = 8) -> list[str]:
    """The operators with the most time on the device, and how long the device was busy."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        _wait(device)
        wall = time.perf_counter() - start
    # Kernels alone: the operators that launched them are in the list too, with the same time.
    kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    events = [e for e in kernels if e.self_device_time_total > 0]
    total = sum(e.self_device_time_total for e in events)
    top = sorted(events, key=lambda e: -e.self_device_time_total)[:most]
    busy = f"device busy {total / 1e6 / wall:.0%} of the time (profiled)"
    return [busy, *(f"{e.key[:60]} {e.self_device_time_total / total:.0%}" for e in top)]


def _end_to_end(setting: Setting, engine: str, backbone: str, size: int | None) -> Case:
    data = write_files(setting.folder / "files", encoded(setting, setting.size(8192, 16)))
    cache = setting.folder / "cache"

    def run() -> Featurized:
        shutil.rmtree(cache, ignore_errors=True)
        return featurize(data, policy="spatial_1", backbone=backbone, weights="random", cache=cache,
                         engine=engine, precision="bf16", input_size=size)  # fmt: skip

    with opened_once():
        sides = {OURS: run}
        seconds, results = compare(sides, setting.repeats, warm=setting.warm(sides))
    done = results[OURS]
    check = Check(f"{done.computed:,} rows committed, {len(done.failed)} failed", not done.failed)
    spent = ", ".join(f"{part} {value:.1f} s" for part, value in done.spent.items())
    profile = [f"bound by {done.bound}; {checked_workers(None)} workers; {spent}"]
    return Case("end to end, spatial_1", seconds, done.computed, checks=[check], profile=profile)


def gpu_head_epoch(setting: Setting) -> list[Case]:
    """An epoch of a head as in the row `head_epoch`, on a GPU: ours keeps the vectors there. Peers:
    the plain loop over a shuffling DataLoader of a TensorDataset in memory, whose batches go to the
    GPU one by one, and the same loop over slices of tensors that are on the GPU already."""
    return heads.epochs_on("cuda", setting)


def gpu_network_train(setting: Setting) -> list[Case]:
    """An epoch of resnet18 at 64 pixels under bf16 autocast, as in the row `network_train`, on 50
    images per class."""
    case, check = epoch_of_resnet(setting, torch.device("cuda"), "bf16")
    case.checks.append(check)
    return [case]
