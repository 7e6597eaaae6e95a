"""Images that are bad, huge, or changed while the work runs: each is reported, by its path and the
reason, and no other row notices.

`bad_images` and `changing_sources` try any writer. `bombs` asks only ours: to decode is not a
writer's work, and the naive one decodes as we do.

Rows are made with OpenVINO, whose rows do not depend on the batch: a dataset with bad images among
them is cut into other batches than one without, and rows are compared to the byte.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import Process, Tally, Writer, write_images
from featurecache.errors import FeatureCacheError
from featurecache.features.store import Cache
from featurecache.images.decode import MAX_PIXELS, Undecodable, decode

FEATURIZE = ("--backbone", "efficientnet_lite0", "--input-size", 32, "--engine", "openvino",
             "--workers", 0, "--quiet")  # fmt: skip
SOME_FAILED = 3  # the exit code
Pixels = np.ndarray


# Bad images.


def _noise(rng: np.random.Generator, *shape: int) -> Pixels:
    return rng.integers(0, 256, shape, np.uint8)


def _encoded(pixels: Pixels, format: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, format, **options)
    return out.getvalue()


def _png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", body)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _truncated(path: Path, rng: np.random.Generator) -> None:
    format = "JPEG" if path.suffix == ".jpg" else "PNG"
    whole = _encoded(_noise(rng, 12, 12, 3), format)
    end = whole.rindex(b"IEND") - 16 if format == "PNG" else len(whole) - 12  # inside of pixels
    _write(path, whole[: int(rng.integers(1, end))])


def _broken_header(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(_encoded(_noise(rng, 12, 12, 3), "PNG"))
    data[int(rng.integers(0, 16))] ^= 0xFF
    _write(path, bytes(data))


def _pipe(path: Path, rng: np.random.Generator) -> None:
    os.mkfifo(path)


def _folder(path: Path, rng: np.random.Generator) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


def _socket(path: Path, rng: np.random.Generator) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # The address of a socket is short: through a link to the folder it always is.
        descriptor = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        os.close(descriptor)


def _holes(path: Path, rng: np.random.Generator) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


def _locked(path: Path, rng: np.random.Generator) -> None:
    _write(path, _encoded(_noise(rng, 12, 12, 3), "PNG"))
    path.chmod(0)


def _float_tiff(path: Path, rng: np.random.Generator) -> None:
    _write(path, _encoded(rng.random((12, 12), np.float32), "TIFF"))


def _long(path: Path, rng: np.random.Generator) -> None:
    _write(path, _encoded(_noise(rng, 1, 2000), "PNG"))


def _bomb(path: Path, rng: np.random.Generator) -> None:
    body = _chunk(b"IDAT", zlib.compress(rng.bytes(9))) + _chunk(b"IEND", b"")
    _write(path, _png_header(30_000, 30_000) + body)


def _icon(path: Path, rng: np.random.Generator) -> None:
    _write(path, _encoded(_noise(rng, 16, 16, 3), "ICO"))


def _out_to(name: str) -> Callable[[Path, np.random.Generator], None]:
    def make(path: Path, rng: np.random.Generator) -> None:
        outside = path.parents[3] / "outside"
        outside.mkdir(exist_ok=True)
        target = outside / f"{path.stem}{name}"
        text = f"a secret {rng.integers(1 << 60)}".encode()
        _write(target, text if name == ".txt" else _encoded(_noise(rng, 12, 12, 3), "PNG"))
        path.symlink_to(target)

    return make


def _linked(target: str) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: path.symlink_to(target or path.name)


def _saved(format: str, **options: object) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: _write(path, _encoded(_noise(rng, 12, 12, 3), format, **options))


def _filled(text: bytes) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: _write(path, text and text + rng.bytes(8).hex().encode())


def _not_utf8(path: Path, rng: np.random.Generator) -> None:
    odd = os.fsencode(path.with_suffix("")) + b" caf\xe9" + os.fsencode(path.suffix)
    _write(Path(os.fsdecode(odd)), _encoded(_noise(rng, 12, 12, 3), "PNG"))


def _sixteen_bit(path: Path, rng: np.random.Generator) -> None:
    _write(path, _encoded(rng.integers(0, 1 << 16, (12, 12), np.uint16), "PNG"))


def _cmyk(path: Path, rng: np.random.Generator) -> None:
    _write(path, _encoded(_noise(rng, 12, 12, 4), "JPEG", "CMYK"))


def _animated(path: Path, rng: np.random.Generator) -> None:
    frames = [Image.fromarray(_noise(rng, 12, 12, 3)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@dataclass(frozen=True)
class Odd:
    """A way for an image to be odd: how it is made, and what must be said of it (None: nothing, for
    it can be read)."""

    suffix: str
    make: Callable[[Path, np.random.Generator], None]
    reason: str | None


NOT_WHOLE = "not a whole JPEG, PNG"
ANY = "."  # in whose words depends on where a file is broken
ODD = {
    "truncated JPEG": Odd(".jpg", _truncated, ANY),
    "truncated PNG": Odd(".png", _truncated, ANY),
    "text": Odd(".jpg", _filled(b"not a picture "), NOT_WHOLE),
    "page of a server": Odd(".jpeg", _filled(b"<html>404 Not Found"), "^HTML page; expected"),
    "no bytes": Odd(".png", _filled(b""), "^empty$"),
    "bomb": Odd(".png", _bomb, "pixels"),
    "broken header": Odd(".png", _broken_header, ANY),
    "icon": Odd(".png", _icon, "^Windows icon; expected"),
    "float TIFF": Odd(".tif", _float_tiff, "have no 8-bit meaning"),
    "line of pixels": Odd(".png", _long, "longer than"),
    "pipe": Odd(".jpg", _pipe, "a named pipe"),
    "socket": Odd(".jpg", _socket, "a socket"),
    "folder": Odd(".jpg", _folder, "a folder"),
    "endless device": Odd(".png", _linked("/dev/zero"), "a device"),
    "link to nothing": Odd(".jpg", _linked("nothing"), "a broken link"),
    "link to itself": Odd(".jpg", _linked(""), "symbolic links"),
    "link out to a text": Odd(".jpg", _out_to(".txt"), NOT_WHOLE),
    "name not UTF-8": Odd(".png", _not_utf8, "not UTF-8"),
    "no permission": Odd(".png", _locked, "Permission denied"),
    "10 GB of holes": Odd(".png", _holes, "10,737,418,240 bytes, more than"),
    # These can be read.
    "PNG named JPEG": Odd(".jpg", _saved("PNG"), None),
    "CMYK": Odd(".jpg", _cmyk, None),
    "16 bits": Odd(".png", _sixteen_bit, None),
    "animated GIF": Odd(".gif", _animated, None),
    "animated PNG": Odd(".png", _animated, None),
    "link out to a picture": Odd(".png", _out_to(".png"), None),
}
BAD = [name for name, odd in ODD.items() if odd.reason]


def obey_permissions() -> None:
    """Take from root the right to read what nobody may; for others it changes nothing."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
            raise OSError(ctypes.get_errno(), "capset")


def _odd_dataset(folder: Path, size: int) -> tuple[Path, dict[str, str], list[str]]:
    """`size` images with bad ones among them: where, the odd way of each odd id, the good ids."""
    rng = np.random.default_rng(3)
    data = write_images(folder / "data", size)
    good = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    count = max(size // 20, len(BAD))
    ways = [BAD[number % len(BAD)] for number in range(count)]
    ways += [name for name in ODD if name not in BAD] * max(count // 100, 1)
    odd: dict[str, str] = {}
    for place, name in zip(rng.permutation(len(good))[: len(ways)], ways, strict=True):
        path = data / good[int(place)]
        path.unlink()
        path = path.with_name(f"{path.stem}-{name.replace(' ', '-')}{ODD[name].suffix}")
        ODD[name].make(path, rng)
        shown = path.relative_to(data).as_posix()
        if name == "name not UTF-8":
            shown = shown.removesuffix(path.suffix) + r" caf\xe9" + path.suffix
        odd[shown] = name
    return data, odd, [name for name in good if (data / name).exists()]


def bad_images(writer: Writer, size: int, folder: Path) -> Tally:
    """`size` images, a twentieth of them bad in 20 ways: what is said, and every other row."""
    data, odd, good = _odd_dataset(folder, size)
    seconds = 60 + size / 10
    wanted = {path: reason for path, name in odd.items() if (reason := ODD[name].reason)}
    arguments = ["featurize", "--data", data, "--cache", folder / "cache", *FEATURIZE]
    bad: list[str] = []
    report, code, text = _told(writer, [*arguments, "--json"], folder, seconds)
    if code is None:
        return Tally(len(odd), len(odd), "featurize hung", (text[-300:],))
    bad += [f"featurize: {line}" for line in _misreported(wanted, report, "failed")]
    if code != SOME_FAILED:
        bad.append(f"exit code {code} of featurize: {text[-300:]}")
    if writer.name == "ours":
        for line in text.splitlines():
            if not line.startswith(("failed: ", "{")) and "--allow-failed" not in line:
                bad.append(f"featurize also said: {line[:200]}")
        _, code, _ = _told(writer, [*arguments, "--json", "--allow-failed"], folder, seconds)
        if code != 0:
            bad.append(f"exit code {code} with --allow-failed")
        words = ["inspect", "--data", data, "--json", "--quiet"]
        report, code, text = _told(writer, words, folder, seconds)
        bad += [f"inspect: {line}" for line in _misreported(wanted, report, "unreadable")]
        if code != 0:
            bad.append(f"exit code {code} of inspect: {text[-300:]}")
    alone = folder / "alone"
    for name in (*good, *(path for path in odd if path not in wanted)):
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        os.link((data / name).resolve(), alone / name)
    words = ["featurize", "--data", alone, "--cache", folder / "cache alone", *FEATURIZE]
    _, code, text = _told(writer, words, folder, seconds)
    expected = writer.rows(folder / "cache alone")
    rows = writer.rows(folder / "cache")
    differing = sum(rows.get(item) != row for item, row in expected.items())
    if code != 0 or differing:
        bad.append(f"alone ({code}), {differing} of {len(expected)} rows of neighbours differ")
    said = (
        f"{size:,} images, {len(wanted)} of them bad in {len(BAD)} ways: {len(bad)} wrong or "
        f"missing reports; {differing} of {len(expected):,} other rows differ"
    )
    return Tally(len(odd), len(bad), said, tuple(bad[:5]))


def _told(
    writer: Writer, arguments: Sequence[object], folder: Path, seconds: float
) -> tuple[dict[str, object], int | None, str]:
    """Run a command that obeys permissions: the JSON it printed, its exit code, all it said."""
    process = Process(writer, arguments, folder / "said", obey_permissions)
    code = process.wait(seconds)
    if code is None:
        process.signal(signal.SIGKILL)
        process.wait()
    text = process.text()
    found = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(found[0]) if found else {}, code, text


def _misreported(wanted: dict[str, str], report: dict[str, object], name: str) -> list[str]:
    rows = report.get(name)
    rows = rows if isinstance(rows, list) else []
    given = {row["path"]: row["reason"] for row in rows}
    wrong = [f"{path} is not reported" for path in wanted.keys() - given.keys()]
    wrong += [f"{path} is reported: {given[path]}" for path in given.keys() - wanted.keys()]
    wrong += [
        f"{path}: {given[path]!r} is not {wanted[path]!r}"
        for path in wanted.keys() & given.keys()
        if not re.search(wanted[path], given[path])
    ]
    return wrong + ["a path is reported twice"] * (len(given) != len(rows))


# Bombs.

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
        decode(_encoded(np.zeros((8, 8, 3), np.uint8), "PNG"))
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
    end = _chunk(b"IEND", b"")
    yield "PNG 30000x30000", _png_header(30_000, 30_000) + _chunk(b"IDAT", zeros) + end
    yield "PNG 2147483647x2147483647", _png_header(2**31 - 1, 2**31 - 1) + end
    deep = _png_header(20_000, 20_000, 16, 6)
    yield "PNG of 16-bit RGBA", deep + _chunk(b"IDAT", zeros) + end
    huge = zlib.compress(bytes(400 << 20), 9)
    small = _png_header(16, 16)
    yield "PNG with a huge profile", small + _chunk(b"iCCP", b"a\0\0" + huge) + end
    yield "PNG with a huge text", small + _chunk(b"zTXt", b"a\0\0" + huge) + end
    texts = b"".join(_chunk(b"zTXt", b"a\0\0" + zeros[: 1 << 20]) for _ in range(90))
    yield "PNG with many texts", small + texts + end
    yield "PNG with international text", small + _chunk(b"iTXt", b"a\0\1\0\0\0" + huge) + end
    yield "PNG whose chunk is 2 GB", small + struct.pack(">I", 2**31 - 1) + b"IDAT" + zeros[:99]
    jpeg = bytearray(_encoded(np.zeros((16, 16, 3), np.uint8), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    yield "JPEG 65535x65535", bytes(jpeg)
    progressive = bytearray(_encoded(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True))
    frame = progressive.index(b"\xff\xc2")
    progressive[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    yield "progressive JPEG 20000x20000", bytes(progressive)
    yield "JPEG of many scans", many_scans(5000, 1500)
    gif = bytearray(_encoded(np.zeros((16, 16), np.uint8), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "GIF 65535x65535", bytes(gif)
    gif[6:10] = struct.pack("<HH", 16, 16)
    inner = gif.index(b"\x2c\0\0\0\0")
    gif[inner + 5 : inner + 9] = b"\xff\xff\xff\xff"
    yield "GIF whose first frame is larger than itself", bytes(gif)
    bmp = bytearray(_encoded(np.zeros((16, 16, 3), np.uint8), "BMP"))
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
    whole = _encoded(np.zeros((side, side), np.uint8), "JPEG", progressive=True)
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
    """A little-endian TIFF of grey pixels, whose directory says what it is told to say."""
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


# Sources that change.

IMAGES, SHARD_ROWS, TARGETS = 96, 8, 12
CHANGES = ("edited", "replaced", "appended", "same size and time", "linked", "deleted")


def changing_sources(writer: Writer, size: int, folder: Path) -> Tally:
    """An image changes while its rows are made, when some shards are there already; then again.

    Rows of every content that there is are known from undisturbed runs. A row of a cache is wrong
    if it is not the one that its item has there.
    """
    rng = np.random.default_rng(4)
    data = write_images(folder / "data", IMAGES)
    paths = sorted(data.rglob("*.png"))
    new = _replacements(rng, sorted({len(path.read_bytes()) for path in paths}))
    targets = [paths[int(place)] for place in rng.permutation(IMAGES)[:TARGETS]]
    every = folder / "every"
    shutil.copytree(data, every)
    known = [*new.values(), *(path.read_bytes() + b"appended" for path in targets)]
    for number, content in enumerate(known):
        (every / "train" / "cat" / f"known {number}.png").write_bytes(content)
    commands = ("featurize", "augment") if writer.name == "ours" else ("featurize",)
    expected = {}
    for command in commands:
        process = Process(writer, _words(command, every, folder / command), folder / "said")
        if process.wait(120) != 0:
            raise RuntimeError(f"undisturbed, {command} failed: {process.text()}")
        expected[command] = _rows(writer, command, folder / command)
    bad: list[str] = []
    noticed = wrong_rows = 0
    for trial in range(size):
        command = commands[trial % len(commands)]
        change = CHANGES[trial // len(commands) % len(CHANGES)]
        target = targets[int(rng.integers(TARGETS))]
        cache = folder / f"cache {trial}"
        before = target.read_bytes()
        wanted = len(before) if change == "same size and time" else None
        content = new[wanted] if wanted in new else next(iter(new.values()))
        process = Process(writer, _words(command, data, cache), folder / "said")
        # A shard or more is there: the plan was made, and other shards are still to come.
        late = paths.index(target) // SHARD_ROWS
        _wait_for(process, cache, int(rng.integers(1, max(late, 2))))
        _change(change, target, content, folder / "elsewhere.png")
        code, text = process.wait(60), process.text()
        listed, head = (3, "failed: ") if writer.name == "ours" else (1, "featurecache: ")
        said = [line for line in text.splitlines() if line.startswith(head)]
        wrong = []
        noticed += code == listed
        name = target.relative_to(data).as_posix()
        if code == listed and not (
            len(said) == 1 and f" {name}: " in said[0] and "Trace" not in text
        ):
            wrong.append(f"not said clearly: {text[-300:]}")
        if code not in (0, listed):
            wrong.append(f"exit code {code}: {text[-300:]}")
        if code is None:
            process.signal(signal.SIGKILL)
            process.wait()
        wrong += _wrong_rows(writer, command, cache, expected[command])
        again = Process(writer, _words(command, data, cache), folder / "said")
        if (code := again.wait(60)) != 0:
            wrong.append(f"again, exit code {code}: {again.text()[-300:]}")
        after = _wrong_rows(writer, command, cache, expected[command])
        wrong_rows += len(after)
        wrong += [f"again, {line}" for line in after]
        target.unlink(missing_ok=True)
        target.write_bytes(before)
        shutil.rmtree(cache, ignore_errors=True)
        if wrong:
            bad.append(f"{command}, {name} {change}: {'; '.join(wrong)}")
    said_of = (
        f"{size} changes while {' and '.join(commands)} ran, {noticed} of them in time to be "
        f"noticed and said: {wrong_rows} wrong rows, {len(bad) - wrong_rows} unclear ends"
    )
    return Tally(size, len(bad), said_of, tuple(bad[:5]))


def _words(command: str, data: Path, cache: Path) -> list[object]:
    words: list[object] = [command, "--data", data, "--cache", cache, "--shard-rows", SHARD_ROWS]
    if command == "augment":
        return [*words, "--policy", "color_1", "--workers", 0, "--quiet"]
    return [*words, *FEATURIZE]


def _replacements(rng: np.random.Generator, lengths: Sequence[int]) -> dict[int, bytes]:
    """Other pictures, by their length: one of each of these, where noise of 12x12 can have it."""
    found: dict[int, bytes] = {}
    for _ in range(2000):
        made = _encoded(_noise(rng, 12, 12, 3), "PNG")
        if len(made) in lengths:
            found.setdefault(len(made), made)
        if len(found) == len(lengths):
            break
    return found


def _wait_for(process: Process, cache: Path, shards: int) -> None:
    """Until that many data files are there, or the process has ended."""
    deadline = time.monotonic() + 60
    while len(list(cache.rglob("*.h5"))) < shards and time.monotonic() < deadline:
        if process.wait(0) is not None:
            return


def _change(change: str, path: Path, content: bytes, elsewhere: Path) -> None:
    before = path.stat()
    if change == "deleted":
        path.unlink()
    elif change == "linked":
        elsewhere.write_bytes(content)
        path.unlink()
        path.symlink_to(elsewhere)
    elif change == "appended":
        with path.open("ab") as file:
            file.write(b"appended")
    elif change == "replaced":
        fresh = path.with_name(".fresh")
        fresh.write_bytes(content)
        fresh.replace(path)
    else:  # edited, in two steps; or the same size and time
        with path.open("r+b") as file:
            file.write(content[:100])
            file.flush()
            file.write(content[100:])
            file.truncate()
        if change == "same size and time":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _rows(writer: Writer, command: str, cache: Path) -> dict[bytes, bytes]:
    if command == "featurize":
        return writer.rows(cache) if cache.exists() else {}
    spaces = Cache(cache).spaces()
    return {item: space.picture(item) or b"" for space in spaces for item in space.rows}


def _wrong_rows(
    writer: Writer, command: str, cache: Path, expected: dict[bytes, bytes]
) -> list[str]:
    try:
        rows = _rows(writer, command, cache)
    except (FeatureCacheError, OSError) as error:
        return [f"a reader says: {error}"]
    wrong = sum(expected.get(item) != row for item, row in rows.items())
    return [f"{wrong} of {len(rows)} rows are wrong"] if wrong else []
