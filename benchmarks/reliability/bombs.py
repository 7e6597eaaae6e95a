"""Images that are small as files and huge as pictures: each is refused at once, in little memory.

Only ours is asked: to decode is not a writer's work, and the naive one decodes as we do.
"""

from __future__ import annotations

import io
import json
import re
import resource
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import Process, Tally
from benchmarks.reliability.image_bytes import chunk, encoded, png_header
from featurecache.images.decode import MAX_PIXELS, Undecodable, decode

REFUSAL_SECONDS = 1.0
REFUSAL_MEMORY = 64 << 20  # bytes that a refusal may add to a process, over the file's own
ADDRESSES = 512 << 20  # and of address space, touched or not
# Whole small pictures beside what lies: to decode them is right, if it takes no more.
HARMLESS = {
    "PNG whose chunk is 2 GB", "PNG with a huge text", "PNG with many texts",
    "PNG with international text", "PNG with a huge profile", "TIFF with a tag of 4 GB",
    "TIFF with a tag of 16 GB", "TIFF whose directory holds itself", "WebP of a wide canvas",
}  # fmt: skip
ACCEPTED_MEMORY = 2 << 30  # a picture of MAX_PIXELS: four arrays of three bytes a pixel, and more


@dataclass(frozen=True)
class Decoding:
    """A process (see harness.Process) that decodes one file, and prints what it took as JSON."""

    path: Path
    addresses: int
    name: str = "decoding"
    commit = rows = None  # it is started as a writer, and asked for nothing else

    def main(self) -> None:
        data = self.path.read_bytes()
        decode(encoded(np.zeros((8, 8, 3), np.uint8), "PNG"))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + self.addresses, held + self.addresses))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        try:
            said = str(decode(data).shape)
            refused = False
        except Undecodable as error:
            said, refused = str(error), True
        took = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(json.dumps({"said": said, "refused": refused, "seconds": took, "memory": grown}))


def bombs(size: int, folder: Path) -> Tally:
    """Small files that ask for much, each decoded in a process of its own that is measured.

    The naive writer is not asked: it decodes with the same function, as any writer would.
    """
    kinds = list(_bombs())
    bad: list[str] = []
    slowest = most = 0.0
    refused = 0
    for number in range(max(size, len(kinds))):
        label, data = kinds[number % len(kinds)]
        seen = _decoded(folder, data, ADDRESSES)
        if "refused" not in seen or not (seen["refused"] or label in HARMLESS):
            bad.append(f"{label}: {seen}")
            continue
        refused += bool(seen["refused"])
        slowest, most = max(slowest, seen["seconds"]), max(most, seen["memory"])
        if seen["seconds"] > REFUSAL_SECONDS or seen["memory"] > REFUSAL_MEMORY:
            bad.append(f"{label}: {seen}")
    largest = "not tried"
    if size >= 2 * len(kinds):
        side = int(MAX_PIXELS**0.5)
        out = io.BytesIO()
        Image.new("RGB", (side, side)).save(out, "PNG", compress_level=1)
        seen = _decoded(folder, out.getvalue(), 4 << 30)
        largest = f"{seen.get('memory', 0) / 1e6:.0f} MB, {seen.get('seconds', 0):.1f} s"
        if seen.get("refused") is not False or seen["memory"] > ACCEPTED_MEMORY:
            bad.append(f"an image of {MAX_PIXELS:,} pixels: {seen}")
    tried = max(size, len(kinds))
    said = (
        f"{tried} bombs of {len(kinds)} kinds: {refused} refused, "
        f"{tried - refused - len(bad)} read as the small pictures they hold, in at most "
        f"{slowest:.2f} s and {most / 1e6:.0f} MB (the cap is {REFUSAL_MEMORY >> 20} MiB); "
        f"the largest image that is accepted: {largest}"
    )
    return Tally(tried, len(bad), said, tuple(bad[:9]))


def _decoded(folder: Path, data: bytes, addresses: int) -> dict[str, float]:
    path, output = folder / "bomb", folder / "said"
    path.write_bytes(data)
    process = Process(Decoding(path, addresses), [], output)
    code = process.wait(60)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
        return {}
    try:
        found: dict[str, float] = json.loads(process.text())
    except ValueError:
        return {"code": code, "text": process.text()[-300:]}  # type: ignore[dict-item]
    return found


def _bombs() -> Iterator[tuple[str, bytes]]:
    """What is to be refused: (what it is, the encoded bytes), none above a megabyte."""
    zeros = zlib.compress(bytes(10 << 20), 9)
    end = chunk(b"IEND", b"")
    yield "PNG 30000x30000", png_header(30_000, 30_000) + chunk(b"IDAT", zeros) + end
    yield "PNG 2147483647x2147483647", png_header(2**31 - 1, 2**31 - 1) + end
    deep = png_header(20_000, 20_000, 16, 6)
    yield "PNG of 16-bit RGBA", deep + chunk(b"IDAT", zeros) + end
    huge = zlib.compress(bytes(400 << 20), 9)
    small = png_header(16, 16)
    yield "PNG with a huge profile", small + chunk(b"iCCP", b"a\0\0" + huge) + end
    yield "PNG with a huge text", small + chunk(b"zTXt", b"a\0\0" + huge) + end
    texts = b"".join(chunk(b"zTXt", b"a\0\0" + zeros[: 1 << 20]) for _ in range(90))
    yield "PNG with many texts", small + texts + end
    yield "PNG with international text", small + chunk(b"iTXt", b"a\0\1\0\0\0" + huge) + end
    yield "PNG whose chunk is 2 GB", small + struct.pack(">I", 2**31 - 1) + b"IDAT" + zeros[:99]
    jpeg = bytearray(encoded(np.zeros((16, 16, 3), np.uint8), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    yield "JPEG 65535x65535", bytes(jpeg)
    progressive = bytearray(encoded(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True))
    frame = progressive.index(b"\xff\xc2")
    progressive[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    yield "progressive JPEG 20000x20000", bytes(progressive)
    yield "JPEG of many scans", many_scans(5000, 1500)
    gif = bytearray(encoded(np.zeros((16, 16), np.uint8), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "GIF 65535x65535", bytes(gif)
    gif[6:10] = struct.pack("<HH", 16, 16)
    inner = gif.index(b"\x2c\0\0\0\0")
    gif[inner + 5 : inner + 9] = b"\xff\xff\xff\xff"
    yield "GIF whose first frame is larger than itself", bytes(gif)
    bmp = bytearray(encoded(np.zeros((16, 16, 3), np.uint8), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    yield "BMP 30000x30000", bytes(bmp)
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, -(2**31) + 1)
    yield "BMP 2147483647x-2147483647", bytes(bmp)
    for kind in (b"P4", b"P5", b"P6", b"P3"):
        yield f"PPM {kind.decode()}", kind + b"\n65535 65535\n" + b"255\n" + bytes(99)
    yield "PPM of very many digits", b"P6\n" + b"9" * 500_000 + b" 1\n255\n"
    yield "WebP 16383x16383", _webp(16_383, 16_383)
    yield "WebP 10001x10000", _webp(10_001, 10_000)
    yield "WebP of a huge canvas", _webp_canvas(1 << 24, 1 << 24)
    yield "WebP of a wide canvas", _webp_canvas(16_383, 16_383)
    yield "TIFF 65535x65535", _tiff(65_535, 65_535)
    yield "TIFF 4294967295x1", _tiff(2**32 - 1, 1)
    yield "TIFF of a huge tile", _tiff(16, 16, tile=30_000)
    yield "TIFF of a huge packed tile", _tiff(16, 16, tile=30_000, compression=8)
    yield "TIFF of huge strips", _tiff(16, 16, strips=2**32 - 1)
    yield "TIFF with a tag of 4 GB", _tiff(16, 16, extra=(34675, 7, 2**32 - 1, 8))
    yield "TIFF with a tag of 16 GB", _tiff(16, 16, extra=(34675, 4, 2**32 - 1, 8))
    yield "TIFF with many samples", _tiff(16, 16, samples=65_535)
    yield "TIFF whose directory holds itself", _tiff(16, 16, extra=(34665, 4, 1, 8))


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of side x side that says again and again that nothing changes."""
    whole = encoded(np.zeros((side, side), np.uint8), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", whole)]
    last = whole[starts[-1] : whole.rindex(b"\xff\xd9")]
    return whole[:-2] + last * min(scans, (1 << 20) // len(last)) + b"\xff\xd9"


def _webp(width: int, height: int) -> bytes:
    """A lossless WebP header of this size, and little behind it."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(50)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP: a canvas of this size around a small animated frame."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    data = bytearray(out.getvalue())
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def _tiff(
    width: int,
    height: int,
    *,
    tile: int = 0,
    compression: int = 1,
    strips: int = 1,
    samples: int = 1,
    extra: tuple[int, int, int, int] | None = None,
) -> bytes:
    """A little-endian TIFF of grey pixels with these tags, which may be wrong."""
    body = zlib.compress(bytes(1 << 20), 9) if compression == 8 else bytes(4096)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression),
            (262, 3, 1, 1), (277, 3, 1, samples)]  # fmt: skip
    if tile:
        tags += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, len(body))]
    else:
        tags += [(273, 4, strips, 8), (278, 4, 1, height), (279, 4, strips, len(body))]
    tags += [extra] if extra else []
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)
