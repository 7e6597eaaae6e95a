"""Keys and canonical JSON.

A key is the SHA-256 of canonical JSON. It contains everything that changes a vector, and nothing
else (law 2, "The key says everything that changes a vector")."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FORMAT_VERSION = 1  # of the cache on disk; part of every key

# How encoded bytes become RGB pixels; images/decode.py implements it (docs/format.md).
DECODE_RULE = {
    "alpha": "over white",
    "colour": "rgb8",
    "frame": "first",
    "orientation": "exif applied",
    "sixteen_bit": "high byte",
}

JPEG_SIDE = "jpeg_side"  # a field that the rule has if large JPEGs are decoded at a smaller size

PIXEL_CANARY = "pixel_canary"  # a field of a shard's provenance (images/canary.py)

Json = dict[str, Any]
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
)


def canonical(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises ValueError for NaN and infinity, TypeError for types that JSON does not have.
    """
    return _ENCODER.encode(value).encode("ascii")


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def picture_key(view: Json | None, jpeg_side: int | None = None) -> Json:
    """Key of a space of pictures: the decode rule and the view, no network. `jpeg_side` is None if
    all images are decoded in full (images/decode.py)."""
    rule = DECODE_RULE if jpeg_side is None else {**DECODE_RULE, JPEG_SIDE: str(jpeg_side)}
    return {"format": FORMAT_VERSION, "decode": rule, "view": view}


def vector_key(
    view: Json | None, backbone: Json, precision: str, jpeg_side: int | None = None
) -> Json:
    """Key of a space of vectors (law 2). `view` is None for the view `none`."""
    return {
        **picture_key(view, jpeg_side),
        "backbone": backbone,
        "precision": precision,
        "dtype": "float16" if backbone.get("store") == "f16" else "float32",
    }


def jpeg_side(key: Json) -> int | None:
    """The `jpeg_side` of a space's key."""
    side = key["decode"].get(JPEG_SIDE)
    return None if side is None else int(side)


def setting_of(key: Json) -> Json:
    """How the vectors of a key were computed, as commands name it: the backbone's part of the key,
    the precision, and `jpeg_side` if there is one."""
    side = jpeg_side(key)
    setting = {**key["backbone"], "precision": key["precision"]}
    return setting if side is None else {**setting, JPEG_SIDE: side}


def setting_beside_names(key: Json) -> Json:
    """What tells spaces with the same names of view and backbone apart, by the names of options. A
    policy, and the code of a network of the user's own, are given by their digests."""
    backbone, view, side = key.get("backbone", {}), key["view"], jpeg_side(key)
    fields = ("weights", "input_size", "crop", "interpolation", "layer", "pooling", "store")
    setting = {name: backbone[name] for name in fields if name in backbone}
    setting |= {"precision": key["precision"]} if backbone else {}
    setting |= {"code": digest(backbone["code"])} if "code" in backbone else {}
    setting |= {} if side is None else {JPEG_SIDE: side}
    return setting | ({"policy": digest(view["policy"]), "seed": view["seed"]} if view else {})


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The fields in which two keys differ, with both values: `backbone.crop: 1.0 / 0.9`.

    If one has a mapping where the other has nothing, each field of the mapping is listed.
    """
    if canonical(a) == canonical(b):  # not a == b: 1, 1.0 and True are different keys
        return []
    if isinstance(a, dict | None) and isinstance(b, dict | None):
        first, second = a or {}, b or {}
        result = []
        for name in sorted(first.keys() | second.keys()):
            inner = f"{path}.{name}" if path else name
            result += differences(first.get(name), second.get(name), inner)
        if result:
            return result
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{path}.{i}")
        ]
    return [f"{path}: {_short(a)} / {_short(b)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "..."
