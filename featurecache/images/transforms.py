"""torchvision's v2 transforms as steps of a policy.

Only this module imports torchvision, and only when a policy that names a transform is built. The
transforms work on Pillow's images and draw from torch's global generator, which is seeded for each
image and then restored. The rules about names and values are in docs/policies.md.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import math
import threading
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pydantic
from PIL import Image

from featurecache.errors import BadInput, nearest
from featurecache.images.picture_checks import MAX_NUMBER, augmented, check_pixels, check_size
from featurecache.text import one_line

PREFIX = "v2."
CONTAINERS = {"Compose", "RandomApply", "RandomChoice", "RandomOrder"}
TRANSFORMS = CONTAINERS | {
    "AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ElasticTransform", "GaussianBlur",
    "GaussianNoise", "Grayscale", "Identity", "JPEG", "Pad", "RandAugment", "RandomAdjustSharpness",
    "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop",
    "RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert",
    "RandomPerspective", "RandomPhotometricDistort", "RandomPosterize", "RandomResize",
    "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomSolarize",
    "RandomVerticalFlip", "RandomZoomOut", "Resize", "ScaleJitter", "TrivialAugmentWide",
}  # fmt: skip
# The transforms whose names imgaug has too. Without a prefix they mean imgaug's augmenters.
SHARED = {"GaussianBlur", "Grayscale", "Identity", "Pad", "RandAugment", "Resize"}
_REASONS = {
    "mixes several images, but a view depends on its image alone; a schedule can mix vectors "
    "(`mixup`)": "CutMix MixUp",
    "makes several pictures of one image; use several draws": "FiveCrop TenCrop",
    "makes floats; the backbone's own preprocessing normalises the picture": (
        "ConvertImageDtype LinearTransformation Normalize ToDtype"
    ),
    "changes no pixel of an RGB picture; leave it out": (
        "PILToTensor RGB ToImage ToPILImage ToPureTensor ToTensor"
    ),
    "needs boxes or key points, and a sample is an image alone": (
        "ClampBoundingBoxes ClampKeyPoints ConvertBoundingBoxFormat RandomIoUCrop "
        "SanitizeBoundingBoxes SanitizeKeyPoints SetClampingMode"
    ),
    "needs a video": "UniformTemporalSubsample",
    "runs code": "Lambda",
    "does nothing by itself": "Transform",
}
REFUSED_TRANSFORMS = {name: reason for reason, names in _REASONS.items() for name in names.split()}

# Types that torchvision does not declare, or only checks for some of the images. A blur with a
# larger kernel takes seconds per image, since torchvision multiplies by a square of numbers.
_LEVEL = Annotated[int | float, pydantic.Field(ge=0, le=255)]
_LEVELS = _LEVEL | Annotated[list[_LEVEL], pydantic.Field(min_length=3, max_length=3)]
_KERNEL = Annotated[int, pydantic.Field(ge=1, le=99)]
_SIGMA = Annotated[float, pydantic.Field(ge=0, le=12)]
_PAIR = Annotated[list[float], pydantic.Field(min_length=2, max_length=2)]
_TYPES: dict[str, Any] = {
    "clip": bool,
    "degrees": float | _PAIR,
    "fill": _LEVELS | None,
    "num_magnitude_bins": Annotated[int, pydantic.Field(ge=2)],
    "ElasticTransform.sigma": _SIGMA | list[_SIGMA],
    "GaussianBlur.kernel_size": _KERNEL | list[_KERNEL],
    "Grayscale.num_output_channels": Literal[3],
    "RandomErasing.value": _LEVELS,
    "RandomChoice.p": list[Annotated[float, pydantic.Field(ge=0)]] | None,
}
_TRIALS = 24  # of each transform before any work, since some draw what they do
TRIAL_SIDES = (32, 128, MAX_NUMBER)  # the larger ones if a crop or a blur needs a larger picture
_MAX_TRIAL_PIXELS = 1 << 20  # of which one trial is enough
_LOCK = threading.RLock()  # torch has one generator per process


class Named(Protocol):
    """The policy that transforms belong to."""

    @property
    def name(self) -> str: ...

    def mistake(self, path: str, problem: str) -> BadInput:
        """The error about a dotted path in the tree."""


def is_transform(entry: Any) -> bool:
    """Whether an entry of a policy's list names a transform of torchvision, not an augmenter."""
    name = entry_name(entry)
    if name.startswith(PREFIX):
        return True
    return name not in SHARED and (name in TRANSFORMS or name in REFUSED_TRANSFORMS)


def entry_name(entry: Any) -> str:
    """The name in `Name: {parameter: value}` or `Name`; "" if the entry is neither."""
    if isinstance(entry, dict) and len(entry) == 1:
        (entry,) = entry
    return entry if isinstance(entry, str) else ""


class Part(Protocol):
    """A built part of a policy."""

    def run(self, pixels: np.ndarray, entropy: bytes, item: bytes = b"") -> np.ndarray:
        """One realisation on one image, (H, W, 3) uint8 in and out; sizes may differ. Generators
        look up what they know of an `item`. Raises Undecodable if a step makes an image beyond the
        limits in picture_checks.py."""


class Chain:
    """Parts of a policy from different libraries, applied in order, each with its own draws."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def run(self, pixels: np.ndarray, entropy: bytes, item: bytes = b"") -> np.ndarray:
        """One realisation on one image; see Part."""
        for number, part in enumerate(self._parts):
            pixels = part.run(pixels, entropy + number.to_bytes(4, "little"), item)
        return pixels


class Transforms:
    """Built transforms, applied in order: `run(pixels, entropy)` returns the same pixels for the
    same arguments. Raises BadInput for a name or value that torchvision does not accept."""

    def __init__(self, policy: Named, entries: Iterable[tuple[int, Any]]) -> None:
        self._name = policy.name
        self._mistake = policy.mistake
        with _seeded(0):
            self._steps = [self._step(entry, f"augmenters.{i}") for i, entry in entries]

    def run(self, pixels: np.ndarray, entropy: bytes, item: bytes = b"") -> np.ndarray:
        """One realisation on one image; see Part."""
        # torch's generator takes 32 bits of a seed.
        with _seeded(int.from_bytes(hashlib.sha256(entropy).digest()[:4], "little")):
            return augmented(self._name, self._made, pixels)

    def _made(self, pixels: np.ndarray) -> np.ndarray:
        image: Any = Image.fromarray(pixels)
        for step in self._steps:
            image = step(image)
        return np.array(image)

    def _step(self, entry: Any, path: str) -> Any:
        full_name = entry_name(entry)
        if not full_name:
            raise self._mistake(path, "expected one transform, as `Name: {parameter: value}`")
        arguments = entry[full_name] if isinstance(entry, dict) else None
        path, name = f"{path}.{full_name}", full_name.removeprefix(PREFIX)
        if name in REFUSED_TRANSFORMS:
            problem = f"{name} is not allowed in a policy: it {REFUSED_TRANSFORMS[name]}"
            raise self._mistake(path, problem)
        if name not in TRANSFORMS:
            problem = f"torchvision has no transform {name!r} for images; "
            raise self._mistake(path, problem + nearest(name, TRANSFORMS))
        if not isinstance(arguments, dict | None):
            raise self._mistake(path, "expected `{parameter: value}` after the transform's name")
        types, built = _parameters(name), {}
        for parameter, argument in (arguments or {}).items():
            inner = f"{path}.{parameter}"
            if parameter not in types:
                problem = f"{name} has no parameter {parameter!r}; {nearest(parameter, types)}"
                raise self._mistake(inner, problem)
            if parameter == "transforms":
                built[parameter] = self._children(argument, inner)
            else:
                built[parameter] = self._value(types[parameter], argument, inner)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                step = getattr(_v2(), name)(**built)
            if name not in CONTAINERS:
                step = _with_limits(step)
                _try(step)
        except Exception as error:
            problem = f"{name} does not take these values: {one_line(error)}"
            raise self._mistake(path, problem) from error
        return step

    def _children(self, entries: Any, path: str) -> list[Any]:
        if not isinstance(entries, list):
            raise self._mistake(path, "expected a list of transforms")
        return [self._step(entry, f"{path}.{i}") for i, entry in enumerate(entries)]

    def _value(self, kind: Any, value: Any, path: str) -> Any:
        """A parameter's value as `kind`, with the strict rules of JSON: no text for numbers."""
        if isinstance(value, dict):
            problem = "torchvision draws by itself; write the numbers that it takes, as in [a, b]"
            raise self._mistake(path, problem)
        for number in value if isinstance(value, list) else [value]:
            if type(number) in (int, float) and abs(number) > MAX_NUMBER:
                raise self._mistake(path, f"{number} is too large; numbers go up to {MAX_NUMBER:,}")
        try:
            return pydantic.TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError as error:
            reasons = " or ".join(dict.fromkeys(reason["msg"] for reason in error.errors()))
            raise self._mistake(path, f"{value!r} is not accepted: {reasons}") from None


def _v2() -> Any:
    from torchvision.transforms import v2

    return v2


@functools.cache
def _parameters(name: str) -> Mapping[str, Any]:
    """The type of each parameter of a transform, by its name."""
    v2 = _v2()
    kind = getattr(v2, name)
    hints = typing.get_type_hints(kind.__init__) | {"interpolation": v2.InterpolationMode}
    return {
        parameter: _TYPES.get(f"{name}.{parameter}", _TYPES.get(parameter, hints.get(parameter)))
        for parameter in inspect.signature(kind).parameters
    }


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context in which torch's global settings have no effect on its results.

    The generator is seeded, operations run in one thread, as the sums in a convolution may depend
    on their number, and numbers are 32 bits wide and on the CPU. Then all is as before.
    """
    import torch

    generator = torch.default_generator
    with _LOCK, contextlib.ExitStack() as settings:
        state, dtype = generator.get_state(), torch.get_default_dtype()
        threads = torch.get_num_threads()
        settings.callback(torch.set_num_threads, threads)
        settings.callback(torch.set_default_dtype, dtype)
        settings.callback(generator.set_state, state)
        if torch.get_default_device().type != "cpu":
            settings.enter_context(torch.device("cpu"))
        if torch.is_autocast_enabled("cpu"):
            settings.enter_context(torch.autocast("cpu", enabled=False))
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        generator.manual_seed(seed)
        yield


def _try(step: Any) -> None:
    """Apply a transform to small pictures, whatever its probability. Raises what it raises."""
    for side in TRIAL_SIDES:
        image = Image.new("RGB", (side, side))
        is_last = side == TRIAL_SIDES[-1]
        try:
            for _ in range(_TRIALS):
                if "transform" not in vars(step):
                    step(image)
                    continue
                params = step.make_params([image])
                step.transform(image, params)
                if math.prod(_allocated(step, params, side, side)) > _MAX_TRIAL_PIXELS:
                    break
            return
        except Exception:
            if is_last:
                raise


def _with_limits(step: Any) -> Any:
    """The transform, with a check of the picture's size before memory is allocated and after it."""
    v2, apply = _v2(), step.transform
    if isinstance(step, v2.AutoAugment | v2.RandAugment | v2.TrivialAugmentWide | v2.AugMix):
        return step  # these keep the size, and have no method `transform`

    def transform(image: Any, params: Mapping[str, Any]) -> Any:
        check_pixels(*_allocated(step, params, image.height, image.width))
        if isinstance(step, v2.GaussianNoise):  # the only one that does not take Pillow's images
            tensor = v2.functional.pil_to_tensor(image)
            return v2.functional.to_pil_image(apply(tensor, params))
        made = apply(image, params)
        if made.mode != "RGB":  # of Grayscale
            raise ValueError(f"mode {made.mode}, not RGB; write num_output_channels: 3")
        check_size(made.height, made.width)
        return made

    step.transform = transform
    return step


def _allocated(step: Any, params: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """The height and width of the largest picture that a transform makes of one of this size."""
    match type(step).__name__:
        case "Pad" | "RandomCrop" | "RandomZoomOut":
            padding = params.get("padding", getattr(step, "padding", None)) or 0
            margin = max(0, int(max(padding) if isinstance(padding, list | tuple) else padding))
            return height + 2 * margin, width + 2 * margin
        case "CenterCrop":
            return max(height, step.size[0]), max(width, step.size[1])
        case "RandomRotation" if step.expand:
            turn = math.radians(params["angle"])
            sine, cosine = abs(math.sin(turn)), abs(math.cos(turn))
            return round(height * cosine + width * sine), round(width * cosine + height * sine)
        case "Resize" | "RandomResize" | "RandomShortestSize" | "ScaleJitter":
            size = params.get("size", getattr(step, "size", None))
            if isinstance(size, list | tuple) and len(size) == 2:
                return size[0], size[1]
            limit = getattr(step, "max_size", None) if "size" not in params else None
            side = size[0] if isinstance(size, list | tuple) else size
            scales = [side / min(height, width)] if side else []
            scale = min([*scales, *([limit / max(height, width)] if limit else [])])
            return round(height * scale), round(width * scale)
    return height, width
