"""Encoded bytes to pixels: the decode rule that is part of every key (keys.DECODE_RULE).

A picture is a pure function of its bytes. The rule is the result of Pillow:

- orientation: all eight EXIF orientations are applied. If EXIF is broken or has no orientation, it
  is 1 (an XMP `tiff:Orientation` counts if EXIF has none, since Pillow reads it);
- colour: CMYK, YCCK and YCbCr become RGB by Pillow's conversion; ICC profiles are ignored;
- grey is copied to the three channels; 1-bit pixels become 0 and 255;
- palettes are expanded;
- alpha (RGBA, LA, PA, palette transparency, a transparent colour) is composited over white:
  round(alpha * colour + (1 - alpha) * 255). An extra band of a TIFF is alpha if the file declares
  it as alpha. Alpha that is 0 everywhere in a BMP or TIFF was never filled in, and is ignored;
- 12 or 16 bits per channel: the high byte is used. Netpbm is scaled from its maxval to 255. The
  transparent colour of a 16-bit RGB or a 2- or 4-bit grey PNG is not applied, as in Pillow;
- frames: the first frame of GIF, APNG, WebP, AVIF, multi-page TIFF and MPO (written by phones);
- with `jpeg_side`, which is then a field of the rule in the key: a large JPEG is decoded at 1/2,
  1/4 or 1/8 of its size. libjpeg computes fewer pixels per block (`Image.draft` in Pillow);
- refused, with the reason: signed, 32-bit and float pixels, pictures beyond the limits in
  picture_checks.py (by the header, before decoding), truncated files, formats not in FORMATS.

For a small JPEG Pillow spends most of its time outside the decoder. The pixels of a grey or colour
JPEG therefore come from simplejpeg, which runs the same library (libjpeg-turbo) with the same
result, and refuses whatever the library warns about. Pillow decodes refused files and all others.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from featurecache.images.picture_checks import (
    MAX_PIXELS,
    Undecodable,
    jpeg_refusal,
    size_refusal,
)
from featurecache.images.pngs import without_text
from featurecache.images.signatures import DECODED, HEAD, kind_of
from featurecache.images.tiffs import broken_tiff, check_tiff, has_alpha, high_bytes

__all__ = ["FORMATS", "Undecodable", "decode"]

# Pillow opens an MPO through its JPEG plugin; naming MPO here would be a KeyError in Pillow.
# Importing the plugins that are not Pillow's first choice registers them without all the others.
FORMATS: tuple[str, ...] = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)  # fmt: skip
if importlib.util.find_spec("PIL._avif"):  # since Pillow 11.3, in most builds
    from PIL import AvifImagePlugin

    FORMATS += (AvifImagePlugin.AvifImageFile.format,)

# Errors of Pillow's parsers on broken files; test_decode.py mutates files to check the list.
# MemoryError is not one of them: it may be the fault of the machine instead of the image.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's parsers also log some of the errors that they raise. Without a handler, logging would
# print them to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode(data: bytes, jpeg_side: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an encoded image: (H, W, 3) uint8 RGB, C-contiguous, owned by the caller.

    With `jpeg_side` a JPEG is decoded at 1/8, 1/4 or 1/2 of its size, rounded up: the first of them
    at which both sides have at least so many pixels, if there is one.

    Broken bytes raise Undecodable and nothing else. Safe to call from many threads. The first call
    switches off Pillow's warnings in the process.
    """
    plain = _plain_jpeg_size(data)
    if plain is not None and jpeg_refusal(data, *plain) is None:
        pixels = _turbo(data, plain, _reduction(plain, jpeg_side))
        if pixels is not None:
            return pixels
    _quieten_pillow()
    try:
        return _decode_by_pillow(data, plain is None, jpeg_side)
    except Undecodable:
        bare = without_text(data)
        if bare is None:
            raise
    return _decode_by_pillow(bare, False, None)


def _reduction(size: tuple[int, int], jpeg_side: int | None) -> int:
    """8, 4, 2 or 1: what both sides of a JPEG are divided by, as in Pillow's `draft`."""
    if jpeg_side is None:
        return 1
    return next((n for n in (8, 4, 2) if min(size) // jpeg_side >= n), 1)


def _decode_by_pillow(data: bytes, may_be_turned: bool, jpeg_side: int | None) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            is_jpeg = image.format in ("JPEG", "MPO")
            refusal = jpeg_refusal(data, *image.size) if is_jpeg else size_refusal(*image.size)
            if refusal is not None:
                raise Undecodable(refusal)
            if image.format == "TIFF":
                check_tiff(image)
            jpeg = image.format == "JPEG" and image.mode in ("L", "RGB")
            reduction = _reduction(image.size, jpeg_side) if is_jpeg else 1
            pixels = _turbo(data, image.size, reduction) if jpeg and may_be_turned else None
            if pixels is None:
                if jpeg_side is not None and reduction > 1:
                    image.draft(None, (jpeg_side, jpeg_side))
                image.load()
                pixels = _rgb(image)
            turn = _TURNS.get(_orientation(image))
            return np.array(pixels if turn is None else Image.fromarray(pixels).transpose(turn))
    except UnidentifiedImageError:
        # Pillow's own message contains a memory address.
        raise Undecodable(_unopened(data)) from None
    except Image.DecompressionBombError:
        raise Undecodable(f"more than {MAX_PIXELS:,} pixels") from None
    except _BROKEN as error:
        raise Undecodable(_unloaded(data, _reason(error))) from error


# The last plain header, and the size in it. Small pictures of a dataset often have equal headers,
# and parsing the header takes a good part of the decoding time.
#
# Safe as module state: it is a cache of a pure function, and the tuple is replaced in one step.
_plain_before: tuple[bytes, tuple[int, int] | None] = (b"\xff\xd8 none yet", None)


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that contains nothing that turns it or changes its colours.

    None for any other file, including broken ones, which Pillow decodes. A JPEG is plain if it has
    only tables, comments, one frame of 8-bit grey or colour, and the JFIF segment before the first
    scan. Colour components with ids other than 1, 2, 3, those of JFIF, may not be YCbCr.
    """
    global _plain_before
    header, size = _plain_before
    if data.startswith(header):
        return size
    if data[:2] != b"\xff\xd8":
        return None
    size, position = None, 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        if marker == 0xDA:  # the first scan
            if size is not None:
                _plain_before = (data[: position + 4], size)
            return size
        if marker in (0xC0, 0xC1, 0xC2) and size is None:
            frame = data[position + 4 : position + 2 + length]
            grey_or_colour = frame[5:6] == b"\1" or (frame[5:6], frame[6::3]) == (b"\3", b"\1\2\3")
            if not (frame[:1] == b"\x08" and grey_or_colour):
                return None
            height, width = struct.unpack(">HH", frame[1:5])
            if width * height == 0:
                return None
            size = (width, height)
        elif marker == 0xE0:
            if length < 16 or data[position + 4 : position + 9] != b"JFIF\0":
                return None
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE):  # tables, restart interval, comment
            return None
        position += 2 + length
    return None


def _turbo(data: bytes, size: tuple[int, int], reduction: int) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG of this (width, height), as stored (not turned), or None if there is any
    doubt."""
    width, height = (-(-side // reduction) for side in size)
    least = {} if reduction == 1 else {"min_width": width, "min_height": height}
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True, **least)
    except ValueError:  # broken, or not supported by libjpeg-turbo's simpler interface
        return None
    return pixels if reduction == 1 or pixels.shape[:2] == (height, width) else None


def _unopened(data: bytes) -> str:
    """The reason why Pillow can't open a file, by what kind of file it is."""
    kind = kind_of(data[:HEAD])
    if kind == "AVIF" and "AVIF" not in FORMATS:
        return "AVIF, which this Pillow can't decode; upgrade it, or convert the picture"
    if kind in DECODED:
        reason = _reason_of_plugin(data, {"Netpbm": "PPM", "WebP": "WEBP"}.get(kind, kind))
        return broken_tiff(data, reason) if kind == "TIFF" else f"a broken {kind} file ({reason})"
    if kind:
        return f"{kind}; expected a {', '.join(FORMATS)} file"
    return f"not a whole {', '.join(FORMATS)} file" if data else "empty"


def _reason_of_plugin(data: bytes, format: str) -> str:
    try:
        Image.OPEN[format][0](io.BytesIO(data), "")
    except _BROKEN as error:
        return _reason(error)
    return "not whole"


def _unloaded(data: bytes, reason: str) -> str:
    """Why the pixels of an opened file can't be read. Replaces Pillow's obscure messages."""
    is_obscure = "raw mode" in reason or "decoder error" in reason
    return broken_tiff(data, reason) if is_obscure and kind_of(data[:HEAD]) == "TIFF" else reason


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The loaded image as stored (not turned): (H, W, 3) uint8."""
    is_tiff = image.format == "TIFF"
    if image.mode == "I" and image.format == "PPM":  # a deep PGM, which Pillow scales to 65535
        grey = ((np.asarray(image).astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise Undecodable(f"32-bit pixels (Pillow mode {image.mode}) have no 8-bit meaning")
    if is_tiff and image.mode.startswith("I;16"):
        return np.repeat(high_bytes(image)[:, :, None], 3, axis=2)
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        rgb = np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        if "transparency" in image.info:
            rgb[wide == image.info["transparency"]] = 255
        return rgb
    if not image.has_transparency_data or (is_tiff and not has_alpha(image)):
        return np.asarray(image.convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
    colour, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    if image.format in ("BMP", "TIFF") and not alpha.any():
        return colour.astype(np.uint8)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, or 1 if it can't be read. It is 1 for a TIFF, which Pillow has already
    turned."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1


def _quieten_pillow() -> None:
    """Ignore Pillow's warnings (large image, corrupt EXIF, bad APNG), which could be made fatal.

    The decode rule covers the cases they warn about. `warnings.catch_warnings` is not thread-safe,
    so this filter applies to the process. It is set again only if another filter was put before it,
    because every change of the filters makes Python forget which warnings it has shown.
    """
    if tuple(warnings.filters[:1]) != (_QUIET,):
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _reason(error: BaseException) -> str:
    text = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)).split())
    return (text or type(error).__name__)[:200]
