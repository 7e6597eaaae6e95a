"""Saliency: which pixels the heads of runs look at, drawn on pictures, with the dataset's boxes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurecache import keys, text
from featurecache.errors import BadInput, UnknownName
from featurecache.executors import Progress, silent
from featurecache.features.backbones import Backbone
from featurecache.images.boxes import Box, boxes_of, inside
from featurecache.images.datasets import open_dataset
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import Sample
from featurecache.runs.record import read_run
from featurecache.stages.heads.predict import run_networks
from featurecache.stages.studies.study_files import study_folder, write_study

if TYPE_CHECKING:
    from featurecache.study.saliency import Map, Whole

METHODS = {"gradient": "Gradients", "smoothgrad": "SmoothGrad", "gradcam": "Grad-CAM"}
IMAGES, MOST_IMAGES = 4, 100
SAMPLES, NOISE = 25, 0.15  # Smilkov et al.: noise of 10% to 20%; 50 samples are hardly better
_CSV = ("image", "run", "class", "name", "probability", "truth", "inside", "area")


@dataclass(frozen=True)
class Saliency:
    """Maps of images by runs, drawn in one figure.

    `maps` has for each image and run {image, run, class, name, probability, truth, inside, area}:
    the class whose score the map is of, with its readable name and its probability; the true class
    where it is known; the share of the absolute saliency that lies in the image's boxes, and the
    share of its pixels that does, which `inside` would be of an even map. Both are None where there
    is no box. `runs` has {run, images, inside, area}: means over the images that have one.
    """

    method: str
    maps: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    seconds: float
    files: list[str]


class _Picture(NamedTuple):
    id: str
    pixels: np.ndarray  # (H, W, 3) uint8
    item: bytes
    truth: str | None
    boxes: tuple[Box, ...]


def study_saliency(
    runs: str | Path | Sequence[str | Path],
    *,
    image: str | Path | Sequence[str | Path] = (),
    images: int = IMAGES,
    data: str | Path = "data",
    split: str = "val",
    method: str = "gradient",
    class_name: str | None = None,
    samples: int = SAMPLES,
    noise: float = NOISE,
    seed: int = 0,
    weights: str | Path | Sequence[str | Path] = (),
    out: str | Path = "study",
    progress: Progress = silent,
) -> Saliency:
    """Draw where the heads of `runs` look on images, absolute and signed, into `out`.

    `image` are files; without them `images` of a split of `data`, evenly spread. The map is of the
    class that a run predicts, or of `class_name`. `method` is gradient, smoothgrad (a mean over
    `samples` noisy copies, `noise` of the values' span, drawn from `seed` and the image alone) or
    gradcam. Computed in float32 on the CPU, whatever the vectors were made by. `weights` as in
    `predict`. Raises BadInput and UnknownName before any work.
    """
    began = time.perf_counter()
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    for name, value, least in (("images", images, 1), ("samples", samples, 1), ("seed", seed, 0)):
        if value < least:
            raise BadInput(f"{name} {value}: must be {least} or more")
    if not 0 < noise <= 1:
        raise BadInput(f"noise {noise}: must be above 0 and at most 1, as a share of the span")
    given = [image] if isinstance(image, str | Path) else list(image)
    if max(images, len(given)) > MOST_IMAGES:
        raise BadInput(f"{max(images, len(given))} images: at most {MOST_IMAGES} fit one figure")
    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    if not paths:
        raise BadInput("saliency needs the folder of a run")
    opened = [read_run(path) for path in paths]
    for path, record in zip(paths, opened, strict=True):
        if class_name is not None and class_name not in record.classes:
            raise UnknownName("class", class_name, record.classes, where=str(path))
    pictures = _given(given) if given else _spread(data, split, images)
    folder = study_folder(out)

    from featurecache.heads.mlp import Head
    from featurecache.study import saliency, sheets

    files = [weights] if isinstance(weights, str | Path) else list(weights)
    loaded: dict[str, list[Backbone]] = {}
    maps: list[dict[str, Any]] = []
    drawn: list[list[tuple[Map, Map]]] = [[] for _ in pictures]
    for path, record in zip(paths, opened, strict=True):
        same = keys.digest([[one["name"], one["key"]] for one in record.backbones])
        if same not in loaded:
            loaded[same] = run_networks(record, files)
        networks = loaded[same]
        whole = saliency.Whole(
            [network.module for network in networks],
            [network.preprocess for network in networks],
            Head.load(Path(path)).members,
        )
        for number, picture in enumerate(pictures):
            progress(len(maps), len(pictures) * len(paths), "saliency")
            said = saliency.probabilities(whole, picture.pixels)
            label = int(said.argmax()) if class_name is None else record.classes.index(class_name)
            rng = np.random.default_rng([seed, *picture.item])
            one = _map(whole, picture.pixels, label, method, rng, samples, noise)
            drawn[number].append(one)
            mask = inside(picture.boxes, *picture.pixels.shape[:2])
            name = record.classes[label]
            maps.append(
                {
                    "image": picture.id,
                    "run": text.as_utf8(path),
                    "class": name,
                    "name": record.words.get(name, name),
                    "probability": float(said[label]),
                    "truth": picture.truth,
                    "inside": saliency.share_inside(one[0], mask) if mask.any() else None,
                    "area": float(mask.mean()) if mask.any() else None,
                }
            )
    progress(len(maps), len(maps), "saliency")
    words = {name: word for record in opened for name, word in record.words.items()}
    title = METHODS[method]
    rows = [
        sheets.Looked(
            picture.id,
            None if picture.truth is None else words.get(picture.truth, picture.truth),
            picture.pixels,
            picture.boxes,
            maps[number]["area"],
            [
                (*pair, one["name"], one["probability"], one["inside"])
                for pair, one in zip(of_picture, maps[number :: len(pictures)], strict=True)
            ],
        )
        for number, (picture, of_picture) in enumerate(zip(pictures, drawn, strict=True))
    ]
    count = len(pictures)
    means = [_mean(maps[start : start + count]) for start in range(0, len(maps), count)]
    written = write_study(
        folder,
        "saliency",
        title,
        sheets.saliency(title, [Path(path).name for path in paths], rows),
        _CSV,
        [[one[key] for key in _CSV] for one in maps],
        {"method": method, "seed": seed, "maps": maps, "runs": means},
    )
    return Saliency(method, maps, means, round(time.perf_counter() - began, 3), written)


def _map(
    whole: Whole,
    pixels: np.ndarray,
    label: int,
    method: str,
    rng: np.random.Generator,
    samples: int,
    noise: float,
) -> tuple[Map, Map]:
    """The absolute and the signed saliency (H, W) of a picture. Of Grad-CAM the first is what is
    above 0: its own map."""
    from featurecache.study import saliency

    if method == "gradcam":
        found = saliency.class_activations(whole, pixels, label)
        return np.maximum(found, 0), found
    if method == "smoothgrad":
        gradient = saliency.smooth_gradient(whole, pixels, label, rng, samples, noise)
    else:
        gradient = saliency.gradient(whole, pixels, label)
    return saliency.absolute(gradient), saliency.signed(gradient)


def _given(files: Sequence[str | Path]) -> list[_Picture]:
    missing = [str(file) for file in files if not Path(file).is_file()]
    if missing:
        raise BadInput(f"no such file: {', '.join(missing[:5])}")
    names = [text.as_utf8(file) for file in files]
    return [
        _picture(Sample(name, None, "test", Path(file)), None)
        for name, file in zip(names, files, strict=True)
    ]


def _spread(data: str | Path, split: str, count: int) -> list[_Picture]:
    """`count` images of a split, evenly spread, or all where it has fewer."""
    dataset = open_dataset(data)
    samples = dataset.split(split)
    count = min(count, len(samples))
    chosen = [samples[place * len(samples) // count] for place in range(count)]
    return [
        _picture(one, None if one.label is None else dataset.classes[one.label]) for one in chosen
    ]


def _picture(sample: Sample, truth: str | None) -> _Picture:
    try:
        encoded = sample.read()
        pixels = decode(encoded)
    except (OSError, Undecodable) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise BadInput(f"{sample.id}: {why}; choose others with --image") from error
    boxes = boxes_of(sample.source) if isinstance(sample.source, Path) else ()
    item = hashlib.sha256(encoded).digest()
    return _Picture(sample.id, pixels, item, truth, boxes)


def _mean(maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{run, images, inside, area} of a run's maps: means over those whose image has a box."""
    boxed = [one for one in maps if one["inside"] is not None]
    return {
        "run": maps[0]["run"],
        "images": len(boxed),
        **{
            key: sum(one[key] for one in boxed) / len(boxed) if boxed else None
            for key in ("inside", "area")
        },
    }
