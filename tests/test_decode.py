"""The decode rule, pixel by pixel; and that broken bytes raise Undecodable and nothing else."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featurecache.images import decode as module
from featurecache.images import picture_checks
from featurecache.images.decode import Undecodable, decode
from featurecache.images.picture_checks import MAX_RATIO

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
WHITE = [255, 255, 255]


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *chunks):
    """A PNG written by hand: Pillow can't write 16-bit colour, nor a wrong header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_back(format, options):
    pixels = decode(encoded(Image.fromarray(RGB), format, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.owndata and pixels.flags.writeable
    assert np.array_equal(pixels, RGB)


# What a viewer shows for each EXIF orientation, in NumPy's words.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", TURNED)
def test_exif_orientation_is_applied_once(format, number):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(RGB), format, exif=oriented(number), **options)
    assert np.array_equal(decode(data), TURNED[number](RGB))


def test_exif_orientation_of_a_jpeg():
    image = Image.fromarray(RGB)
    plain = decode(encoded(image, "JPEG"))
    assert np.array_equal(decode(encoded(image, "JPEG", exif=oriented(6))), np.rot90(plain, -1))


@pytest.mark.parametrize("number", [0, 9, 77])
def test_an_orientation_that_is_none_is_one(number):
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), "PNG", exif=oriented(number))), RGB)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"MM"])
def test_corrupt_exif_counts_as_orientation_one(exif):
    image = Image.fromarray(RGB)
    assert np.array_equal(decode(encoded(image, "PNG", exif=exif)), RGB)
    assert np.array_equal(decode(encoded(image, "JPEG", exif=exif)), decode(encoded(image, "JPEG")))


def test_cmyk_jpeg_becomes_rgb():
    orange = Image.new("CMYK", (16, 16), (0, 128, 255, 0))
    pixels = decode(encoded(orange, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 127, 0)).max() <= 4


def test_cmyk_tiff_becomes_rgb_exactly():
    image = Image.frombytes("CMYK", (2, 1), bytes([0, 0, 0, 0, 255, 0, 0, 0]))
    assert decode(encoded(image, "TIFF")).tolist() == [[WHITE, [0, 255, 255]]]


def test_grey_is_replicated():
    assert decode(b"P5\n2 1\n255\n\x07\xc8").tolist() == [[[7, 7, 7], [200, 200, 200]]]
    grey = decode(encoded(Image.fromarray(RGB[:, :, 0]), "JPEG"))
    assert np.array_equal(grey[:, :, 0], grey[:, :, 2])


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_is_0_or_255(format):
    image = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
    assert decode(encoded(image, format)).tolist() == [[[0, 0, 0], WHITE, WHITE]]


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9])
    image.putdata([1, 0, 2])
    return image


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes_are_expanded(format):
    assert decode(encoded(palette_image(), format)).tolist() == [
        [[40, 50, 60], [1, 2, 3], [7, 8, 9]]
    ]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(format):
    assert decode(encoded(palette_image(), format, transparency=0)).tolist() == [
        [[40, 50, 60], WHITE, [7, 8, 9]]
    ]


def test_palette_with_an_alpha_per_entry():
    data = encoded(palette_image(), "PNG", transparency=bytes([0, 255, 51]))  # 51/255 = 0.2
    assert decode(data).tolist() == [[[40, 50, 60], WHITE, [205, 206, 206]]]


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_alpha_is_composited_over_white_with_exact_rounding(format, options):
    colour, alpha = np.meshgrid(np.arange(0, 256, 5), np.arange(1, 256, 6))
    rgba = np.stack([colour, 255 - colour, colour // 2, alpha], axis=2).astype(np.uint8)
    share = rgba[:, :, 3:].astype(float) / 255
    want = np.floor(rgba[:, :, :3] * share + 255 * (1 - share) + 0.5)
    data = encoded(Image.fromarray(rgba), format, exact=True, **options)
    assert np.array_equal(decode(data), want)


def test_grey_with_alpha():
    image = Image.frombytes("LA", (3, 1), bytes([0, 255, 0, 0, 100, 51]))
    assert decode(encoded(image, "PNG")).tolist() == [[[0, 0, 0], WHITE, [224, 224, 224]]]


def test_transparent_colours_are_white():
    rgb = png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert decode(rgb).tolist() == [[WHITE, [4, 5, 6]]]
    grey = png(2, 1, 8, 0, [b"\x01\x02"], chunk(b"tRNS", struct.pack(">H", 1)))
    assert decode(grey).tolist() == [[WHITE, [2, 2, 2]]]
    # All 16 bits must agree, though only the high byte is kept.
    deep = png(
        2, 1, 16, 0, [struct.pack(">2H", 0x1234, 0x1235)], chunk(b"tRNS", struct.pack(">H", 0x1234))
    )
    assert decode(deep).tolist() == [[WHITE, [0x12] * 3]]


def test_sixteen_bit_keeps_the_high_byte():
    values = np.array([[0x00FF, 0x0100, 0x80FF, 0xFFFF]], dtype=np.uint16)
    want = [[[0] * 3, [1] * 3, [0x80] * 3, WHITE]]
    assert decode(encoded(Image.fromarray(values), "PNG")).tolist() == want
    assert decode(encoded(Image.fromarray(values), "TIFF")).tolist() == want
    big_endian = Image.fromarray(values.astype(">u2"))
    assert big_endian.mode == "I;16B"
    assert decode(encoded(big_endian, "TIFF")).tolist() == want


def test_sixteen_bit_colour_png_keeps_the_high_byte():
    rgb = png(1, 1, 16, 2, [struct.pack(">3H", 0x12FF, 0x80FF, 0x00FF)])
    assert decode(rgb).tolist() == [[[0x12, 0x80, 0]]]
    rgba = png(1, 1, 16, 6, [struct.pack(">4H", 0x12FF, 0x80FF, 0x00FF, 0xFFFF)])
    assert decode(rgba).tolist() == [[[0x12, 0x80, 0]]]
    grey_alpha = png(1, 1, 16, 4, [struct.pack(">2H", 0x12FF, 0x00FF)])
    assert decode(grey_alpha).tolist() == [[WHITE]]


def test_deep_netpbm_is_scaled_to_255():
    assert decode(b"P5\n3 1\n65535\n\x00\x00\x80\x00\xff\xff").tolist() == [
        [[0] * 3, [128] * 3, WHITE]
    ]
    assert decode(b"P6\n1 1\n65535\n\x00\x00\x80\x00\xff\xff").tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_of_many(format):
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [Image.new("RGB", (16, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    pixels = decode(data)
    assert pixels.shape == (8, 16, 3)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 1  # MPO is JPEG


def test_icc_profiles_are_ignored():
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), "PNG", icc_profile=b"no icc")), RGB)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(dtype):
    with pytest.raises(Undecodable, match="32-bit"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"))


@pytest.mark.parametrize("width", [10_000, 20_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(width, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Undecodable, match="100,000,000 pixels"):
        decode(png(width, 10_001, 8, 2, []))


def test_at_the_limit_pillow_neither_warns_nor_refuses(monkeypatch):
    monkeypatch.setattr(picture_checks, "MAX_PIXELS", 35)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert decode(encoded(Image.fromarray(RGB), "PNG")).shape == (5, 7, 3)
    with pytest.raises(Undecodable, match="6x6"):
        decode(encoded(Image.new("RGB", (6, 6)), "PNG"))


def test_warnings_do_not_leak_from_threads():
    data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            pictures = list(pool.map(decode, [data] * 40))
        assert not seen
        warnings.warn("ours still show", stacklevel=1)
        assert len(seen) == 1
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.parametrize("data", [b"", b"not an image", b"<svg/>", b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_image(data):
    with pytest.raises(Undecodable) as caught:
        decode(data)
    assert " at 0x" not in str(caught.value)
    assert str(caught.value)


def test_other_formats_are_refused():
    with pytest.raises(Undecodable, match="JPEG, PNG, BMP, GIF, PPM, TIFF, WEBP"):
        decode(encoded(Image.fromarray(RGB), "TGA"))


SEEDS = {
    "jpeg": encoded(Image.fromarray(RGB), "JPEG", exif=oriented(6)),
    "progressive": encoded(Image.fromarray(RGB), "JPEG", progressive=True),
    "png": encoded(Image.fromarray(RGB), "PNG", exif=oriented(3)),
    "palette": encoded(palette_image(), "PNG", transparency=0),
    "gif": encoded(Image.fromarray(RGB), "GIF"),
    "tiff": encoded(Image.fromarray(RGB), "TIFF"),
    "webp": encoded(Image.fromarray(RGB), "WEBP", exif=oriented(8)),
    "bmp": encoded(Image.fromarray(RGB), "BMP"),
    "ppm": encoded(Image.fromarray(RGB), "PPM"),
    "plain ppm": b"P3\n2 1\n65535\n1 2 3 4 5 65535\n",
}


@pytest.mark.parametrize("name", sorted(SEEDS.keys() - {"palette", "plain ppm"}))
def test_truncated_files_are_refused(name):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    format = {"progressive": "JPEG"}.get(name, name.upper())
    data = encoded(noise, format, **({"progressive": True} if name == "progressive" else {}))
    decode(data)
    for cut in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(Undecodable):
            decode(data[:cut])


def mutated(data, flips, keep):
    """The bytes with these values at these positions, cut to a number of them if `keep` is one."""
    changed = bytearray(data)
    for position, value in flips:
        changed[position % len(changed)] = value
    return bytes(changed if keep is None else changed[: keep % (len(changed) + 1)])


@pytest.mark.slow
@settings(max_examples=400)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    keep=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_mutated_files_raise_undecodable_or_decode_twice_alike(name, flips, keep):
    data = mutated(SEEDS[name], flips, keep)
    try:
        pixels = decode(data)
    except Undecodable as error:
        assert str(error) and "\n" not in str(error) and " at 0x" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert np.array_equal(decode(data), pixels)


def by_pillow_alone(data):
    """What `decode` gives where simplejpeg takes nothing: the rule itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_turbo", lambda *_: None)
        patch.setattr(module, "_plain_jpeg_size", lambda data: None)
        return decode(data)


SCENE = (
    np.add.outer(np.arange(301) // 2, np.arange(403) // 3)[..., None] * np.array([1, 2, 3]) % 256
)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": 6}, {"subsampling": 0}])
@pytest.mark.parametrize(("side", "n"), [(8, 8), (38, 4), (75, 4), (76, 2), (150, 2), (151, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_reduced_jpeg_is_what_pillow_drafts(mode, side, n, options):
    options = options | ({"exif": oriented(6)} if "exif" in options else {})
    data = encoded(Image.fromarray((SCENE % 256).astype(np.uint8)).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (side, side))
        expected = np.asarray(image.convert("RGB"))
    if "exif" in options:
        expected = np.rot90(expected, 3)
    pixels = decode(data, side)
    assert pixels.shape[:2] == (-(-301 // n), -(-403 // n)) or "exif" in options
    assert np.array_equal(pixels, expected)
    assert n > 1 or np.array_equal(pixels, decode(data))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP"])
def test_only_a_jpeg_is_reduced(format):
    data = encoded(Image.fromarray((SCENE % 256).astype(np.uint8)), format)
    assert np.array_equal(decode(data, 8), decode(data))


def outcome(function, data):
    try:
        return function(data)
    except Undecodable as error:
        return str(error)


SMOOTH = np.add.outer(np.arange(50) * 3, np.arange(70) * 2)[..., None] + np.array([0, 40, 80])
PICTURES = {
    "noise": np.random.default_rng(2).integers(0, 256, (33, 47, 3), dtype=np.uint8),
    "smooth": (SMOOTH % 256).astype(np.uint8),
    "black": np.zeros((8, 8, 3), np.uint8),
    "dot": np.full((1, 1, 3), 200, np.uint8),
    "column": np.full((19, 1, 3), 90, np.uint8),
}
JPEGS = {
    f"{name} {mode} {list(options)}": encoded(
        Image.fromarray(pixels).convert(mode), "JPEG", **options
    )
    for name, pixels in PICTURES.items()
    for mode in ("RGB", "L", "CMYK", "YCbCr")
    for options in (
        {},
        {"quality": 1},
        {"quality": 100, "subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"optimize": True, "comment": b"said"},
        {"exif": oriented(6)},
        {"icc_profile": b"not a profile"},
        {"restart_marker_blocks": 1},
        {"xmp": b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/>'},
    )
    if not ("subsampling" in options and mode in ("L", "CMYK"))
} | {
    "kept as RGB": encoded(Image.fromarray(PICTURES["noise"]), "JPEG", keep_rgb=True),
    "a second picture": encoded(Image.fromarray(RGB), "JPEG") * 2,
    "bytes behind it": encoded(Image.fromarray(RGB), "JPEG") + b"tail",
    "no end": encoded(Image.fromarray(RGB), "JPEG")[:-2],
}  # fmt: skip


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_is_what_pillow_makes_of_it(name):
    found, wanted = outcome(decode, JPEGS[name]), outcome(by_pillow_alone, JPEGS[name])
    np.testing.assert_array_equal(found, wanted)
    if not isinstance(found, str):
        assert found.flags.c_contiguous and found.flags.writeable


def test_the_quick_way_is_taken_where_it_can_be(monkeypatch):
    monkeypatch.setattr(module.Image, "open", None)  # Pillow is not asked at all
    for options in ({}, {"progressive": True}, {"quality": 100}, {"comment": b"said"}):
        for mode in ("RGB", "L"):
            picture = Image.fromarray(PICTURES["noise"]).convert(mode)
            assert decode(encoded(picture, "JPEG", **options)).shape == (33, 47, 3)


@pytest.mark.slow
@settings(max_examples=400)
@given(
    name=st.sampled_from(sorted(JPEGS)),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    keep=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_a_mutated_jpeg_is_what_pillow_makes_of_it(name, flips, keep):
    data = mutated(JPEGS[name], flips, keep)
    np.testing.assert_array_equal(outcome(decode, data), outcome(by_pillow_alone, data))


@pytest.mark.parametrize("size", [(1, 49921), (65288, 8), (64, 65344), (21062, 65330)])
@pytest.mark.parametrize("keep", [None, 700, 300])
def test_a_frame_that_claims_too_much_is_refused_in_pillows_words(size, keep):
    data = bytearray(encoded(Image.fromarray(PICTURES["noise"]), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", *size)
    whole = bytes(data[:keep])
    said = outcome(decode, whole)
    assert isinstance(said, str) and said == outcome(by_pillow_alone, whole)


def test_a_header_that_was_seen_before_says_the_same_again():
    whole = encoded(Image.fromarray(PICTURES["noise"]), "JPEG")
    other = encoded(Image.fromarray(255 - PICTURES["noise"]), "JPEG")  # of the same size
    turned = encoded(Image.fromarray(PICTURES["noise"]), "JPEG", exif=oriented(6))
    cut = other[: len(other) // 2]
    for data in (whole, other, turned, other, cut, whole, other[:30], b"", other):
        np.testing.assert_array_equal(outcome(decode, data), outcome(by_pillow_alone, data))
        alone = outcome(decode, data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_plain_before", (b"\xff\xd8 none yet", None))
            np.testing.assert_array_equal(outcome(decode, data), alone)


def test_a_line_of_pixels_is_refused_before_it_is_decoded():
    assert decode(encoded(Image.new("RGB", (MAX_RATIO, 1)), "PNG")).shape == (1, MAX_RATIO, 3)
    with pytest.raises(Undecodable, match=r"1x257 is longer than 256 times its width"):
        decode(encoded(Image.new("RGB", (1, MAX_RATIO + 1)), "PNG"))


@pytest.mark.slow
def test_a_jpeg_of_many_scans_is_refused_before_they_are_decoded():
    whole = encoded(Image.new("L", (5000, 5000)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode(whole).shape == (5000, 5000, 3)
    with pytest.raises(Undecodable, match=r"1,00\d scans of 5000x5000 pixels take too long"):
        decode(whole[:-2] + last * 1000 + whole[-2:])
    small = encoded(Image.new("L", (50, 50)), "JPEG", progressive=True)
    last = small[small.rindex(b"\xff\xda") : -2]
    assert decode(small[:-2] + last * 1000 + small[-2:]).shape == (50, 50, 3)


def test_what_pillow_logs_is_not_printed():
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, 65535), (279, 4, 1, 8)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 16) + bytes(8)
    code = (
        "import sys; from featurecache.images.decode import decode, Undecodable\n"
        "try: decode(sys.stdin.buffer.read())\nexcept Undecodable: pass"
    )
    data = head + struct.pack("<H", len(tags)) + entries + bytes(4)
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stderr == b""
