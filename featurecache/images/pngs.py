"""PNG files: encode pixels, and remove text and colour profiles, which do not affect the pixels."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_XMP = b"XML:com.adobe.xmp\0"  # may contain the orientation
_MAX_XMP = 1 << 20


def encode(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) uint8 as a PNG file."""
    out = io.BytesIO()
    # Level 1, because noise compresses badly: higher levels take time and save little.
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def without_text(data: bytes) -> bytes | None:
    """A PNG without its text and colour profile, which Pillow refuses if larger than a megabyte.
    Short XMP stays in. None for a file that is not a PNG, or has nothing to remove."""
    if not data.startswith(_SIGNATURE):
        return None
    pieces, position = [_SIGNATURE], len(_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if kind not in _TEXTS or _is_short_xmp(body):
            pieces.append(data[position:end])
        position = end
    pieces.append(data[position:])
    bare = b"".join(pieces)
    return bare if len(bare) < len(data) else None


def _is_short_xmp(body: bytes) -> bool:
    if not body.startswith(_XMP):
        return False
    if body[len(_XMP)] == 0:
        return len(body) <= _MAX_XMP
    text = body[len(_XMP) + 2 :].split(b"\0", 2)[-1]
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(text, _MAX_XMP)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
