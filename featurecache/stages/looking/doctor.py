"""Doctor: check that this machine is ready: libraries, engines, weights, and a known image."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.byte_sizes import size_text
from featurecache.errors import FeatureCacheError
from featurecache.features.backbone_table import alias_rows
from featurecache.features.backbones import build_backbone, load_module
from featurecache.features.engines import engines_here, open_engine, run_rows
from featurecache.features.network_sources import module_source
from featurecache.features.store import Cache
from featurecache.machine import cores
from featurecache.settings import read_settings, settings_file
from featurecache.storage.memos import memo_state
from featurecache.text import counted, reason_of

LIBRARIES = (
    "torch", "timm", "imaug", "openvino", "h5py", "numpy", "pillow", "scikit-learn",
    "opencv-python-headless",
)  # fmt: skip
# EfficientNet-Lite0 with mean = std = 0.5 classifies scikit-learn's photograph of a flower as
# "daisy", with this probability. ImageNet's usual mean and std give 0.13, no normalisation 0.15.
DAISY, PROBABILITY, TOLERANCE = 985, 0.323, 0.02


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check. `ok` False means that results on this machine can't be trusted."""

    name: str
    ok: bool
    found: str


def doctor(cache: str | Path = "data/cache") -> list[Check]:
    """Check everything that the other commands need. A failed check never raises."""
    checks = [
        Check(name="python", ok=True, found=f"{platform.python_version()} on {platform.machine()}")
    ]
    for library in LIBRARIES:
        try:
            checks.append(Check(name=library, ok=True, found=importlib.metadata.version(library)))
        except importlib.metadata.PackageNotFoundError:
            # OpenVINO is optional: torch does the same at a fifth of the speed.
            checks.append(Check(name=library, ok=library == "openvino", found="not installed"))
    checks.append(_tried("imgaug imports", _imgaug))
    checks.append(_tried("cores", lambda: f"{cores()}"))
    for name, precisions in engines_here().items():
        checks.append(Check(name=f"engine {name}", ok=True, found="/".join(precisions)))
        checks.append(_tried(f"known image, {name}", functools.partial(known_image, name)))
    local = [row["name"] for row in alias_rows() if row["state"] == "at hand"]
    checks.append(Check(name="weights at hand", ok=bool(local), found=", ".join(local) or "none"))
    checks.append(_tried("memos", memo_state))
    checks.append(_tried("settings", _settings))
    checks.append(_tried(f"cache {cache}", lambda: _cache(cache)))
    return checks


def known_image(engine: str) -> str:
    """Classify a photograph whose class is known, through the same steps that make vectors.

    Raises FeatureCacheError if the probability is off: weights, preprocessing, normalisation or the
    engine's arithmetic are then wrong, which vectors alone would not reveal.
    """
    from sklearn.datasets import load_sample_image

    backbone = build_backbone("efficientnet_lite0")
    classifier = load_module(backbone.name, None, classifier=True)
    running = open_engine(dataclasses.replace(backbone, network=module_source(classifier)), engine)
    picture = backbone.preprocess(load_sample_image("flower.jpg"))
    logits = run_rows(running, picture[None])[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probability = float(probabilities[DAISY] / probabilities.sum())
    answer = f"a daisy with probability {probability:.3f}, expected {PROBABILITY}"
    if abs(probability - PROBABILITY) > TOLERANCE:
        raise FeatureCacheError(f"{answer}: weights, preprocessing or normalisation are wrong")
    return answer


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, found=check())
    except FeatureCacheError as error:
        return Check(name=name, ok=False, found=str(error))
    except Exception as error:  # noqa: BLE001 - any error of a library is a result to report
        return Check(name=name, ok=False, found=f"{type(error).__name__}: {error}")


def _imgaug() -> str:
    from featurecache.images.policies import augmenters

    return f"{len(augmenters())} augmenters"


def _settings() -> str:
    """The settings file, and the defaults of the commands with their sources."""
    settings = read_settings()
    lines = [f"{key} = {' '.join(s.values)} ({s.source})" for key, s in settings.items()]
    return "; ".join(lines) or str(settings_file() or "none")


def _cache(path: str | Path) -> str:
    cache = Cache(path)
    try:
        free = cache.store.free_bytes()
    except OSError as error:
        raise FeatureCacheError(reason_of(error)) from error
    room = "in an object store" if free is None else f"{size_text(free)} free"
    return f"{counted(len(cache.spaces()), 'space')}, {room}"
