"""The peer of `small_things`: the vectors of a folder's images, by timm as its README shows it.

python -m benchmarks.timm_loop FOLDER INPUT_SIZE OUT.npy
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

BATCH = 32


def main(folder: str, size: int, out: str) -> None:
    # The weights do not change the time, and the hub may be out of reach.
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, size, size)}
    transform = timm.data.create_transform(**config, is_training=False)
    paths = sorted(Path(folder).rglob("*.jpg"))
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
            vectors.append(model(torch.stack([transform(image) for image in images])).numpy())
    np.save(out, np.concatenate(vectors))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
