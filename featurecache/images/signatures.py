"""The kind of a file by its first bytes, and pictures that datasets skip because of their names."""

from __future__ import annotations

import re

# Pictures known only by name: they have no signature, or share it with other files.
_UNREAD_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dcm", ".dib", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic",
    ".heics", ".heif", ".hif", ".ico", ".j2k", ".jfi", ".jif", ".jng", ".jp2", ".jpf", ".jpx",
    ".jxl", ".jxr", ".mpo", ".nef", ".orf", ".pam", ".pcx", ".pef", ".pfm", ".psd", ".qoi", ".raf",
    ".ras", ".raw", ".rw2", ".sgi", ".srw", ".svg", ".svgz", ".tga", ".wbmp", ".wmf", ".xbm",
    ".xcf", ".xpm",
)  # fmt: skip
HEAD = 512  # bytes of a file that `kind_of` needs

DECODED = {"JPEG", "PNG", "BMP", "GIF", "Netpbm", "TIFF", "WebP", "AVIF"}
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"8BPS", "Photoshop picture"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc", "JPEG XR"),
    (b"IIRO", "Olympus raw photo"),
    (b"IIU\0", "Panasonic raw photo"),
    (b"FUJIFILMCCD-RAW", "Fujifilm raw photo"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR picture"),
    (b"#?RADIANCE", "Radiance HDR picture"),
    (b"gimp xcf", "GIMP picture"),
    (b"\0\0\1\0", "Windows icon"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
)
# Not pictures, but often found under the names of pictures.
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "Git LFS pointer; run `git lfs pull`"),
    (b"/annex/objects/", "git-annex pointer; run `git annex get`"),
    (b"%PDF", "PDF document"),
    (b"%!PS", "PostScript document"),
    (b"PK\3\4", "ZIP archive"),
    (b"\x1f\x8b", "gzip file"),
    (b"BZh", "bzip2 file"),
    (b"\xfd7zXZ", "xz file"),
    (b"\x28\xb5\x2f\xfd", "Zstandard file"),
    (b"7z\xbc\xaf", "7z archive"),
    (b"Rar!", "RAR archive"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x89HDF", "HDF5 file"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (b"\x7fELF", "program"),
    (b"SIMPLE  =", "FITS file"),
)
_BRANDS = {  # brands in files that start with an ISO box `ftyp`
    "HEIC": "heic heix heim heis hevc hevx hevm hevs mif1 msf1 mif2 miaf",
    "AVIF": "avif avis",
    "Canon raw photo": "crx",
}


def kind_of(data: bytes) -> str:
    """The kind of a file by its first HEAD bytes, such as "HEIC" or "Git LFS pointer"; "" if they
    don't tell."""
    for signature, name in (*_SIGNATURES, *_OTHERS):
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF":
        return "WebP" if data[8:12] == b"WEBP" else "RIFF file"
    if data[4:8] == b"ftyp":
        return _kind_of_box(data)
    if data[:2] == b"BM" and len(data) >= 18 and data[15:18] == b"\0\0\0":
        return "BMP"
    if re.match(rb"P[1-6][\s#]", data):
        return "Netpbm"
    if re.match(rb"P7\s|P[Ff]\s", data):
        return "PAM" if data[1:2] == b"7" else "PFM"
    if data[128:132] == b"DICM":
        return "DICOM file"
    return _kind_of_text(data)


def is_unread_picture(name: str, head: bytes) -> bool:
    """Whether a file that is not a sample, because of its name, looks like a picture."""
    kind = kind_of(head)
    return (
        kind in DECODED
        or kind in {name for _, name in _SIGNATURES}
        or kind in {*_BRANDS, "PAM", "PFM", "DICOM file", "SVG"}
        or name.lower().endswith(_UNREAD_SUFFIXES)
    )


def _kind_of_box(data: bytes) -> str:
    length = min(int.from_bytes(data[:4], "big"), HEAD)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, length - 3, 4))]
    # A file of a general brand, such as mif1, lists its codec among the compatible brands.
    for name in ("AVIF", "HEIC", "Canon raw photo"):
        if any(brand.decode("latin-1").strip() in _BRANDS[name].split() for brand in brands):
            return name
    return "MP4 or QuickTime video"


def _kind_of_text(data: bytes) -> str:
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"<!doctype html|<html|<head|<body|<!--.*<html", start, re.DOTALL):
        return "HTML page"
    if start.startswith((b"<svg", b"<!doctype svg")) or (
        start[:5] == b"<?xml" and b"<svg" in start
    ):
        return "SVG"
    if start.startswith(b"<?xml"):
        return "XML document"
    if re.match(rb'\{\s*"|\[\s*\{', start):
        return "JSON document"
    return ""
