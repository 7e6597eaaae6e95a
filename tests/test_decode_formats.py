"""Every kind of file that a format allows, against what it says and against other decoders."""

import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from raster_files import bmp, packed, tiff

from featurecache.images.decode import FORMATS, Undecodable, decode

HEIGHT, WIDTH = 11, 13
RANDOM = np.random.default_rng(7)


def over_white(colour, alpha, most):
    share = alpha.astype(float) / most
    return np.floor(colour * share + 255 * (1 - share) + 0.5)


def grey(values):
    return np.repeat(values, 3, axis=2)


def high(samples, bits):
    """Samples of some bits as 8: scaled up, or the high byte."""
    return samples * 255 // ((1 << bits) - 1) if bits < 8 else samples >> (bits - 8)


def outcome(data):
    try:
        return decode(data)
    except Undecodable as error:
        return str(error)


# ---- TIFF ----

ENCODINGS = [
    dict(order=order, planar=planar, compression=compression, predictor=predictor, **layout)
    for order, planar, compression, predictor, layout in itertools.product(
        "<>", (1, 2), ("none", "lzw", "deflate", "packbits"), (1, 2), ({}, {"tile": 16})
    )
    if predictor == 1 or compression in ("lzw", "deflate")
]
# (photometric, bands of colour), bits, extra samples
KINDS = [
    *(((photometric, 1), bits, ()) for photometric in (0, 1) for bits in (1, 2, 4, 8, 12, 16)),
    *(((3, 1), bits, ()) for bits in (1, 2, 4, 8)),
    ((3, 1), 8, (0,)),
    *(((1, 1), 8, extra) for extra in ((0,), (1,), (2,), (0, 0))),
    *(
        ((2, 3), bits, extra)
        for bits in (8, 16)
        for extra in ((), (0,), (1,), (2,), (0, 0), (2, 0))
    ),
    *(((5, 4), bits, extra) for bits in (8, 16) for extra in ((), (0,))),
    *(((2, 3), bits, ()) for bits in (1, 4, 12)),
]


def meaning(samples, photometric, bits, extra, colormap):
    """The picture that the stored samples stand for."""
    if photometric == 3:
        return (np.array(colormap).reshape(3, -1).T >> 8)[samples[:, :, 0]]
    if photometric == 5:
        inks = np.ascontiguousarray(high(samples[:, :, :4], bits).astype(np.uint8))
        return np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    if photometric == 2:
        colour, count = high(samples[:, :, :3], bits), 3
    else:
        first = samples[:, :, :1]
        value = first if photometric == 1 else (1 << bits) - 1 - first
        colour, count = grey(high(value, bits)), 1
    if extra[:1] == (2,):
        return over_white(colour, high(samples[:, :, count : count + 1], bits), 255)
    return colour  # what is premultiplied is stored here with full alpha


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_tiff_is_what_its_tags_say_or_refused_by_name(kind):
    (photometric, count), bits, extra = kind
    pictures = []
    for encoding in ENCODINGS:
        bands = count + len(extra)
        if (encoding["planar"] == 2 and bands == 1) or (encoding["predictor"] == 2 and bits < 8):
            continue
        if encoding["predictor"] == 2 and bits == 12:
            continue
        samples = RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH, bands))
        if extra == (1,):
            samples[:, :, -1] = (1 << bits) - 1
        colormap = RANDOM.integers(256, 65536, 3 << bits) if photometric == 3 else None
        layout = {} if "tile" in encoding else {"rows_per_strip": 4}
        data = tiff(
            samples, bits=bits, photometric=photometric, extra=extra, colormap=colormap,
            **encoding, **layout,
        )  # fmt: skip
        if encoding["compression"] in ("none", "deflate") and bits in (8, 16) and bands != 2:
            stored = tifffile.TiffFile(io.BytesIO(data)).pages[0].asarray()
            stored = np.moveaxis(stored, 0, -1) if encoding["planar"] == 2 else stored
            assert np.array_equal(stored.reshape(samples.shape), samples)
        found = outcome(data)
        if isinstance(found, str):
            assert "TIFF" in found, (encoding, found)
            continue
        wanted = meaning(samples, photometric, bits, extra, colormap)
        assert np.array_equal(found, wanted), encoding
        pictures.append((encoding["order"], encoding["planar"], encoding["compression"]))
    usual = (
        bits in (8, 16) and photometric in (1, 2) and extra in ((), (2,)) and count + len(extra) > 2
    )
    if usual:  # these are not refused, whatever the order, planes and compression
        assert set(pictures) == set(
            itertools.product("<>", (1, 2), ("none", "lzw", "deflate", "packbits"))
        )


def test_premultiplied_alpha_of_a_tiff():
    for bits, order in itertools.product((8, 16), "<>"):
        most = (1 << bits) - 1
        alpha = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH, 1))
        colour = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH, 3)) * alpha // most
        wanted = (colour + most - alpha) * 255 / most
        stored = np.concatenate([colour, alpha], axis=2)
        found = decode(tiff(stored, bits=bits, order=order, extra=(1,)))
        assert np.abs(found - wanted).max() <= 3  # Pillow divides by the alpha in 8 bits


@pytest.mark.parametrize("extra", [(), (0,), (2,)])
def test_a_fourth_band_that_is_not_alpha_leaves_the_colours(extra):
    samples = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4))
    samples[:, :, 3] = 0
    assert np.array_equal(decode(tiff(samples, extra=extra)), samples[:, :, :3])
    if extra != (2,):
        samples[:, :, 3] = RANDOM.integers(0, 256, (HEIGHT, WIDTH))
        assert np.array_equal(decode(tiff(samples, extra=extra)), samples[:, :, :3])


def test_a_colormap_of_8_bits():
    index, colormap = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 1)), RANDOM.integers(0, 256, 768)
    data = tiff(index, photometric=3, colormap=colormap)
    assert np.array_equal(decode(data), colormap.reshape(3, 256).T[index[:, :, 0]])


@pytest.mark.parametrize("planar", [1, 2])
def test_reversed_bits_in_a_tiff(planar):
    samples = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))
    found = outcome(tiff(samples, planar=planar, fill_order=2))
    assert "planes" in found if planar == 2 else np.array_equal(found, samples)


def test_a_turned_tiff_with_planes():
    samples = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3))
    data = tiff(samples, bits=16, planar=2, tags=[(274, "H", [6])])
    assert np.array_equal(decode(data), np.rot90(samples >> 8, -1))


@pytest.mark.parametrize(
    ("bands", "options", "name"),
    [
        (5, {}, "5-band uint8 TIFF"),
        (7, {"extra": (0, 0, 0, 0)}, "7-band uint8 TIFF"),
        (4, {"photometric": 1, "extra": (0, 0, 0)}, "4-band uint8 TIFF"),
        (1, {"photometric": 1, "sample_format": 2}, "int8 TIFF"),
        (1, {"photometric": 1, "sample_format": 2, "bits": 16}, "int16 TIFF"),
        (1, {"photometric": 1, "sample_format": 3, "bits": 16}, "float16 TIFF"),
        (1, {"photometric": 1, "sample_format": 3, "bits": 64}, "float64 TIFF"),
        (3, {"sample_format": 2, "bits": 16}, "3-band int16 TIFF"),
        (3, {"sample_format": 3, "bits": 32}, "3-band float32 TIFF"),
        (1, {"photometric": 32803}, "colour filter array"),
        (3, {"photometric": 6, "tags": [(530, "H", [2, 2])], "rows_per_strip": 4}, ""),
    ],
)
def test_a_tiff_that_is_not_supported_is_named(bands, options, name):
    samples = RANDOM.integers(0, 200, (HEIGHT, WIDTH, bands))
    for order in "<>":
        found = outcome(tiff(samples, order=order, **options))
        assert name in found if name else not isinstance(found, str)


def test_subsampled_colour_without_compression_is_refused():
    half = RANDOM.integers(0, 256, (8, 12, 1))  # as much as 8x8 pixels need, subsampled 2x2
    data = tiff(half, photometric=6, tags=[(530, "H", [2, 2])])
    swapped = data.replace(struct.pack("<HHII", 256, 4, 1, 12), struct.pack("<HHII", 256, 4, 1, 8))
    swapped = swapped.replace(
        struct.pack("<HHI", 277, 3, 1) + b"\1", struct.pack("<HHI", 277, 3, 1) + b"\3"
    )
    assert "subsampled" in outcome(swapped)


def test_the_thumbnail_in_front_of_a_raw_photo_is_not_taken_for_it():
    samples = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))
    assert "raw photo" in outcome(tiff(samples, tags=[(254, "I", [1]), (330, "I", [8])]))
    for tags in ([(254, "I", [0]), (330, "I", [8])], [(254, "I", [1])]):
        assert np.array_equal(decode(tiff(samples, tags=tags)), samples)


@pytest.mark.parametrize("tag", [(254, "I", [1]), (254, "I", [3]), (255, "H", [2])])
def test_the_thumbnail_in_front_of_a_picture_is_not_taken_for_it(tag):
    small, large = (RANDOM.integers(0, 256, (size, size, 3), np.uint8) for size in (4, 16))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(small, photometric="rgb", subfiletype=tag[2][0] if tag[0] == 254 else 0,
                     extratags=[(255, 3, 1, 2)] if tag[0] == 255 else [])  # fmt: skip
        writer.write(large, photometric="rgb")
    assert "first picture is a thumbnail or a mask" in outcome(file.getvalue())


# ---- BMP ----

MASKS = [
    (0xFF0000, 0xFF00, 0xFF, 0),
    (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    (0xFF, 0xFF00, 0xFF0000, 0),
    (0x3FF00000, 0xFFC00, 0x3FF, 0),
]


def lines(rows, bits):
    return [packed(row[None], bits, "<") for row in rows]


@pytest.mark.parametrize("header", [12, 40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("height", [HEIGHT, -HEIGHT])
def test_a_bmp_is_what_its_header_says(header, height):
    if header == 12 and height < 0:
        return  # its height has no sign
    for bits in (1, 4, 8):
        index, palette = (
            RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH)),
            RANDOM.integers(0, 256, (1 << bits, 3)),
        )
        entries = b"".join(bytes(c[::-1].tolist()) + bytes(header != 12) for c in palette)
        data = bmp(WIDTH, height, bits, lines(index, bits), header=header, palette=entries)
        assert np.array_equal(decode(data), palette[index])
    colour = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))
    backwards = colour[:, :, ::-1]
    data = bmp(WIDTH, height, 24, lines(backwards.reshape(HEIGHT, -1), 8), header=header)
    assert np.array_equal(decode(data), colour)
    unused = np.concatenate([backwards, RANDOM.integers(0, 256, (HEIGHT, WIDTH, 1))], axis=2)
    data = bmp(WIDTH, height, 32, lines(unused.reshape(HEIGHT, -1), 8), header=header)
    assert np.array_equal(decode(data), colour)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("alpha", [0, 77, 255])
def test_a_bmp_with_masks(masks, alpha):
    colour = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))
    pixels = np.zeros((HEIGHT, WIDTH), np.int64)
    for channel, mask in zip([*np.moveaxis(colour, 2, 0), alpha], masks, strict=True):
        if mask:
            shift = (mask & -mask).bit_length() - 1
            pixels |= (np.asarray(channel) << (mask.bit_count() - 8)) << shift
    data = bmp(WIDTH, HEIGHT, 32, lines(pixels, 32), header=124, compression=3, masks=masks)
    wanted = over_white(colour, np.array(alpha), 255) if masks[3] and alpha else colour
    found = outcome(data)
    assert (
        found == "Unsupported BMP bitfields layout"
        if isinstance(found, str)
        else np.array_equal(found, wanted)
    )
    if masks[0] == 0xFF0000:
        assert not isinstance(found, str)


# ---- PNG, Netpbm ----


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, colour, *chunks):
    height, width = samples.shape[:2]
    rows = [packed(row.reshape(1, -1), bits, ">") for row in samples]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "bands", "depths"),
    [
        (0, 1, (1, 2, 4, 8, 16)),
        (2, 3, (8, 16)),
        (3, 1, (1, 2, 4, 8)),
        (4, 2, (8, 16)),
        (6, 4, (8, 16)),
    ],
)
def test_a_png_of_every_kind(kind, bands, depths):
    for bits in depths:
        samples = RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH, bands))
        colour = high(samples, bits)
        colour = colour[:, :, :3] if bands > 2 else grey(colour[:, :, :1])
        chunks = []
        if kind == 3:
            palette = RANDOM.integers(0, 256, (1 << bits, 3))
            chunks.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
            colour = palette[samples[:, :, 0]]
        if kind in (4, 6):
            colour = over_white(colour, high(samples[:, :, -1:], bits), 255)
        data = png(samples, bits, kind, *chunks)
        assert np.array_equal(decode(data), colour)
        if kind in (0, 2, 3) and bits == 8:
            assert np.array_equal(by_opencv(data), colour)


def test_a_png_with_much_text_or_a_large_profile_has_its_pixels():
    samples = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))
    large = zlib.compress(bytes(2 << 20))
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/>'
    turned = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    for extra in (
        chunk(b"zTXt", b"Comment\0\0" + large),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + large),
        chunk(b"iCCP", b"profile\0\0" + large),
    ):
        assert np.array_equal(decode(png(samples, 8, 2, extra)), samples)
        both = decode(png(samples, 8, 2, extra, turned))
        assert np.array_equal(both, samples[::-1, ::-1])
        with pytest.raises(Undecodable):
            decode(png(samples, 8, 2, extra)[:-60])
    many = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20))) * 65
    assert np.array_equal(decode(png(samples, 8, 2, many)), samples)


@pytest.mark.parametrize("most", [1, 15, 255, 1023, 4095, 65535])
def test_netpbm_of_every_depth(most):
    samples = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH, 3))
    wanted = (samples * 510 + most) // (2 * most)
    stored, size = samples.astype(">u2" if most > 255 else "u1"), f"{WIDTH} {HEIGHT}\n{most}\n"
    digits = " ".join(map(str, samples.ravel().tolist()))
    assert np.array_equal(decode(f"P6\n{size}".encode() + stored.tobytes()), wanted)
    assert np.array_equal(decode(f"P3\n{size}{digits}".encode()), wanted)
    first = stored[:, :, 0].tobytes()
    assert np.array_equal(decode(f"P5\n{size}".encode() + first), grey(wanted[:, :, :1]))


# ---- what other decoders give ----


def by_opencv(data):
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return found[:, :, ::-1]


SMOOTH = np.add.outer(np.arange(37) * 3, np.arange(53) * 2)[..., None] + np.array([0, 40, 80])
SMOOTH = Image.fromarray((SMOOTH % 256).astype(np.uint8))


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "mode", "options", "most"),
    [
        *(("JPEG", mode, options, 1) for mode in ("L", "RGB", "CMYK")
          for options in ({}, {"progressive": True}, {"quality": 100})),
        *(("JPEG", "RGB", {"subsampling": kind}, 0) for kind in (0, 1, 2)),
        *(("WEBP", mode, options, 0) for mode in ("L", "RGB")
          for options in ({"lossless": True}, {"quality": 50})),
        *(("GIF", "P", {"interlace": kind}, 0) for kind in (0, 1)),
    ],
)  # fmt: skip
def test_opencv_gives_the_same(format, mode, options, most):
    data = encoded(SMOOTH.convert(mode), format, **options)
    assert np.abs(decode(data).astype(int) - by_opencv(data)).max() <= most


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow was built without AVIF")
def test_avif():
    exact = {"quality": 100, "subsampling": "4:4:4"}
    found = decode(encoded(SMOOTH, "AVIF", **exact))
    assert np.abs(found.astype(int) - np.asarray(SMOOTH)).max() <= 4
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode(encoded(SMOOTH, "AVIF", exif=exif, **exact)), np.rot90(found, -1))
    clear = SMOOTH.copy()
    clear.putalpha(0)
    assert (decode(encoded(clear, "AVIF", **exact)) == 255).all()
    with pytest.raises(Undecodable):
        decode(encoded(SMOOTH, "AVIF", **exact)[:-50])


# ---- what is no picture ----


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(100), "AVIF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"),
        (b"\xef\xbb\xbf  <html>", "HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b'<?xml version="1.0"?>\n<svg/>', "SVG"),
        (b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code></Error>', "XML document"),
        (b'{"error": "not found"}', "JSON document"),
        (b"%PDF-1.7", "PDF document"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "JPEG 2000"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"8BPS\0\1" + bytes(20), "Photoshop"),
        (b"PK\3\4" + bytes(20), "ZIP archive"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\n\1\2\3", "PAM"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "broken PNG file"),
        (encoded(SMOOTH, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12-bit"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data, name):
    found = outcome(data)
    assert isinstance(found, str) and name in found


def test_scans_are_counted_up_to_the_end_of_a_jpeg():
    whole = encoded(Image.new("L", (3000, 3000)), "JPEG", progressive=True)
    assert decode(whole + b"\xff\xda" * 1_000_000).shape == (3000, 3000, 3)
    marked = whole[:2] + b"\xff\xe5\x40\x02" + b"\xff\xd9\xff\xda" * 4096 + whole[2:]
    assert decode(marked).shape == (3000, 3000, 3)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    for hidden in (whole[:-2] + b"\0\1\xff\0" + last * 400, marked[:-2] + last * 400):
        with pytest.raises(Undecodable, match=r"scans of 3000x3000 pixels take too long"):
            decode(hidden + b"\xff\xd9")
