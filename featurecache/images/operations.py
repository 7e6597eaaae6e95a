"""Operations with a strength: the atomic policies from which `search` makes a policy.

They are those of AutoAugment and TrivialAugment, and others of the same kind, as augmenters of
imgaug and our own. An operation at a strength is a policy like any other: its key is its tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featurecache.errors import BadInput, UnknownName, located
from featurecache.images.policies import Policy, find_policy, shipped
from featurecache.images.view_names import ViewName
from featurecache.keys import Json
from featurecache.storage import durable
from featurecache.yaml_files import yaml_text


class Operation(NamedTuple):
    """`entry` is the entry of a policy at a strength; `low` to `high` are the default strengths,
    0 to `limit` the possible ones. Without a limit the operation has no strength."""

    entry: Callable[[float], Json]
    low: float = 0.0
    high: float = 0.0
    limit: float = 0.0
    is_whole: bool = False  # strengths are whole numbers


def _sign(strength: float) -> Json:
    """The strength or its negative, at random."""
    return {"choice": [-strength, strength]}


def _ratio(strength: float) -> Json:
    """1 plus the strength or its inverse, at random."""
    return {"choice": [round(1 / (1 + strength), 6), round(1 + strength, 6)]}


def _enhance(part: str, strength: float) -> Json:
    """A factor of 1 minus or plus the strength, at random."""
    factor = {"choice": [round(1 - strength, 6), round(1 + strength, 6)]}
    return {f"pillike.Enhance{part}": {"factor": factor}}


def _aa(op: str) -> Callable[[float], Json]:
    """An operation of AutoAugment at a level."""
    return lambda s: {"AutoAugmentOp": {"op": op, "level": round(s)}}


# Strengths are degrees or shares of a side; 1 less or more than a factor of 1 (Pillow's enhancers);
# numbers of 255; levels of AutoAugment; the sigma of a blur; a share of the pixels.
OPERATIONS: dict[str, Operation] = {
    "Rotate": Operation(lambda s: {"Rotate": {"rotate": _sign(s)}}, 10, 90, 180),
    "ShearX": Operation(lambda s: {"ShearX": {"shear": _sign(s)}}, 6, 30, 60),
    "ShearY": Operation(lambda s: {"ShearY": {"shear": _sign(s)}}, 6, 30, 60),
    "TranslateX": Operation(lambda s: {"TranslateX": {"percent": _sign(s)}}, 0.06, 0.3, 0.9),
    "TranslateY": Operation(lambda s: {"TranslateY": {"percent": _sign(s)}}, 0.06, 0.3, 0.9),
    "ZoomIn": Operation(lambda s: {"CropAndScale": {"size": round(1 - s, 6)}}, 0.1, 0.5, 0.9),
    "ZoomOut": Operation(lambda s: {"Affine": {"scale": round(1 - s, 6)}}, 0.1, 0.5, 0.9),
    "Perspective": Operation(lambda s: {"PerspectiveTransform": {"scale": s}}, 0.02, 0.15, 0.3),
    "Elastic": Operation(lambda s: {"ElasticTransformation": {"alpha": s, "sigma": 5}}, 10, 50, 99),
    "Fliplr": Operation(lambda s: {"Fliplr": {"p": 1}}),
    "Flipud": Operation(lambda s: {"Flipud": {"p": 1}}),
    "Cutout": Operation(lambda s: {"Cutout": {"nb_iterations": 1, "size": s}}, 0.2, 0.6, 1),
    "Brightness": Operation(lambda s: _enhance("Brightness", s), 0.2, 0.9, 1),
    "Color": Operation(lambda s: _enhance("Color", s), 0.2, 0.9, 1),
    "Contrast": Operation(lambda s: _enhance("Contrast", s), 0.2, 0.9, 1),
    "Sharpness": Operation(lambda s: _enhance("Sharpness", s), 0.2, 0.9, 1),
    "Gamma": Operation(lambda s: {"GammaContrast": {"gamma": _ratio(s)}}, 0.2, 1, 4),
    "Hue": Operation(lambda s: {"AddToHue": {"value": _sign(s)}}, 10, 90, 127, True),
    "Saturation": Operation(lambda s: {"AddToSaturation": {"value": _sign(s)}}, 25, 99, 255, True),
    "Grayscale": Operation(lambda s: {"Grayscale": {"alpha": s}}, 0.3, 1, 1),
    "Posterize": Operation(_aa("Posterize"), 3, 9, 9, True),
    "Solarize": Operation(_aa("Solarize"), 3, 9, 9, True),
    "ChannelShift": Operation(lambda s: {"ChannelShift": {"value": _sign(s)}}, 15, 90, 255),
    "ChannelShuffle": Operation(lambda s: {"ChannelShuffle": {"p": 1}}),
    "AutoContrast": Operation(_aa("AutoContrast")),
    "Equalize": Operation(_aa("Equalize")),
    "Invert": Operation(_aa("Invert")),
    "Noise": Operation(lambda s: {"AdditiveGaussianNoise": {"scale": s}}, 5, 40, 255),
    "Blur": Operation(lambda s: {"GaussianBlur": {"sigma": s}}, 0.5, 2, 9),
    "Dropout": Operation(lambda s: {"Dropout": {"p": s}}, 0.02, 0.2, 0.9),
}


def atomic_policies(
    name: str, strengths: Sequence[float] | None, steps: int, where: str
) -> list[Policy]:
    """The policies of one entry of a search: an operation at `steps` strengths from its default
    range or from the two numbers `strengths`, or the policy with this name or path. Raises BadInput
    that begins with `where`."""
    if name not in OPERATIONS:
        return [_whole_policy(name, strengths, where)]
    operation = OPERATIONS[name]
    low, high = strengths or (operation.low, operation.high)
    if strengths is not None and not operation.limit:
        raise BadInput(f"{where}: {name} has no strength; write its name alone")
    if not 0 <= low <= high <= operation.limit:
        raise BadInput(
            f"{where}: {name}: [{low:g}, {high:g}] is not a range of strengths "
            f"from 0 to {operation.limit:g}"
        )
    levels = [float(f"{level:.3g}") for level in np.linspace(low, high, steps)]
    if operation.is_whole:
        levels = [round(level) for level in levels]
    if not operation.limit:
        return [Policy(name, [operation.entry(0.0)], name)]
    return [
        Policy(f"{name}-{level:g}".replace(".", "p"), [operation.entry(level)], f"{name} {level:g}")
        for level in dict.fromkeys(levels)
    ]


def pair(first: Policy, second: Policy) -> Policy:
    """Both policies, one after the other."""
    description = f"{first.name}, then {second.name}"
    return Policy(f"{first.name}--{second.name}", [*first.tree, *second.tree], description)


def mixture(weights: Sequence[tuple[Policy | None, float]]) -> list[Json]:
    """The tree that applies one of the policies, drawn with these weights, which sum to 1; None
    changes nothing. Each `Sometimes` applies its policy or the rest, with the probability of its
    policy among those that are left; one that is certain is applied without it."""
    tree: list[Json] = []
    left = sum(weight for policy, weight in weights if policy is None)
    for policy, weight in weights[::-1]:
        if policy is not None:
            left += weight
            p = round(weight / left, 6)
            rest = {"else_list": tree} if tree else {}
            applied = {"p": p, "then_list": policy.tree} | rest
            tree = policy.tree if p == 1 else [{"Sometimes": applied}]
    return tree or [{"Identity": {}}]


def written_view(policy: Policy, folder: Path) -> str:
    """The name of draw 1 of the policy for every command; unless it is shipped or a file, it is
    written to a file in the folder."""
    if policy.source is not None or policy.name in shipped():
        return f"{policy.source or policy.name}_1"
    path = folder / f"{policy.name}.yaml"
    content = {"description": policy.description, "augmenters": policy.tree}
    text = yaml_text(content, width=100).encode()
    if not path.is_file() or path.read_bytes() != text:
        durable.replace(path, text)
    return f"{path}_1"


def _whole_policy(name: str, strengths: Sequence[float] | None, where: str) -> Policy:
    if name not in shipped() and not ViewName(name).is_file:
        raise UnknownName("operation or policy", name, [*OPERATIONS, *shipped()], where)
    if strengths is not None:
        raise BadInput(f"{where}: the policy {name} has no strength; write its name alone")
    with located(where):
        policy = find_policy(name)
    if "torchvision" in policy.libraries or policy.generators or policy.styles:
        raise BadInput(
            f"{where}: {name}: a search mixes augmenters of imgaug and our own, without "
            "torchvision's transforms, generators and folders of styles; leave it out"
        )
    with located(where):
        policy.build()
    return policy
