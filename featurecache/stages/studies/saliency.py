"""Saliency maps: which pixels the heads of runs use, drawn with the dataset's boxes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack

import numpy as np

from featurecache import keys, text
from featurecache.errors import BadInput, UnknownName
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.backbones import Backbone
from featurecache.features.settings import check_keywords
from featurecache.images.boxes import Box, boxes_of, mask_of
from featurecache.images.datasets import DataSource, open_dataset
from featurecache.images.decode import Undecodable, decode
from featurecache.images.samples import Sample
from featurecache.runs.record import RunRecord, read_run
from featurecache.runs.run_names import find_runs
from featurecache.runs.sources import data_of
from featurecache.settings import DEFAULTS
from featurecache.stages.heads.predict import run_networks
from featurecache.stages.studies.study_files import study_folder, write_study
from featurecache.study.sampling import evenly_spaced

if TYPE_CHECKING:
    from featurecache.study.saliency import ImageClassifier, Map
    from featurecache.study.sheets import SaliencyRow

METHODS = {"gradient": "Gradients", "smoothgrad": "SmoothGrad", "gradcam": "Grad-CAM"}
IMAGES, MAX_IMAGES = 4, 100
SAMPLES, NOISE = 25, 0.15  # Smilkov et al.: use noise of 10% to 20%; 50 samples gain little

# A map of an image by a run; `class` is a keyword of Python.
MapRow = TypedDict(
    "MapRow",
    {
        "image": str,
        "run": str,
        "class": str,
        "name": str,
        "probability": float,
        "truth": str | None,
        "inside": float | None,
        "area": float | None,
    },
)


class MapMeans(TypedDict):
    """The means of a run over the images that have a box."""

    run: str
    images: int
    inside: float | None
    area: float | None


class SaliencyKeywords(TypedDict, total=False):
    """How a map is computed. The keywords and their defaults are the fields of `_Settings`."""

    method: str
    class_name: str | None
    samples: int
    noise: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Settings:
    method: str = "gradient"
    class_name: str | None = None  # the predicted class by default
    samples: int = SAMPLES
    noise: float = NOISE
    seed: int = 0

    def check(self, records: Sequence[RunRecord], paths: Sequence[str | Path]) -> None:
        """Raise BadInput or UnknownName for a setting that is wrong for one of the runs."""
        if self.method not in METHODS:
            raise UnknownName("method", self.method, METHODS)
        for name, value, minimum in (("samples", self.samples, 1), ("seed", self.seed, 0)):
            if value < minimum:
                raise BadInput(f"{name} {value}: must be {minimum} or more")
        if not 0 < self.noise <= 1:
            raise BadInput(
                f"noise {self.noise}: must be above 0 and at most 1, a share of the span of values"
            )
        for path, record in zip(paths, records, strict=True):
            if self.class_name is not None and self.class_name not in record.classes:
                raise UnknownName("class", self.class_name, record.classes, where=str(path))
            if any("jpeg_side" in backbone for backbone in record.backbones):
                raise BadInput(
                    f"{path}: its vectors are of JPEGs decoded at a smaller size (jpeg_side), and "
                    "saliency shows pictures in full; give a run on vectors without it"
                )


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """Saliency maps of images by runs, drawn in one figure.

    `maps` has one row per image and run. `class`, `name` and `probability` describe the class whose
    score was mapped; `truth` is the true class, if known. `inside` is the share of the absolute
    saliency inside the image's boxes, and `area` the share of the pixels inside them: a uniform map
    has inside = area. Both are
    None for an image without boxes. `runs` has one row per run.
    """

    method: str
    maps: list[MapRow]
    runs: list[MapMeans]
    seconds: float
    files: list[str]


class _Picture(NamedTuple):
    id: str
    pixels: np.ndarray  # (H, W, 3) uint8
    item: bytes
    truth: str | None
    boxes: tuple[Box, ...]


class _DrawnMap(NamedTuple):
    """The maps (H, W) of a picture by one run, and their row in the table."""

    absolute: Map
    signed: Map
    row: MapRow


def study_saliency(
    runs: str | Path | Sequence[str | Path],
    *,
    image: str | Path | Sequence[str | Path] = (),
    images: int = IMAGES,
    data: DataSource | None = None,
    split: str = "val",
    weights: str | Path | Sequence[str | Path] = (),
    out: str | Path = "study",
    progress: ProgressOption = False,
    **keywords: Unpack[SaliencyKeywords],
) -> Saliency:
    """Draw absolute and signed saliency maps of the heads of `runs` into the folder `out`.

    `image` names files; by default `images` images are taken from a split of `data`
    (the data of the runs), evenly spaced.
    The mapped score is the score of `class_name`, or by default of the class that the run predicts.
    `method` is gradient, smoothgrad or gradcam. SmoothGrad takes the mean over `samples` noisy
    copies; the standard deviation of the noise is `noise` times the span of the values, and the
    noise depends on `seed` and the image alone. All methods compute in float32 on the CPU,
    whichever engine computed the vectors. `weights` is used as in `predict`. Raises BadInput and
    UnknownName before any work.
    """
    progress = resolve_progress(progress)
    began = time.perf_counter()
    check_keywords(keywords, SaliencyKeywords, "study_saliency")
    settings = _Settings(**keywords)
    if images < 1:
        raise BadInput(f"images {images}: must be 1 or more")
    image_files = [image] if isinstance(image, str | Path) else list(image)
    count = max(images, len(image_files))
    if count > MAX_IMAGES:
        raise BadInput(f"{count} images: a figure holds at most {MAX_IMAGES}")
    paths = find_runs(runs)
    if not paths:
        raise BadInput("saliency needs the folder of a run")
    if data is None:
        data = DEFAULTS["data"] if image_files else data_of(paths)
    records = [read_run(path) for path in paths]
    settings.check(records, paths)
    pictures = _pictures_of_files(image_files) if image_files else _sample(data, split, images)
    folder = study_folder(out, "saliency", data)
    weight_files = [weights] if isinstance(weights, str | Path) else list(weights)

    from featurecache.study import sheets  # matplotlib

    drawn: list[list[_DrawnMap]] = [[] for _ in pictures]  # by picture, then by run
    classifiers = _classifiers(paths, records, weight_files)
    for number, (path, record, classifier) in enumerate(
        zip(paths, records, classifiers, strict=True)
    ):
        for index, picture in enumerate(pictures):
            done = number * len(pictures) + index
            progress(done, len(pictures) * len(paths), "saliency")
            drawn[index].append(_draw(path, record, classifier, picture, settings))
    progress(len(pictures) * len(paths), len(pictures) * len(paths), "saliency")
    maps_of_runs = [[by_run[number].row for by_run in drawn] for number in range(len(paths))]
    maps = [row for rows in maps_of_runs for row in rows]
    words = {name: word for record in records for name, word in record.words.items()}
    rows = [_sheet_row(*pair, words) for pair in zip(pictures, drawn, strict=True)]
    means = [_means(rows) for rows in maps_of_runs]
    title = METHODS[settings.method]
    files = write_study(
        folder,
        "saliency",
        title,
        sheets.saliency(title, [Path(path).name for path in paths], rows),
        list(MapRow.__annotations__),
        [list(row.values()) for row in maps],
        {"method": settings.method, "seed": settings.seed, "maps": maps, "runs": means},
    )
    return Saliency(
        method=settings.method,
        maps=maps,
        runs=means,
        seconds=round(time.perf_counter() - began, 3),
        files=files,
    )


def _classifiers(
    paths: Sequence[str | Path], records: Sequence[RunRecord], weights: Sequence[str | Path]
) -> Iterator[ImageClassifier]:
    """The networks and the head of each run. Runs on the same networks share them."""
    from featurecache.heads.head_networks import HeadNetworks
    from featurecache.study import saliency

    loaded: dict[str, list[Backbone]] = {}
    for path, record in zip(paths, records, strict=True):
        key = keys.digest([[used["name"], used["key"]] for used in record.backbones])
        if key not in loaded:
            loaded[key] = run_networks(record, weights)
        yield saliency.ImageClassifier(
            [network.module for network in loaded[key]],
            [network.preprocess for network in loaded[key]],
            HeadNetworks.load(Path(path)).members,
        )


def _draw(
    path: str | Path,
    record: RunRecord,
    classifier: ImageClassifier,
    picture: _Picture,
    settings: _Settings,
) -> _DrawnMap:
    """The maps of a picture by one run."""
    from featurecache.study import saliency

    probabilities = saliency.probabilities(classifier, picture.pixels)
    label = int(probabilities.argmax())
    if settings.class_name is not None:
        label = record.classes.index(settings.class_name)
    absolute, signed = _maps(classifier, picture, label, settings)
    mask = mask_of(picture.boxes, *picture.pixels.shape[:2])
    name = record.classes[label]
    row: MapRow = {
        "image": picture.id,
        "run": text.as_utf8(path),
        "class": name,
        "name": text.readable_name(name, record.words),
        "probability": float(probabilities[label]),
        "truth": picture.truth,
        "inside": saliency.share_inside(absolute, mask) if mask.any() else None,
        "area": float(mask.mean()) if mask.any() else None,
    }
    return _DrawnMap(absolute, signed, row)


def _maps(
    classifier: ImageClassifier, picture: _Picture, label: int, settings: _Settings
) -> tuple[Map, Map]:
    """The absolute and the signed saliency map (H, W) of a picture. For Grad-CAM the first is the
    positive part of the second, and is the map that the method defines."""
    from featurecache.study import saliency

    if settings.method == "gradcam":
        activations = saliency.class_activations(classifier, picture.pixels, label)
        return np.maximum(activations, 0), activations
    if settings.method == "smoothgrad":
        rng = np.random.default_rng([settings.seed, *picture.item])
        gradient = saliency.smooth_gradient(
            classifier, picture.pixels, label, rng, settings.samples, settings.noise
        )
    else:
        gradient = saliency.gradient(classifier, picture.pixels, label)
    return saliency.absolute(gradient), saliency.signed(gradient)


def _sheet_row(picture: _Picture, maps: Sequence[_DrawnMap], words: dict[str, str]) -> SaliencyRow:
    from featurecache.study import sheets

    return sheets.SaliencyRow(
        picture.id,
        None if picture.truth is None else text.readable_name(picture.truth, words),
        picture.pixels,
        picture.boxes,
        maps[0].row["area"],
        [
            (absolute, signed, row["name"], row["probability"], row["inside"])
            for absolute, signed, row in maps
        ],
    )


def _pictures_of_files(files: Sequence[str | Path]) -> list[_Picture]:
    missing = [str(file) for file in files if not Path(file).is_file()]
    if missing:
        raise BadInput(f"no such file: {', '.join(missing[:5])}")
    names = [text.as_utf8(file) for file in files]
    return [
        _picture(Sample(name, None, "test", Path(file)), None)
        for name, file in zip(names, files, strict=True)
    ]


def _sample(data: DataSource, split: str, count: int) -> list[_Picture]:
    """`count` images of a split, evenly spaced, or all of a smaller split."""
    dataset = open_dataset(data)
    return [
        _picture(sample, None if sample.label is None else dataset.classes[sample.label])
        for sample in evenly_spaced(dataset.split(split), count)
    ]


def _picture(sample: Sample, truth: str | None) -> _Picture:
    try:
        encoded = sample.read()
        pixels = decode(encoded)
    except (OSError, Undecodable) as error:
        reason = text.reason_of(error)
        raise BadInput(f"{sample.id}: {reason}; choose other images with --image") from error
    boxes = boxes_of(sample.source) if isinstance(sample.source, Path) else ()
    item = hashlib.sha256(encoded).digest()
    return _Picture(sample.id, pixels, item, truth, boxes)


def _means(maps: Sequence[MapRow]) -> MapMeans:
    """The row of a run, from its maps."""
    shares = [row["inside"] for row in maps if row["inside"] is not None]
    areas = [row["area"] for row in maps if row["area"] is not None]
    return {
        "run": maps[0]["run"],
        "images": len(shares),
        "inside": sum(shares) / len(shares) if shares else None,
        "area": sum(areas) / len(areas) if areas else None,
    }
