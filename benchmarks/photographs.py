"""Rows of photographs: mild policies beside their own libraries, and JPEGs decoded at smaller
sizes. CPU seconds of one core."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from benchmarks.datasets import SEED, encoded, photographs, tiny_imagenet
from benchmarks.harness import OURS, Case, Check, Setting, compare
from featurecache.features.backbones import load_backbone
from featurecache.features.engines import open_engine, run_rows
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import decode
from featurecache.images.views import View, find_view

PEER = "albumentations"
INSTALL = "pip install --no-deps albumentations==2.0.8 albucore==0.0.24 stringzilla simsimd"
POLICY = """
augmenters:
  - RandomResizedCrop: {size: 224}
  - RandomHorizontalFlip
  - ColorJitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4}
"""
IN_FULL = "in full"
SIDES = {512: "1/2", 256: "1/4", 128: "1/8"}  # of 2000x1500


def mild_views(setting: Setting) -> list[Case]:
    """`RandomResizedCrop` to 224 pixels, mirroring and `ColorJitter` (0.4), on the terms of
    albumentations' own benchmark: uint8 pictures in memory (500x375 here), one picture after the
    other, one thread, images/s. Ours is a policy file with torchvision's names. Each view depends
    on its image alone: its draws are seeded from the image, and can be repeated. Peers, which draw
    as they come: torchvision's v2 transforms on tensors of bytes and on Pillow's images, and
    albumentations. Beside them, unjudged, the policy `mild`, which keeps 500x375."""
    pictures = [decode(data) for data in photographs(setting, setting.size(96, 4))]
    items = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
    file = setting.folder / "crop_flip_jitter.yaml"
    file.write_text(POLICY)
    view, mild = find_view(f"{file}_1"), find_view("mild_1")
    tensors = [torch.from_numpy(picture).permute(2, 0, 1).contiguous() for picture in pictures]
    images = [Image.fromarray(picture) for picture in pictures]
    peer = _torchvision()
    sides: dict[str, Callable[[], list[Any]]] = {
        OURS: lambda: _views(view, pictures, items),
        "torchvision v2, tensors": lambda: [peer(tensor) for tensor in tensors],
        "torchvision v2, Pillow": lambda: [peer(image) for image in images],
        "ours, mild": lambda: _views(mild, pictures, items),
    }
    profile = []
    if importlib.util.find_spec(PEER):
        augment = _albumentations()
        sides[PEER] = lambda: [augment(image=picture)["image"] for picture in pictures]
    else:
        profile.append(f"lacks {PEER}; {INSTALL}")
    with _single_thread():
        seconds, results = compare(sides, setting.repeats, time.process_time)
    sizes = {np.asarray(made).shape for made in results[OURS]}
    again = _views(view, pictures[::-1], items[::-1])[::-1]
    checks = [
        Check(f"pictures of {sizes}", sizes == {(224, 224, 3)}),
        Check("the same views in another order",
              all(map(np.array_equal, results[OURS], again))),
    ]  # fmt: skip
    return [Case("crop, flip, jitter", seconds, len(pictures), checks=checks, profile=profile)]


def _views(view: View, pictures: Sequence[np.ndarray], items: Sequence[bytes]) -> list[np.ndarray]:
    return [view.picture(picture, item) for picture, item in zip(pictures, items, strict=True)]


def _torchvision() -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)]
    )


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask for its newest version
    import albumentations

    return albumentations.Compose(
        [
            albumentations.RandomResizedCrop(size=(224, 224)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(
                brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=0, p=1
            ),
        ]
    )


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def reduced_jpegs(setting: Setting) -> list[Case]:
    """From JPEG files of 2000x1500 to the input of Lite0 at 224 pixels, as `featurize` makes it:
    decoded with `jpeg_side` at 1/2, 1/4 and 1/8 of their size, against decoding in full. Decoding
    alone gains less, as every bit of a file is read at every size; its ratio is given. The files
    are pictures of Tiny ImageNet scaled up, with noise as of a sensor (640 kB each), as there are
    no large photographs of classes here: what is lost of fine detail in real ones is not seen.

    What it costs: the least and the median cosine of Lite0's vectors with those of the pictures in
    full, and the top-1 of logistic regression that was fitted on vectors of pictures in full (15
    images of each of 40 classes) on those of the others (10 of each)."""
    small = encoded(setting, setting.size(16, 2))
    files = [_enlarged(data, number) for number, data in enumerate(small)]
    vectors, labels, train = _vectors(setting)
    full = vectors[None]
    classifier = LogisticRegression(C=0.01, max_iter=300).fit(full[train], labels[train])
    tops = {n: classifier.score(made[~train], labels[~train]) for n, made in vectors.items()}
    preprocess = load_backbone("efficientnet_lite0").preprocess
    cases = []
    for side, share in SIDES.items():

        def inputs(side: int | None = side) -> list[np.ndarray]:
            return [preprocess(decode(data, side)) for data in files]

        def decoded(side: int | None = side) -> list[np.ndarray]:
            return [decode(data, side) for data in files]

        sides = {OURS: inputs, IN_FULL: lambda: inputs(None)}
        seconds, _ = compare(sides, setting.repeats, time.process_time)
        alone, results = compare(
            {OURS: decoded, IN_FULL: lambda: decoded(None)}, setting.repeats, time.process_time
        )
        lengths = np.linalg.norm(full, axis=1) * np.linalg.norm(vectors[side], axis=1)
        cosines = (full * vectors[side]).sum(1) / lengths
        ratio = Case("", alone).ratios()[f"x {IN_FULL}"]
        figures = {"decoding alone, ratio": ratio, "least cosine": float(cosines.min()),
                   "points lost": 100 * (tops[None] - tops[side])}  # fmt: skip
        said = (
            f"top-1 {tops[side]:.3f}, in full {tops[None]:.3f}, on {(~train).sum()} images; cosine "
            f"{np.median(cosines):.4f} in the median"
        )
        drafted = [_drafted(data, side) for data in files]
        same = all(map(np.array_equal, results[OURS], drafted))
        checks = [Check("the pixels are those of Pillow's draft", same)]
        name = f"{share}, jpeg_side {side}"
        cases.append(
            Case(name, seconds, len(files), checks=checks, figures=figures, profile=[said])
        )
    return cases


@functools.cache
def _noise(number: int) -> np.ndarray:
    return np.random.default_rng([SEED, number]).integers(-10, 11, (1500, 2000, 3), np.int16)


def _enlarged(data: bytes, number: int) -> bytes:
    """A picture as a JPEG of 2000x1500, quality 90, with one of four patterns of noise."""
    with Image.open(io.BytesIO(data)) as image:
        large = np.asarray(image.convert("RGB").resize((2000, 1500), Image.Resampling.BICUBIC))
    out = io.BytesIO()
    noisy = (large + _noise(number % 4)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(out, "JPEG", quality=90)
    return out.getvalue()


def _drafted(data: bytes, side: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (side, side))
        return np.asarray(image)


def _vectors(setting: Setting) -> tuple[dict[int | None, np.ndarray], np.ndarray, np.ndarray]:
    """For each side the vectors of enlarged pictures, their labels, and which are to train on."""
    dataset = open_dataset(tiny_imagenet(setting, *((15, 10) if not setting.small else (2, 1))))
    classes = setting.size(40, 3)
    samples = [s for s in dataset.samples if s.label is not None and s.label < classes]
    backbone = load_backbone("efficientnet_lite0", input_size=setting.size(224, 32))
    engine = open_engine(backbone, "auto")
    pictures: dict[int | None, list[np.ndarray]] = {side: [] for side in (None, *SIDES)}
    for number, sample in enumerate(samples):
        data = _enlarged(sample.read(), number)
        for side, made in pictures.items():
            made.append(backbone.preprocess(decode(data, side)))
    vectors = {side: run_rows(engine, np.stack(made)) for side, made in pictures.items()}
    labels = np.array([sample.label for sample in samples])
    return vectors, labels, np.array([sample.split == "train" for sample in samples])
