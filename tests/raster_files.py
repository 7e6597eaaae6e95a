"""Writers of TIFF and BMP files in every kind that the formats allow, byte by byte."""

import struct
import zlib

import numpy as np

TYPES = {"B": 1, "H": 3, "I": 4}


def packed(samples, bits, order):
    """(rows, samples) unsigned as bytes, each row padded to whole bytes."""
    if bits in (8, 16, 32, 64):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    planes = (samples[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    rows = planes.reshape(len(samples), -1).astype(np.uint8)
    return np.packbits(rows, axis=1).tobytes()


def reversed_bits(data):
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()


def lzw(data):
    """TIFF's LZW without a dictionary: every byte is a 9-bit code, until codes would get wider."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def packbits(data, row):
    """Literal runs alone, none across a row of bytes."""
    out = b""
    for start in range(0, len(data), row):
        line = data[start : start + row]
        for i in range(0, len(line), 128):
            out += bytes([len(line[i : i + 128]) - 1]) + line[i : i + 128]
    return out


COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773}


def tiff(
    samples,
    *,
    bits=8,
    photometric=2,
    order="<",
    planar=1,
    compression="none",
    extra=(),
    sample_format=None,
    colormap=None,
    rows_per_strip=None,
    tile=None,
    predictor=1,
    fill_order=1,
    tags=(),
):
    """A TIFF of `samples` (H, W, S): what is stored, not what it means."""
    height, width, count = samples.shape
    step = rows_per_strip or height
    parts = []
    for plane in [samples] if planar == 1 else np.split(samples, count, axis=2):
        if tile:
            high, wide = -height % tile, -width % tile
            plane = np.pad(plane, ((0, high), (0, wide), (0, 0)), mode="edge")
            pieces = [plane[y : y + tile, x : x + tile] for y in range(0, height, tile)
                      for x in range(0, width, tile)]  # fmt: skip
        else:
            pieces = [plane[y : y + step] for y in range(0, height, step)]
        for piece in pieces:
            if predictor == 2:
                first = piece[:, :1]
                rest = piece[:, 1:].astype(np.int64) - piece[:, :-1].astype(np.int64)
                piece = np.concatenate([first, rest % (1 << bits)], axis=1)
            rows = piece.reshape(len(piece), -1)
            data = packed(rows, bits, order)
            data = {
                "none": lambda d, r: d,
                "lzw": lambda d, r: lzw(d),
                "deflate": lambda d, r: zlib.compress(d),
                "packbits": packbits,
            }[compression](data, len(data) // len(piece))  # fmt: skip
            parts.append(data if fill_order == 1 else reversed_bits(data))
    entries = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [bits] * count),
        (259, "H", [COMPRESSIONS[compression]]), (262, "H", [photometric]),
        (277, "H", [count]), (284, "H", [planar]), *tags,
    ]  # fmt: skip
    if fill_order != 1:
        entries.append((266, "H", [fill_order]))
    if predictor != 1:
        entries.append((317, "H", [predictor]))
    if extra:
        entries.append((338, "H", list(extra)))
    if sample_format:
        entries.append((339, "H", [sample_format] * count))
    if colormap is not None:
        entries.append((320, "H", list(colormap)))
    offsets, at = [], 8
    for part in parts:
        offsets.append(at)
        at += len(part) + len(part) % 2
    body = b"".join(part + bytes(len(part) % 2) for part in parts)
    if tile:
        entries += [(322, "I", [tile]), (323, "I", [tile]), (324, "I", offsets)]
        entries.append((325, "I", [len(part) for part in parts]))
    else:
        entries += [(273, "I", offsets), (278, "I", [step])]
        entries.append((279, "I", [len(part) for part in parts]))
    entries.sort()
    after = at + 2 + 12 * len(entries) + 4
    directory, tail = struct.pack(f"{order}H", len(entries)), b""
    for tag, kind, values in entries:
        value = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(value) > 4:
            place = struct.pack(f"{order}I", after + len(tail))
            tail += value + bytes(len(value) % 2)
            value = place
        directory += struct.pack(f"{order}HHI", tag, TYPES[kind], len(values)) + value.ljust(
            4, b"\0"
        )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", at) + body + directory + bytes(4) + tail


def bmp(width, height, bits, rows, *, header=40, compression=0, masks=(), palette=b"", colors=0):
    """A BMP of `rows`, its packed lines from the top; a negative height stores them so."""
    lines = [row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows]
    data = b"".join(lines if height < 0 else lines[::-1])
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        sizes = (header, width, height, 1, bits, compression, len(data), 0, 0, colors, 0)
        head = struct.pack("<IiiHHIIiiII", *sizes)
        inside = struct.pack(f"<{len(masks)}I", *masks)
        head = (head + inside).ljust(header, b"\0")
    start = 14 + len(head) + len(palette)
    mark = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return mark + head + palette + data
