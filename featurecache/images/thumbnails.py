"""Small pictures for people to look at. They are re-encoded, so they contain nothing of the
original file except its pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

JPEG = "image/jpeg"


def thumbnail(pixels: np.ndarray, size: int) -> bytes:
    """(H, W, 3) uint8 as a JPEG of at most `size` pixels per side; smaller ones are not scaled."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((size, size))
    return jpeg(picture)


def sheet(rows: Sequence[Sequence[np.ndarray]], tile: int, gap: int) -> Image.Image:
    """A sheet of rows of pictures (H, W, 3) uint8, each scaled to fit a tile of `tile` pixels."""
    step = tile + gap
    widest = max(len(row) for row in rows)
    page = Image.new("RGB", (step * widest + gap, step * len(rows) + gap), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            scale = tile / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            page.paste(picture.resize(size), (gap + x * step, gap + y * step))
    return page


def signed_file(picture: Image.Image, name: str, software: str) -> bytes:
    """The bytes of a picture file called `name`, with the name of the software in its header if the
    format allows it. Raises OSError, ValueError for a format that cannot be written."""
    png_info = PngInfo()
    png_info.add_text("Software", software)
    file = io.BytesIO()
    file.name = name  # Pillow takes the format from its suffix
    picture.save(file, pnginfo=png_info, comment=software)
    return file.getvalue()


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return file.getvalue()
