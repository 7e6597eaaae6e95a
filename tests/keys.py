"""Keys as featurecache makes them, of networks and views that need not be there."""

from __future__ import annotations

from typing import Any

from featurecache import keys

BACKBONE: dict[str, Any] = {
    "name": "net",
    "weights": 64 * "0",
    "input_size": 32,
    "interpolation": "bicubic",
    "crop": 0.875,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "layer": "pre_logits",
    "pooling": "model",
}


def view_key(draw: int = 1, seed: int = 0) -> keys.Json:
    tree = [{"Fliplr": {"p": 0.5}}]
    return {"policy": {"library": "imaug 0.4.3", "tree": tree}, "draw": draw, "seed": seed}


def vector_key(view: keys.Json | None = None) -> keys.Json:
    return keys.vector_key(view, BACKBONE, "f32")
