"""Generators in policies: `generator: {run: FOLDER, strength: 1.0}`.

A policy names the folder of a generator; its key has the digest of the generator's tensors instead.
This module knows neither torch nor how a generator works (generator_loaders.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.generator_files import DESCRIPTION, read_description
from featurecache.images import generator_loaders

NAME = "generator"  # of the node
PAIRS = "pairs"  # the parameter of a generator that takes two images of a class
VERSION = 1  # raise it whenever the pixels that a generator makes change

# Makes of a picture (H, W, 3) uint8, with a random generator, and the item of the image, a picture
# (H, W, 3) of floats.
Forward = Callable[[np.ndarray, np.random.Generator, bytes], np.ndarray]
Mistake = Callable[[str, str], BadInput]  # about a dotted path, and the problem


def described(value: Any, path: str, mistake: Mistake) -> tuple[Any, dict[str, Path]]:
    """A policy's tree in which the folder of each generator is replaced by what it holds, and the
    folders by the digests."""
    folders: dict[str, Path] = {}

    def entry(name: str, node: Any, path: str) -> Any:
        if name != NAME:
            return node
        node, folder = _described(node, path, mistake)
        folders[node["weights"]] = folder
        return node

    return yaml_files.replace_entries(value, path, entry), folders


def _described(node: Any, path: str, mistake: Mistake) -> tuple[dict[str, Any], Path]:
    if not isinstance(node, dict) or not isinstance(node.get("run"), str):
        raise mistake(path, "expected {run: FOLDER}, the run of a generator")
    if unknown := set(node) - {"run", "strength"}:
        raise mistake(f"{path}.{min(unknown)}", "a generator has `run` and `strength`")
    folder = Path(node["run"])
    try:
        generator = read_description(folder)
    except BadInput as error:
        raise mistake(f"{path}.run", str(error)) from error
    if generator.kind != "transform":
        problem = f"{folder} is a {generator.kind}, and a policy needs a generator that changes "
        raise mistake(f"{path}.run", problem + "images (kind transform)")
    return {
        "kind": generator.kind,
        "generator": generator.generator,
        "image_size": generator.image_size,
        "weights": generator.weights,
        "strength": node.get("strength", 1.0),
        **{name: value for name, value in generator.parameters.items() if name == PAIRS},
    }, folder.absolute()


def digests(tree: Any) -> set[str]:
    """The digests of all generators in a described tree."""
    return {str(node["weights"]) for node in _nodes(tree)}


def has_partners(tree: Any) -> bool:
    """Whether a generator in a described tree makes a picture of two images of a class."""
    return any(node.get(PAIRS) == "random" for node in _nodes(tree))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict) and set(tree) == {NAME}:
        yield tree[NAME]
    elif isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(child)


class Named(Protocol):
    """The policy that a node belongs to."""

    @property
    def generators(self) -> Mapping[str, Path]: ...

    def mistake(self, path: str, problem: str) -> BadInput:
        """The error about a dotted path in the tree."""


def load(node: dict[str, Any], policy: Named, path: str) -> Forward:
    """The generator of a described node of a policy."""
    folder = policy.generators.get(node["weights"])
    if folder is None or not (folder / DESCRIPTION).is_file():
        where = "known;" if folder is None else f"at {folder}; put it back there, or"
        problem = f"the generator {node['weights'][:16]} made this view, and its run is not {where}"
        raise policy.mistake(path, f"{problem} name the policy file, as in --view FILE.yaml_1")
    return generator_loaders.installed()(folder, node["weights"])
