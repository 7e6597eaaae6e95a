"""Bad images in a dataset: each is reported, by its path and the reason, and no other row notices.

Rows are made with OpenVINO, whose rows do not depend on the batch: a dataset with bad images among
them is cut into other batches than one without, and rows are compared to the byte.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import Process, Tally, Writer, write_images
from benchmarks.reliability.image_bytes import chunk, encoded, noise, png_header

FEATURIZE = ("--backbone", "efficientnet_lite0", "--input-size", 32, "--engine", "openvino",
             "--workers", 0, "--quiet")  # fmt: skip
SOME_FAILED = 3  # the exit code


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _truncated(path: Path, rng: np.random.Generator) -> None:
    format = "JPEG" if path.suffix == ".jpg" else "PNG"
    whole = encoded(noise(rng, 12, 12, 3), format)
    end = whole.rindex(b"IEND") - 16 if format == "PNG" else len(whole) - 12  # inside of pixels
    _write(path, whole[: int(rng.integers(1, end))])


def _broken_header(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(encoded(noise(rng, 12, 12, 3), "PNG"))
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
    _write(path, encoded(noise(rng, 12, 12, 3), "PNG"))
    path.chmod(0)


def _float_tiff(path: Path, rng: np.random.Generator) -> None:
    _write(path, encoded(rng.random((12, 12), np.float32), "TIFF"))


def _long(path: Path, rng: np.random.Generator) -> None:
    _write(path, encoded(noise(rng, 1, 2000), "PNG"))


def _bomb(path: Path, rng: np.random.Generator) -> None:
    body = chunk(b"IDAT", zlib.compress(rng.bytes(9))) + chunk(b"IEND", b"")
    _write(path, png_header(30_000, 30_000) + body)


def _icon(path: Path, rng: np.random.Generator) -> None:
    _write(path, encoded(noise(rng, 16, 16, 3), "ICO"))


def _out_to(name: str) -> Callable[[Path, np.random.Generator], None]:
    def make(path: Path, rng: np.random.Generator) -> None:
        outside = path.parents[3] / "outside"
        outside.mkdir(exist_ok=True)
        target = outside / f"{path.stem}{name}"
        text = f"a secret {rng.integers(1 << 60)}".encode()
        _write(target, text if name == ".txt" else encoded(noise(rng, 12, 12, 3), "PNG"))
        path.symlink_to(target)

    return make


def _linked(target: str) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: path.symlink_to(target or path.name)


def _saved(format: str, **options: object) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: _write(path, encoded(noise(rng, 12, 12, 3), format, **options))


def _filled(text: bytes) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: _write(path, text and text + rng.bytes(8).hex().encode())


def _not_utf8(path: Path, rng: np.random.Generator) -> None:
    odd = os.fsencode(path.with_suffix("")) + b" caf\xe9" + os.fsencode(path.suffix)
    _write(Path(os.fsdecode(odd)), encoded(noise(rng, 12, 12, 3), "PNG"))


def _sixteen_bit(path: Path, rng: np.random.Generator) -> None:
    _write(path, encoded(rng.integers(0, 1 << 16, (12, 12), np.uint16), "PNG"))


def _cmyk(path: Path, rng: np.random.Generator) -> None:
    _write(path, encoded(noise(rng, 12, 12, 4), "JPEG", "CMYK"))


def _animated(path: Path, rng: np.random.Generator) -> None:
    frames = [Image.fromarray(noise(rng, 12, 12, 3)) for _ in range(3)]
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
