"""TIFF files that Pillow decodes wrongly: they are corrected, or refused with the reason.

Bands, depth, photometric interpretation, extra samples and planes are independent of each other in
a TIFF, and Pillow supports only some of their combinations. Cached records contain the messages of
this module, so their wording must not change.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import ImagePalette, TiffImagePlugin

from featurecache.images.picture_checks import Undecodable

_WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 258, 259, 262, 266
_STRIP_SIZES, _BANDS, _PLANES, _COLORMAP, _TILE_SIZES = 279, 277, 284, 320, 325
_EXTRA, _SAMPLE_FORMAT = 338, 339
_KIND = 254  # bit 1: a smaller version of another picture; bit 4: a mask
_INNER = 330  # offsets of further pictures
_OLD_KIND = 255  # 2: a smaller version
_SAMPLE_KINDS = {1: "uint", 2: "int", 3: "float", 4: "untyped ", 5: "complex int", 6: "complex"}
_COLOURS = {
    0: "grey, white is 0", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr",
    8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "colour filter array", 32844: "LogL",
    32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
_ADVICE = "save it as grey, RGB or RGBA of 8 or 16 unsigned bits"
_UNASSOCIATED = (2,)
_BROKEN_TAGS = (
    LookupError, OSError, SyntaxError, TypeError, ValueError, ArithmeticError, struct.error
)  # fmt: skip


def check_tiff(image: Any) -> None:
    """Correct an opened TIFF, not yet loaded, so that Pillow loads it rightly. Raises Undecodable
    if that is not possible."""
    tags = image.tag_v2
    if _first(tags, _KIND, 0) & 1 and _INNER in tags:
        raise Undecodable("a raw photo, whose first picture is a thumbnail; save it as JPEG or PNG")
    if tags.next and _is_for_another(tags):
        raise Undecodable(
            "a TIFF whose first picture is a thumbnail or a mask of another; save the one that is "
            "meant as a file of its own"
        )
    if _sample_format(tags) != 1:
        bits = _first(tags, _BITS, 1)
        raise Undecodable(
            f"{tiff_name(tags)}: {'float' if _sample_format(tags) == 3 else 'signed'} {bits}-bit "
            f"pixels have no 8-bit meaning; {_ADVICE}"
        )
    if image.mode in ("I", "F"):
        raise Undecodable(f"{tiff_name(tags)}: 32-bit pixels have no 8-bit meaning; {_ADVICE}")
    is_raw = image.tile[0].codec_name == "raw"
    if is_raw:
        _check_subsampling(image, tags)
    if _first(tags, _PLANES, 1) == 2 and len(image.getbands()) > 1:
        _check_planes(image, tags, is_raw)
    if image.mode in ("P", "PA"):
        colormap = tags[_COLORMAP]
        if max(colormap) < 256:  # 8-bit entries, against the standard; libtiff reads them so too
            image.palette = ImagePalette.raw("RGB;L", bytes(colormap))


def _is_for_another(tags: Any) -> bool:
    """Whether the first picture of a TIFF is marked as a smaller version or a mask of another."""
    return bool(_first(tags, _KIND, 0) & 5) or _first(tags, _OLD_KIND, 1) == 2


def _check_subsampling(image: Any, tags: Any) -> None:
    if _first(tags, _PHOTOMETRIC, 0) == 6:
        sizes = tags.get(_STRIP_SIZES) or tags.get(_TILE_SIZES) or ()
        if sum(sizes) < 3 * image.width * image.height:
            raise Undecodable(f"{tiff_name(tags)}: subsampled without compression; {_ADVICE}")


def _check_planes(image: Any, tags: Any, is_raw: bool) -> None:
    """Check a TIFF whose bands are stored one after the other. If it is not compressed, Pillow
    instead of libtiff assembles the picture, and not always rightly."""
    extra = tuple(tags.get(_EXTRA, ()))
    if image.mode in ("LA", "La", "PA"):  # Pillow would read them as interleaved bands
        raise Undecodable(f"{tiff_name(tags)}: its planes are apart; save it with bands together")
    if not is_raw:
        return
    plain = image.mode in ("RGB", "RGBA", "CMYK") and extra in ((), _UNASSOCIATED)
    if not plain or _first(tags, _FILL_ORDER, 1) != 1:
        raise Undecodable(
            f"{tiff_name(tags)}: its planes are apart without compression; save it with compression"
        )
    if _first(tags, _BITS, 1) == 16:  # Pillow would read each plane as 8 bits
        depth = ";16L" if tags.prefix == b"II" else ";16B"
        image.tile = [
            tile._replace(args=(tile.args[0] + depth, *tile.args[1:])) for tile in image.tile
        ]


def has_alpha(image: Any) -> bool:
    """Whether the last band of a TIFF is declared as alpha. Pillow treats an undeclared extra band
    as alpha too."""
    return bool(image.tag_v2.get(_EXTRA))


def high_bytes(image: Any) -> np.ndarray:
    """The high byte of each pixel of a loaded grey TIFF of 12 or 16 bits, (H, W) uint8."""
    bits = _first(image.tag_v2, _BITS, 16)
    high = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return ~high if _first(image.tag_v2, _PHOTOMETRIC, 1) == 0 else high


def broken_tiff(data: bytes, reason: str) -> str:
    """Why Pillow, which gave `reason`, could not open a TIFF. Names the contents if the tags can be
    read."""
    try:
        tags = _tags(data)
        if not tags.get(_WIDTH):
            return f"a broken TIFF file ({reason})"
        name = tiff_name(tags)
    except _BROKEN_TAGS:
        return f"a broken TIFF file ({reason})"
    compression = _first(tags, _COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return (
            f"{name} with compression {compression} is not supported; {_ADVICE}, compressed by LZW"
        )
    if reason in ("unknown pixel mode", "unknown raw mode for given image mode"):
        return f"{name} is not supported; {_ADVICE}"
    return f"{name} can't be decoded ({reason}); if it is whole, {_ADVICE}"


def bits_of_tiff(data: bytes) -> int:
    """The bits per sample of a TIFF; 0 if its tags can't be read."""
    try:
        return _first(_tags(data), _BITS, 1)
    except _BROKEN_TAGS:
        return 0


def _tags(data: bytes) -> Any:
    """The tags of the first picture. Raises one of _BROKEN_TAGS."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def tiff_name(tags: Any) -> str:
    """The contents of a TIFF by its tags, such as `5-band uint8 TIFF (RGB)`."""
    bands = _first(tags, _BANDS, 1)
    kind = _SAMPLE_KINDS.get(_sample_format(tags), "unknown ")
    colours = _COLOURS.get(_first(tags, _PHOTOMETRIC, 0), "unknown colours")
    band_text = f"{bands}-band " if bands > 1 else ""
    return f"{band_text}{kind}{_first(tags, _BITS, 1)} TIFF ({colours})"


def _sample_format(tags: Any) -> int:
    return _first(tags, _SAMPLE_FORMAT, 1)


def _first(tags: Any, tag: int, default: int) -> int:
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
