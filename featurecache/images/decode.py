"""Encoded bytes to pixels: the decode rule that is part of every key (records.DECODE_RULE).

A picture is a pure function of its bytes. The rule is what Pillow gives:

- orientation: EXIF orientation is applied, all eight; where EXIF is broken or silent it is 1
  (an XMP `tiff:Orientation` counts where EXIF has none, as Pillow reads it);
- colour: CMYK, YCCK and YCbCr become RGB by Pillow's conversion; ICC profiles are ignored;
- grey is replicated into the three channels; 1-bit pixels become 0 and 255;
- palettes are expanded;
- alpha (RGBA, LA, PA, palette transparency, a transparent colour) is composited over white,
  round(alpha * colour + (1 - alpha) * 255);
- 16 bits a channel: the high byte is kept (Netpbm is scaled by its maxval to 255 instead; the
  transparent colour of a 16-bit RGB or a 2- or 4-bit grey PNG is not applied, Pillow lacks it);
- frames: the first frame of GIF, APNG, WebP, multi-page TIFF and MPO (what phones write);
- refused: 32-bit integer and float pixels, more than MAX_PIXELS, or one side more than MAX_RATIO
  times the other (both seen in the header, before decoding), a JPEG whose scans times its pixels
  are more than MAX_SCANS times MAX_PIXELS, truncated files, and every format not in FORMATS.

Pillow takes most of its time for a small JPEG around the pixels, not in them. So the pixels of a
grey or colour JPEG come from simplejpeg, which runs the same library (libjpeg-turbo) to the same
bytes and refuses whatever that library warns of; then, and for all other files, Pillow decides.
"""

from __future__ import annotations

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
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin, features

MAX_PIXELS = 100_000_000
MAX_SCANS = 32  # of MAX_PIXELS: a second's work. Encoders write 1 to 12; a megabyte can hold 50,000
MAX_RATIO = 256  # a network scales the shorter side up: a line of pixels would fill the memory

# Pillow opens an MPO through its JPEG plugin; naming MPO here would be a KeyError in Pillow.
# Importing the plugins that are not Pillow's first choice registers them without all the others.
FORMATS: tuple[str, ...] = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)  # fmt: skip
if features.check("avif"):  # since Pillow 11.3, in most builds
    from PIL import AvifImagePlugin

    FORMATS += (AvifImagePlugin.AvifImageFile.format,)

# What Pillow's parsers raise on broken files; test_decode.py mutates files to see it is enough.
# MemoryError is not here: it may be the machine's fault, and then the image must not be blamed.
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

# Its parsers log some errors as well as raising them; without a handler, logging prints to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class Undecodable(Exception):
    """The bytes are no picture by the decode rule; the message is the reason, on one line."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """The pixels of an encoded image: (H, W, 3) uint8 RGB, C-contiguous, owned by the caller.

    Raises Undecodable, and for broken bytes nothing else. Safe to call from many threads; Pillow's
    warnings are switched off in the process from the first call on.
    """
    plain = _plain_jpeg_size(data)
    if plain is not None and _refusal(*plain, _scans(data)) is None:
        pixels = _turbo(data)
        if pixels is not None:
            return pixels
    _quieten_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            scans = _scans(data) if image.format in ("JPEG", "MPO") else 1
            refusal = _refusal(*image.size, scans)
            if refusal is not None:
                raise Undecodable(refusal)
            jpeg = image.format == "JPEG" and image.mode in ("L", "RGB")
            pixels = _turbo(data) if jpeg and plain is None else None
            if pixels is None:
                image.load()
                pixels = _rgb(image)
            turn = _TURNS.get(_orientation(image))
            return np.array(pixels if turn is None else Image.fromarray(pixels).transpose(turn))
    except UnidentifiedImageError:
        # Pillow's own message holds a memory address.
        raise Undecodable(f"not a whole {', '.join(FORMATS)} file" if data else "empty") from None
    except Image.DecompressionBombError:
        raise Undecodable(f"more than {MAX_PIXELS:,} pixels") from None
    except _BROKEN as error:
        raise Undecodable(_reason(error)) from error


# The last plain header, whole, and what it says: small pictures of one set often share theirs, and
# reading it again is a good part of what is left of their decoding.
_plain_before: tuple[bytes, tuple[int, int] | None] = (b"\xff\xd8 none yet", None)


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG with nothing in it that turns, colours or hides its picture.

    None for any other file, also for a broken one: that is looked at by Pillow. Until the first
    scan only tables, comments, one frame of 8-bit grey or colour, and JFIF's own part are plain.
    Colour by other names than JFIF's 1, 2, 3 may not be YCbCr.
    """
    global _plain_before
    header, size = _plain_before
    if data.startswith(header):
        return size
    if data[:2] != b"\xff\xd8":
        return None
    size, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == 0xDA:  # the first scan
            if size is not None:
                _plain_before = (data[: at + 4], size)
            return size
        if marker in (0xC0, 0xC1, 0xC2) and size is None:
            frame = data[at + 4 : at + 2 + length]
            grey_or_colour = frame[5:6] == b"\1" or (frame[5:6], frame[6::3]) == (b"\3", b"\1\2\3")
            if not (frame[:1] == b"\x08" and grey_or_colour):
                return None
            height, width = struct.unpack(">HH", frame[1:5])
            if width * height == 0:
                return None
            size = (width, height)
        elif marker == 0xE0:
            if length < 16 or data[at + 4 : at + 9] != b"JFIF\0":
                return None
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE):  # tables, restarts, comment
            return None
        at += 2 + length
    return None


def _turbo(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG as it is stored (not turned), or None where there is any doubt."""
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:  # broken, or of a kind that libjpeg-turbo's simpler interface lacks
        return None
    return pixels


def _refusal(width: int, height: int, scans: int) -> str | None:
    """Why a picture is not decoded: it would take too much memory or time; None if it is."""
    if width * height > MAX_PIXELS:
        return f"{width}x{height} is more than {MAX_PIXELS:,} pixels"
    if width * height == 0:
        return f"{width}x{height} has no pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is longer than {MAX_RATIO} times its width"
    if scans * width * height > MAX_SCANS * MAX_PIXELS:
        return f"{scans:,} scans of {width}x{height} pixels take too long"
    return None


def _scans(data: bytes) -> int:
    """Scans of a JPEG: not exact, as other parts may hold these two bytes; but never too few."""
    return data.count(b"\xff\xda")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The loaded image as it is stored (not turned): (H, W, 3) uint8."""
    if image.mode == "I" and image.format == "PPM":  # a deep PGM, which Pillow scales to 65535
        grey = ((np.asarray(image).astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise Undecodable(f"32-bit pixels (Pillow mode {image.mode}) have no 8-bit meaning")
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        rgb = np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        if "transparency" in image.info:
            rgb[wide == image.info["transparency"]] = 255
        return rgb
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
    colour, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 where it can't be read; Pillow has turned a TIFF already, so 1."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1


def _quieten_pillow() -> None:
    """Keep Pillow's warnings (large image, corrupt EXIF, bad APNG) from leaking or being fatal.

    What they warn of is decided by the decode rule. `warnings.catch_warnings` is not thread-safe,
    so this is a filter of the process; it is set again only where another one came before it, as
    every change of the filters makes Python forget which warnings it has shown once.
    """
    if tuple(warnings.filters[:1]) != (_QUIET,):
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _reason(error: BaseException) -> str:
    text = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)).split())
    return (text or type(error).__name__)[:200]
