"""Bytes of images that harnesses make."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

Pixels = np.ndarray


def noise(rng: np.random.Generator, *shape: int) -> Pixels:
    return rng.integers(0, 256, shape, np.uint8)


def encoded(pixels: Pixels, format: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, format, **options)
    return out.getvalue()


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
