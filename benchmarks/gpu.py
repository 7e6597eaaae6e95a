"""The rows of a CUDA device: `python -m benchmarks gpu gpu_network_train` where there is one."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.autograd import DeviceType

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
BF16_COSINE = 0.99


def gpu(setting: Setting) -> list[Case]:
    """B3 at 300 px in bf16 (random weights). Images in memory: uint8 pictures on the host to
    float32 vectors on the host, uploads included, on every side. Ours is `--engine
    torch-cuda-compiled`; what `auto` takes, torch-cuda, is beside it. Peers, in batches of 128:
    timm eager under autocast, as its README's inference example with AMP, and the same module under
    torch.compile (default mode), float32 normalised batches made from the same pictures on the
    device.

    Share of the roof: images/s times 159 MB, over the bandwidth that a copy on the device reaches
    here. End to end: `featurize` of spatial_1 from JPEG files of 64x64, with a worker
    for each core but one augmenting (sixteen at most)."""
    backbone = load_backbone(B3, "random")
    pixels = pictures(setting.size(4096, 256), backbone.preprocess.input_size)
    engine = open_engine(backbone, "torch-cuda-compiled", "bf16")
    eager = open_engine(backbone, "torch-cuda", "bf16")
    module = timm_module(backbone).cuda()
    compiled = torch.compile(module)
    sides: dict[str, Callable[[], np.ndarray]] = {
        OURS: lambda: through(engine, pixels),
        "featurecache on torch-cuda": lambda: through(eager, pixels),
        "timm eager AMP": lambda: _amp(module, backbone, pixels),
        "timm torch.compile AMP": lambda: _amp(compiled, backbone, pixels),
    }
    seconds, results = compare(sides, setting.repeats)
    some = normalised(backbone, pixels[:BATCH]).cuda()
    # Convolutions would take TF32 by default, and this is the truth.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        truth = module(some).cpu().numpy()
    checks = [
        Check(f"{side}: least cosine with timm in f32 {least_cosine(rows[:BATCH], truth):.5f}",
              least_cosine(rows[:BATCH], truth) >= BF16_COSINE)
        for side, rows in results.items()
    ]  # fmt: skip
    rate = len(pixels) / statistics.median(seconds[OURS])
    bandwidth = _bandwidth()
    figures = {
        "share of the bandwidth roof": rate * BYTES_AN_IMAGE / bandwidth,
        "device copy, TB/s": bandwidth / 1e12,
    }
    profile = _kernels(lambda: through(engine, pixels[: 4 * BATCH]))
    memory = Case("images in memory", seconds, len(pixels), checks=checks, figures=figures,
                  profile=profile)  # fmt: skip
    return [memory, _end_to_end(setting)]


def _amp(module: Callable[..., torch.Tensor], backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    mean, std = (
        torch.tensor(v, device="cuda").view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    found = []
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(pixels[start : start + BATCH]).cuda()
            batch = (batch.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std
            found.append(module(batch).float().cpu())
    return torch.cat(found).numpy()


def _bandwidth() -> float:
    """Bytes a second, read and written, of copying 1 GiB on the device: the best of ten."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() / best


def _kernels(run: Callable[[], object], most: int = 8) -> list[str]:
    """The operators with the most time on the device, and how long the device was busy."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    # Kernels alone: the operators that launched them are in the list too, with the same time.
    kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    events = [e for e in kernels if e.self_device_time_total > 0]
    total = sum(e.self_device_time_total for e in events)
    top = sorted(events, key=lambda e: -e.self_device_time_total)[:most]
    busy = f"device busy {total / 1e6 / wall:.0%} of the time (profiled)"
    return [busy, *(f"{e.key[:60]} {e.self_device_time_total / total:.0%}" for e in top)]


def _end_to_end(setting: Setting) -> Case:
    data = write_files(setting.folder / "files", encoded(setting, setting.size(8192, 256)))
    cache = setting.folder / "cache"

    def run() -> Featurized:
        shutil.rmtree(cache, ignore_errors=True)
        return featurize(data, policy="spatial_1", backbone=B3, weights="random", cache=cache,
                         engine="torch-cuda-compiled", precision="bf16")  # fmt: skip

    with opened_once():
        seconds, results = compare({OURS: run}, setting.repeats)
    done = results[OURS]
    check = Check(f"{done.computed:,} rows committed, {len(done.failed)} failed", not done.failed)
    spent = ", ".join(f"{part} {value:.1f} s" for part, value in done.spent.items())
    profile = [f"bound by {done.bound}; {checked_workers(None)} workers; {spent}"]
    return Case("end to end, spatial_1", seconds, done.computed, checks=[check], profile=profile)


def gpu_network_train(setting: Setting) -> list[Case]:
    """An epoch of resnet18 at 64 pixels under bf16 autocast, as in the row `network_train`, on 50
    images per class."""
    case, check = epoch_of_resnet(setting, torch.device("cuda"), "bf16")
    case.checks.append(check)
    return [case]
