"""Name the kind of an image file from its first bytes and its TIFF tags, for messages about files that are not read."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping

_SIGNATURES = {
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0\x10\0\0\0CR": "a raw photograph",
    b"v/1\x01": "OpenEXR",
    b"P5\n": "PGM",
    b"P6\n": "PPM",
    b"\0\0\x01\0": "an icon",
    b"%!PS": "EPS",
    b"data:image/": "text of a data URL",
    b"8BPS": "a Photoshop document",
    b"%PDF": "a PDF document",
    b"PK": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"ZISRAWFILE": "CZI, a slide of a Zeiss microscope",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Values of the TIFF tags Compression, SampleFormat and PhotometricInterpretation. Sources: TIFF 6.0, libtiff's tiff.h.
_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "Deflate", 22610: "JPEG XR",
    32773: "PackBits", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000",
    34887: "LERC", 34925: "LZMA", 34934: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
    52546: "JPEG XL",
}  # fmt: skip
_USUAL_COMPRESSIONS = (1, 5, 8, 32773, 32946)
_SAMPLE_FORMATS = {2: "signed integer", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
_COLOURS = {5: "CMYK", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}
_COMPRESSION, _PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 259, 262, 258, 339


def name_image_kind(content: bytes) -> str:
    """Return what the bytes of a file are, such as `WebP` or `TIFF with JPEG 2000 compression`; empty if unknown."""
    if not content.strip(b"\0"):
        return "only zero bytes" if content else "an empty file"
    for start, name in _SIGNATURES.items():
        if content.startswith(start):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    if content[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys(_HEIC_BRANDS, "HEIC")}.get(
            content[8:12], "a video or HEIF file"
        )
    if content[128:132] == b"DICM":
        return "DICOM"
    if re.match(rb"\s*<(!doctype|html|head|body|\?xml)", content[:400].removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
        return "SVG" if b"<svg" in content[:1000] else "a web page"
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tags = _read_first_directory(content)
        return _name_tiff_kind(tags) if tags else "a TIFF that is cut off or damaged"
    return ""


def _read_first_directory(content: bytes) -> Mapping[int, object]:
    """Return the tags of the first directory of a TIFF; empty if they cannot be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = ImageFileDirectory_v2(content[: 16 if b"+" in content[:4] else 8])
            stream = io.BytesIO(content)
            stream.seek(tags.next)
            tags.load(stream)
            return {number: tags[number] for number in tags}
    except Exception:  # Pillow raises many types on damaged files
        return {}


def _name_tiff_kind(tags: Mapping[int, object]) -> str:
    """Return what is unusual about a TIFF with these tags; empty if nothing is."""
    compression, colours = _first(tags.get(_COMPRESSION)), _first(tags.get(_PHOTOMETRIC))
    sample_format, bits = _first(tags.get(_SAMPLE_FORMAT)), _first(tags.get(_BITS))
    parts = []
    if compression and compression not in _USUAL_COMPRESSIONS:
        parts.append(f"{_COMPRESSIONS.get(compression, f'unknown ({compression})')} compression")
    if sample_format in _SAMPLE_FORMATS:
        parts.append(f"{_SAMPLE_FORMATS[sample_format]} samples of {bits} bits")
    elif bits not in (0, 8):
        parts.append(f"samples of {bits} bits")
    if colours in _COLOURS:
        parts.append(f"{_COLOURS[colours]} colours")
    return f"TIFF with {' and '.join(parts)}" if parts else ""


def _first(value: object) -> int:
    """Return the first number of a tag; 0 without one."""
    one = value[0] if isinstance(value, tuple) and value else value
    return int(one) if isinstance(one, int) else 0
