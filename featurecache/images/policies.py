"""Policies: declarative augmentation programs, read from YAML, built into imgaug trees and
torchvision transforms (transforms.py).

Only this module and augmenters.py, which has our own augmenters, import imgaug, and only when a
tree is built: naming a policy or computing its key needs no import. The YAML grammar is described
in docs/policies.md. In short, an augmenter is `Name: {parameter: value}` with imgaug's names, and a
value is a scalar, `{range: [a, b]}` (anything between), `{choice: [a, b, c]}` (one of them), a
mapping, or child augmenters.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import multiprocessing
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from featurecache import keys, versions, yaml_files
from featurecache.errors import BadInput, FeatureCacheError, UnknownName, nearest
from featurecache.images import generator_nodes, step_limits, styles
from featurecache.images.picture_checks import MAX_NUMBER, augmented
from featurecache.images.transforms import (
    SHARED,
    TRANSFORMS,
    Chain,
    Part,
    Transforms,
    entry_name,
    is_transform,
)
from featurecache.images.view_names import ViewName, policy_files
from featurecache.text import one_line

SHIPPED = Path(__file__).parent / "shipped"
FIRST = ("mild", "crop_flip", "jitter")  # for ordinary images
# Augmenters that run a caller's code, write files, need more than an image, or (KMeans…) draw from
# OpenCV's global generator. They would break law 1, "A view depends on its image alone".
REFUSED = {
    "AssertLambda", "AssertShape", "Augmenter", "BlendAlphaBoundingBoxes", "BlendAlphaMask",
    "BlendAlphaSegMapClassIds", "ClipCBAsToImagePlanes", "KMeansColorQuantization", "Lambda",
    "RemoveCBAsByOutOfImageFraction", "SaveDebugImageEveryNBatches",
}  # fmt: skip
# Our own augmenters (augmenters.py). Raise the version of an augmenter whenever its pixels change.
OWN_AUGMENTERS = {
    "AutoAugmentOp": 1, "ChannelShift": 1, "CropAndScale": 1, "FourierMix": 1, "KerasAffine": 1,
    "LabTransfer": 1, "RandAugmentOps": 1, "TrivialAugmentOp": 1,
}  # fmt: skip
OWN_MODULE = "featurecache.images.augmenters"
IMGAUG_PREFIX = "imgaug."
# We name and seed the augmenters: imgaug's defaults would make pixels depend on the process, which
# breaks law 1, "A view depends on its image alone".
RESERVED_PARAMETERS = {"self", "seed", "name", "random_state", "deterministic"}


class PolicyFile(pydantic.BaseModel):
    """The top level of a policy file."""

    model_config = pydantic.ConfigDict(extra="forbid")
    description: str = ""
    augmenters: list[Any] | None = pydantic.Field(default=None, min_length=1)
    generator: Any = None  # alone, in place of a list of augmenters

    @pydantic.model_validator(mode="after")
    def _something_to_do(self) -> PolicyFile:
        if (self.augmenters is None) == (self.generator is None):
            raise ValueError("expected a list `augmenters`, or `generator: {run: FOLDER}` alone")
        return self


@dataclass(frozen=True)
class Policy:
    """A named tree of augmenters. Only `tree`, the plain YAML value, is part of the key.
    `generators` are the folders of those in the tree, by the digests of their tensors."""

    name: str
    tree: list[Any] = field(hash=False)
    description: str = field(default="", compare=False)
    source: Path | None = field(default=None, compare=False)
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    generators: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)
    styles: Mapping[str, styles.Style] = field(default_factory=dict, compare=False, repr=False)

    def __eq__(self, other: object) -> bool:
        # In Python 1 == 1.0 == True, but as trees they have different keys and different pixels.
        return isinstance(other, Policy) and (
            (self.name, keys.canonical(self.tree)) == (other.name, keys.canonical(other.tree))
        )

    def key(self) -> keys.Json:
        """The policy's part of a view's key: its tree, the versions of the libraries that it uses,
        and the version of each of our own augmenters in the tree."""
        libraries = versions.installed_versions(*self.libraries)
        for library, version in libraries.items():
            if version == "none":  # law 2, "The key says everything"
                problem = f"the version of {library} is unknown; pip install {library}"
                raise FeatureCacheError(problem)
        # A suffix such as +cu128 names the build, whose transforms are the same.
        library = ", ".join(f"{name} {v.partition('+')[0]}" for name, v in libraries.items())
        numbers = OWN_AUGMENTERS | {generator_nodes.NAME: generator_nodes.VERSION}
        names = yaml_files.names_in(self.tree)
        own_versions = {name: numbers[name] for name in sorted(names & numbers.keys())}
        key = {"library": library, "tree": self.tree}
        return key | ({"own": own_versions} if own_versions else {})

    @property
    def libraries(self) -> list[str]:
        """The distributions whose augmenters or transforms the policy applies."""
        kinds = {is_transform(entry) for entry in self.tree}
        return [("imaug", "torchvision")[kind] for kind in sorted(kinds)]

    def build(self) -> Part:
        """The runnable tree. Raises BadInput for a name or value that its library refuses."""
        for i, name in enumerate(map(entry_name, self.tree)):
            if name in SHARED and "torchvision" in self.libraries:
                problem = f"both libraries have a {name}; write {IMGAUG_PREFIX}{name} or v2.{name}"
                raise self.mistake(f"augmenters.{i}.{name}", problem)
        groups = itertools.groupby(enumerate(self.tree), lambda pair: is_transform(pair[1]))
        built = (Augmentation, Transforms)
        parts: list[Part] = [built[kind](self, entries) for kind, entries in groups]
        return parts[0] if len(parts) == 1 else Chain(parts)

    def mistake(self, path: str, problem: str) -> BadInput:
        """The error about a dotted path in the tree, with the file and its line."""
        where = str(self.source or f"policy {self.name}")
        names = path.split(".")  # the line of the key itself, or of the nearest enclosing key
        paths = (".".join(names[:i]) for i in range(len(names), 0, -1))
        line = next((self.lines[name] for name in paths if name in self.lines), 0)
        return BadInput(f"{where}{f' line {line}' if line else ''}, {path}: {problem}")


class Augmentation:
    """Built augmenters: `run(pixels, entropy)` returns the same pixels for the same arguments.

    `run_by_imgaug` defines the pixels. Before each image every node of the tree, including hidden
    inner ones, gets a fresh generator, and every object in the tree is reset to its state as built
    (FrequencyNoise, for example, keeps a matrix of the largest image so far). Nothing carries over
    from earlier images: law 1, "A view depends on its image alone". `run` computes the same pixels
    faster if the whole tree can be replayed.
    """

    def __init__(self, policy: Policy, entries: Iterable[tuple[int, Any]] | None = None) -> None:
        iaa = _imgaug()
        from imgaug.random import RNG

        from featurecache.images.replay import tree  # imports OpenCV

        self._policy = policy
        entries = enumerate(policy.tree) if entries is None else entries
        self._root = iaa.Sequential([self._augmenter(e, f"augmenters.{i}") for i, e in entries])
        objects = list(_walk(self._root, set()))
        self._as_built = [(vars(node), dict(vars(node))) for node in objects]
        self._nodes = [node for node in objects if isinstance(node, iaa.Augmenter)]
        self._generator = RNG
        (version,) = versions.installed_versions("imaug").values()
        self.replay = tree.read(self._root, self._nodes, version)

    def run(self, pixels: np.ndarray, entropy: bytes, item: bytes = b"") -> np.ndarray:
        """One realisation on one image; see Part."""
        made = self.replay(pixels, _words(entropy)) if self.replay else None
        return self.run_by_imgaug(pixels, entropy, item) if made is None else made

    def run_by_imgaug(self, pixels: np.ndarray, entropy: bytes, item: bytes = b"") -> np.ndarray:
        """The result of `run`, computed by imgaug's own code."""
        for state, built in self._as_built:
            state.clear()
            state.update(built)
        words = _words(entropy).tolist()
        for number, node in enumerate(self._nodes):
            sequence = np.random.SeedSequence([*words, number])
            node.random_state = self._generator(np.random.Generator(np.random.SFC64(sequence)))
            node.item = item  # for generators
        with step_limits.size_limits():
            return augmented(self._policy.name, self._root.augment_image, pixels)

    def _augmenters(self, values: Any, path: str) -> list[Any]:
        if not isinstance(values, list):
            raise self._policy.mistake(
                path, "expected a list of augmenters (`- Name: {parameter: value}`)"
            )
        return [self._augmenter(value, f"{path}.{i}") for i, value in enumerate(values)]

    def _augmenter(self, value: Any, path: str) -> Any:
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, dict) or len(value) != 1:
            raise self._policy.mistake(
                path, "expected one augmenter, as `Name: {parameter: value}`"
            )
        ((name, arguments),) = value.items()
        path, name = f"{path}.{name}", name.removeprefix(IMGAUG_PREFIX)
        allowed = augmenters()
        if name == generator_nodes.NAME:
            from featurecache.images.augmenters import Generated

            forward = generator_nodes.load(arguments, self._policy, path)
            strength = self._value(arguments["strength"], f"{path}.strength")
            return self._built(Generated, {"forward": forward, "strength": strength}, path)
        if name in REFUSED:
            problem = "runs code, writes files, or is not reproducible from an image and YAML alone"
            raise self._policy.mistake(path, f"{name} is not allowed in a policy: it {problem}")
        if is_transform(name):
            problem = (
                f"{name} is torchvision's, and can't stand below an augmenter of imgaug; put it "
            )
            raise self._policy.mistake(
                path, problem + "in the list `augmenters`, or in RandomApply"
            )
        if name not in allowed:
            known = nearest(name, [*allowed, *TRANSFORMS])
            raise self._policy.mistake(path, f"no augmenter {name!r}; {known}")
        if not isinstance(arguments, dict | None):
            raise self._policy.mistake(
                path, "expected `{parameter: value}` after the augmenter's name"
            )
        parameter_names = set(inspect.signature(allowed[name]).parameters) - RESERVED_PARAMETERS
        built = {}
        for parameter, argument in (arguments or {}).items():
            if parameter not in parameter_names:
                problem = f"{name} has no parameter {parameter!r}; "
                problem += nearest(parameter, parameter_names)
                if name in SHARED:
                    problem += f". This is imgaug's {name}; torchvision's is v2.{name}"
                raise self._policy.mistake(f"{path}.{parameter}", problem)
            built[parameter] = self._value(argument, f"{path}.{parameter}")
        if name in styles.AUGMENTERS:
            style = built.get(styles.PARAMETER)
            images = styles.find(style, self._policy.styles, path, self._policy.mistake)
            built[styles.PARAMETER] = images
        return self._built(allowed[name], built, path)

    def _built(self, kind: type, arguments: dict[str, Any], path: str) -> Any:
        try:
            return kind(**arguments)
        except Exception as error:
            problem = f"{path.rpartition('.')[2]} does not take these values: {one_line(error)}"
            raise self._policy.mistake(path, problem) from error

    def _value(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            if set(value) == {"range"}:
                return self._range(value["range"], f"{path}.range")
            if set(value) == {"choice"}:
                if not isinstance(value["choice"], list) or not value["choice"]:
                    raise self._policy.mistake(path, "choice takes a list: {choice: [a, b, c]}")
                inner = f"{path}.choice"
                return [self._value(v, f"{inner}.{i}") for i, v in enumerate(value["choice"])]
            if len(value) == 1 and re.match(r"[A-Z]|\w+\.", next(iter(value))):
                return self._augmenter(value, path)
            return {name: self._value(inner, f"{path}.{name}") for name, inner in value.items()}
        if isinstance(value, list):
            names = [v for v in value if isinstance(v, str)]
            if any(isinstance(v, dict) for v in value) or not augmenters().keys().isdisjoint(names):
                return self._augmenters(value, path)
            problem = "a bare list is ambiguous; write {range: [a, b]} or {choice: […]}"
            raise self._policy.mistake(path, problem)
        if type(value) in (int, float) and abs(value) > MAX_NUMBER:
            raise self._policy.mistake(
                path, f"{value} is too large; numbers go up to {MAX_NUMBER:,}"
            )
        return value

    def _range(self, value: Any, path: str) -> tuple[float, float]:
        numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
        if not numbers or len(value) != 2 or value[0] > value[1]:
            raise self._policy.mistake(
                path, "range takes two numbers, low then high: {range: [a, b]}"
            )
        return (self._value(value[0], f"{path}.0"), self._value(value[1], f"{path}.1"))


def _words(entropy: bytes) -> np.ndarray:
    """Eight 32-bit words from entropy of any length."""
    return np.frombuffer(hashlib.sha256(entropy).digest(), dtype="<u4")


def _walk(node: Any, seen: set[int]) -> Iterator[Any]:
    """Every imgaug object below `node` (augmenters, parameters) and our own augmenters, in a fixed
    order.

    imgaug's get_children_lists() hides child lists that are themselves augmenters (such as the
    random-order Sequential inside MultiplyAndAddToBrightness), so this walks the attributes.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    module = type(node).__module__
    if (module.startswith("imgaug.") and module != "imgaug.random") or module == OWN_MODULE:
        yield node
        for name in sorted(vars(node)):
            yield from _walk(vars(node)[name], seen)
    if isinstance(node, list | tuple):
        for child in node:
            yield from _walk(child, seen)
    elif isinstance(node, dict):
        for child in node.values():
            yield from _walk(child, seen)


@functools.cache
def augmenters() -> dict[str, type]:
    """The augmenters that a policy can name: `Fliplr`, `pillike.Autocontrast`, … of imgaug, and our
    own."""
    iaa = _imgaug()
    from featurecache.images import augmenters as ours

    classes = {}
    for prefix, module in (("", iaa), ("pillike.", iaa.pillike)):
        for name, value in vars(module).items():
            is_defined_here = prefix == "" or getattr(value, "__module__", "") == module.__name__
            if (
                is_defined_here
                and isinstance(value, type)
                and issubclass(value, iaa.Augmenter)
                and name not in REFUSED
                and not name.startswith("_")
            ):
                classes[prefix + name] = value
    return classes | {name: getattr(ours, name) for name in OWN_AUGMENTERS}


def shipped() -> dict[str, Path]:
    """The policies in this package, by name: those to begin with, then in alphabetical order."""
    paths = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    return {name: paths[name] for name in dict.fromkeys([*FIRST, *paths])}


def find_policy(name: str) -> Policy:
    """The shipped policy called `name`, or the policy in the YAML file with the path `name`."""
    if name == "none":
        raise BadInput("'none' is the empty policy: it has no augmenters and no draws")
    if name in shipped():
        return read_policy(shipped()[name])
    if ViewName(name).is_file:
        if not Path(name).is_file():
            raise BadInput(
                f"no policy file {name}; check the path, or list policies with "
                "`featurecache policies`"
            )
        return read_policy(Path(name))
    raise UnknownName("policy", name, [*shipped(), "none", *policy_files(name)])


def read_policy(path: Path) -> Policy:
    """The policy in a YAML file, named after the file. Raises BadInput."""
    if (
        not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", path.stem)
        or ViewName.parse(path.stem).draw is not None
    ):
        raise BadInput(
            f"{path}: a policy is named after its file; the name starts with a letter, contains "
            "letters, digits, '_' and '-', and may not end in '_' and digits (NAME_2 means draw 2 "
            "of NAME); rename the file"
        )
    if path.stem == "none":
        raise BadInput(f"{path}: 'none' is the empty policy; rename the file")
    node = yaml_files.read_yaml(path)
    file = yaml_files.validate(PolicyFile, yaml_files.plain_value(node), path)
    source = None if path.parent == SHIPPED else path
    tree = file.augmenters or [{generator_nodes.NAME: file.generator}]
    policy = Policy(path.stem, tree, file.description, source, yaml_files.lines_of(node))
    tree, folders = generator_nodes.described(tree, "augmenters", policy.mistake)
    tree, images = styles.described(tree, "augmenters", policy.mistake)
    return replace(policy, tree=tree, generators=folders, styles=images)


def _imgaug() -> Any:
    try:
        import imgaug.augmenters as iaa
    except ImportError as error:
        if "libGL" in str(error):
            # imaug asks for both builds of OpenCV, and the one with windows needs a system library.
            ((name, version),) = versions.installed_versions("opencv-python-headless").items()
            raise FeatureCacheError(
                "OpenCV can't be imported: it needs libGL, a system library for windows. Install "
                f"the build that does not need it: {sys.executable} -m pip install "
                f"--force-reinstall --no-deps {name}=={version}"
            ) from error
        raise
    from imgaug import imgaug as functions

    step_limits.install(functions, iaa)
    if multiprocessing.parent_process() is not None:
        # A worker has one core, but OpenCV would start one thread per core of the machine.
        import cv2

        cv2.setNumThreads(1)
    return iaa
