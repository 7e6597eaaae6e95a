"""Rows of pictures: decoding and augmenting, by the CPU seconds of one process."""

from __future__ import annotations

import cProfile
import functools
import hashlib
import io
import pstats
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from benchmarks import hand_written
from benchmarks.datasets import encoded, photographs
from benchmarks.harness import OURS, Case, Check, Setting, compare, shares, timed
from featurecache import keys
from featurecache.images.decode import decode as featurecache_decode
from featurecache.images.replay import draws
from featurecache.images.views import View, find_view

BATCH = 128
OPENCV = ("LUT", "add", "copyMakeBorder", "cvtColor", "flip", "mixChannels", "resize",
          "warpAffine", "warpPerspective")  # fmt: skip


def decode(setting: Setting) -> list[Case]:
    """JPEG bytes in memory to (H, W, 3) uint8 RGB, one image after the other. Ours is `decode`,
    with everything that the decode rule asks for (size limits, orientation, alpha). Peer: Pillow as
    everyone calls it, `Image.open(...).convert("RGB")`. simplejpeg alone is shown beside it as the
    limit: it is a bare decoder. The 500 px files are 500x375, put together of small pictures."""
    cases = []
    sizes = {"64 px": encoded(setting, setting.size(2000, 12)),
             "500 px": photographs(setting, setting.size(64, 3))}  # fmt: skip
    for name, files in sizes.items():
        sides: dict[str, Callable[[], list[np.ndarray]]] = {
            OURS: lambda files=files: [featurecache_decode(data) for data in files],
            "Pillow": lambda files=files: [_pillow(data) for data in files],
        }
        sides["simplejpeg, bare"] = lambda files=files: [
            simplejpeg.decode_jpeg(data) for data in files
        ]
        seconds, results = compare(sides, setting.repeats, time.process_time)
        checks = [
            Check(f"{_same(results[OURS], results[side])} the same pixels as {side}",
                  _all_same(results[OURS], results[side]))
            for side in list(sides)[1:]
        ]  # fmt: skip
        kb = sum(map(len, files)) / len(files) / 1000
        profile = [f"files of {kb:.1f} kB; {_ms(seconds[OURS], files):.3f} ms an image"]
        cases.append(Case(name, seconds, len(files), checks=checks, profile=profile))
    return cases


def views(setting: Setting) -> list[Case]:
    """JPEG files of 64x64 in memory to augmented pictures: `decode` and `View.picture` of each
    image alone, so that a picture depends on its image only. Peers: the same transforms written in
    imgaug (hand_written.py), decoded by Pillow, in batches of 128 by `augment_images`, and one
    image a call by `augment_image`; neither can be repeated image by image.

    Pixels: ours against imgaug's own augmenters, every node freshly seeded for the image
    (`Augmentation.run_by_imgaug`)."""
    files = encoded(setting, setting.size(2 * BATCH, 6))
    items = [hashlib.sha256(data).digest() for data in files]
    cases = []
    for policy in ("spatial", "color"):
        view = find_view(f"{policy}_1")
        imgaug = getattr(hand_written, policy)()
        sides = {
            OURS: lambda view=view: _pictures(view, files, items),
            "imgaug, batches of 128": lambda imgaug=imgaug: [
                picture
                for start in range(0, len(files), BATCH)
                for picture in imgaug.augment_images(
                    [_pillow(data) for data in files[start : start + BATCH]]
                )
            ],
            "imgaug, one image a call": lambda imgaug=imgaug: [
                imgaug.augment_image(_pillow(data)) for data in files
            ],
        }
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # of one core, on every side; more threads only cost CPU seconds here
        try:
            seconds, results = compare(sides, setting.repeats, time.process_time)
            profile, least = _parts(view, files, items)
        finally:
            cv2.setNumThreads(threads)
        slow = _slow(view, files, items)
        said = (
            f"{_same(results[OURS], slow)} the same pixels as imgaug's augmenters, freshly seeded"
        )
        check = Check(said, _all_same(results[OURS], slow))
        figures = {
            f"x {peer} that OpenCV's calls allow": statistics.median(seconds[peer]) / least
            for peer in list(sides)[1:]
        }
        cases.append(
            Case(policy, seconds, len(files), checks=[check], figures=figures, profile=profile)
        )
    return cases


def _pictures(view: View, files: Sequence[bytes], items: Sequence[bytes]) -> list[np.ndarray]:
    return [
        view.picture(featurecache_decode(data), item)
        for data, item in zip(files, items, strict=True)
    ]


def _slow(view: View, files: Sequence[bytes], items: Sequence[bytes]) -> list[np.ndarray]:
    """The pictures of a view by imgaug's own augmenters."""
    assert view.policy is not None
    augmentation, fingerprint = view.policy.build(), keys.canonical(view.key())
    return [
        augmentation.run_by_imgaug(_pillow(data), fingerprint + item)
        for data, item in zip(files, items, strict=True)
    ]


def _parts(view: View, files: Sequence[bytes], items: Sequence[bytes]) -> tuple[list[str], float]:
    """Where the time goes, and the seconds of decoding, of OpenCV's calls and of normal numbers."""
    pixels = [featurecache_decode(data) for data in files]

    def augment() -> None:
        for image, item in zip(pixels, items, strict=True):
            view.picture(image, item)

    decoding = timed(lambda: [featurecache_decode(data) for data in files], time.process_time)
    augmenting = timed(augment, time.process_time)
    profiler = cProfile.Profile()
    profiler.runcall(augment)
    spent = {
        f"{Path(file).name} {name}".removeprefix("~ "): own
        for (file, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    }
    whole = sum(spent.values())
    top = sorted(spent.items(), key=lambda pair: -pair[1])[:6]
    calls = [f"{name} {own / whole:.0%}" for name, own in top]
    both = shares({"decoding": decoding, "augmenting": augmenting}, decoding + augmenting)[:-1]
    alone = _opencv_alone(augment)
    lines = [
        *both,
        f"of augmenting, OpenCV's calls and the normal numbers of noise on all pixels, alone: "
        f"{alone:.3g} s ({alone / augmenting:.0%})",
        f"by cProfile: {', '.join(calls)}",
    ]
    return lines, decoding + alone


def _opencv_alone(augment: Callable[[], None]) -> float:
    """Seconds of the calls of OpenCV that `augment` makes, and of its normal numbers, without
    anything between them."""
    calls: list[Callable[[], Any]] = []
    generator = np.random.Generator(np.random.SFC64(0))

    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(functools.partial(function, *arguments, **options))
            return function(*arguments, **options)

        return call

    def kept_normals(_: np.random.Generator, *arguments: Any) -> np.ndarray:
        calls.append(functools.partial(normals, generator, *arguments))
        return normals(generator, *arguments)

    normals, functions = draws._normals, {name: getattr(cv2, name) for name in OPENCV}
    draws._normals = kept_normals
    for name, function in functions.items():
        setattr(cv2, name, kept(function))
    try:
        augment()
    finally:
        draws._normals = normals
        for name, function in functions.items():
            setattr(cv2, name, function)
    return min(timed(lambda: [call() for call in calls], time.process_time) for _ in range(3))


def _pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _same(ours: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> str:
    same = sum(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))
    return f"{same} of {len(ours)} have"


def _all_same(ours: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))


def _ms(seconds: Sequence[float], files: Sequence[bytes]) -> float:
    return 1000 * min(seconds) / len(files)
