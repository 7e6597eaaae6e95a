"""How fast is each engine, against timm the way its README shows? Same batch, interleaved.

    python -m benchmarks.engines [--backbone NAME] [--repeats 5]

Prints images/s (median and spread over the repeats), the ratio to timm eager f32, and how far the
vectors are from timm's: the greatest |difference| over the greatest |value|, the least cosine.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import torch

from featurecache import terminal
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import engines_here, least_cosine, open_engine


@click.command()
@click.option(
    "--backbone", default="efficientnet_lite0", help="A backbone; `random` weights for hub names."
)
@click.option("--weights", default=None, help="As of `featurecache featurize`.")
@click.option("--repeats", default=5)
def main(backbone: str, weights: str | None, repeats: int) -> None:
    """Compare every engine and precision of this machine with timm eager f32."""
    loaded = load_backbone(backbone, weights)
    size = loaded.preprocess.input_size
    engines = {
        f"{name} {precision}": open_engine(loaded, name, precision)
        for name, precisions in engines_here().items()
        for precision in precisions
    }
    most = max(engine.micro_batch for engine in engines.values())
    pixels = np.random.default_rng(0).integers(0, 256, (most, size, size, 3), np.uint8)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.preprocess.mean, loaded.preprocess.std)
    )
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def timm_eager() -> np.ndarray:
        with torch.inference_mode():
            return loaded.module(batch).numpy()

    runs = {"timm eager f32": timm_eager} | {
        name: lambda engine=engine: np.concatenate(
            [engine(pixels[i : i + engine.micro_batch]) for i in range(0, most, engine.micro_batch)]
        )
        for name, engine in engines.items()
    }
    vectors = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    truth = vectors["timm eager f32"]
    slow = statistics.median(seconds["timm eager f32"])
    rows = []
    for name, times in seconds.items():
        v, median = vectors[name], statistics.median(times)
        rows.append(
            {
                "engine": name,
                "images/s": round(most / median, 1),
                "from": round(most / max(times), 1),
                "to": round(most / min(times), 1),
                "x timm eager": round(slow / median, 2),
                "relative difference": f"{np.abs(v - truth).max() / np.abs(truth).max():.1e}",
                "least cosine": f"{least_cosine(v, truth):.6f}",
            }
        )
    terminal.table(rows, f"{loaded.model}, {size} px, {most} images")


if __name__ == "__main__":
    main()
