"""PNG files without their text and profiles, which are no pixels."""

from __future__ import annotations

import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_ORIENTED = b"XML:com.adobe.xmp\0"  # may say how the picture is turned
_MAX_XMP = 1 << 20


def without_text(data: bytes) -> bytes | None:
    """A PNG without text and colour profile, of which Pillow refuses more than a megabyte; XMP is
    left in where it is short. None for what is no PNG, or has none of these."""
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
    if not body.startswith(_ORIENTED):
        return False
    if body[len(_ORIENTED)] == 0:
        return len(body) <= _MAX_XMP
    text = body[len(_ORIENTED) + 2 :].split(b"\0", 2)[-1]
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(text, _MAX_XMP)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
