"""Test images as microscopes and programs write them: read with their true values, or refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from claris_kaggle.core.errors import PatchError
from claris_kaggle.data.patches import read_patch
from claris_kaggle.serving.images import _read_image, decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
Tag = tuple[int, int, list[int]]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    if "append_images" in options:  # Pillow keeps settings of a JPEG in the image, and fails to save it as TIFF then
        options["append_images"] = [one.copy() for one in options["append_images"]]
    image.copy().save(stream, format=kind, **options)
    return stream.getvalue()


def tiff(
    values: NDArray[np.generic],
    *,
    compression: int = 1,
    sample_format: int = 1,
    colours: int = 2,
    more: tuple[Tag, ...] = (),
) -> bytes:
    """A TIFF of one strip, by hand: sample formats that Pillow does not write."""
    height, width, samples = values.shape
    raw = values.tobytes()
    tags = sorted(
        [
            (256, 4, [width]), (257, 4, [height]), (258, 3, [values.itemsize * 8] * samples), (259, 3, [compression]),
            (262, 3, [colours]), (273, 4, [8]), (277, 3, [samples]), (278, 4, [height]), (279, 4, [len(raw)]),
            (339, 3, [sample_format] * samples), *more,
        ]
    )  # fmt: skip
    place, directory, beyond = 8 + len(raw), struct.pack("<H", len(tags)), b""
    for number, kind, numbers in tags:
        value = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(value) > 4:
            where = struct.pack("<I", place + 2 + 12 * len(tags) + 4 + len(beyond))
            beyond, value = beyond + value, where
        directory += struct.pack("<HHI", number, kind, len(numbers)) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", place) + raw + directory + bytes(4) + beyond


def png16(values: NDArray[np.uint16], *, used: int = 0) -> bytes:
    """A PNG of 16 bits per channel, with the chunk that states the used bits."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    stated = chunk(b"sBIT", bytes([used] * 3)) if used else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + stated + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


WIDE = PIXELS.astype("<u2")


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_empty_upper_bits_are_not_judged_as_black(bits: int) -> None:
    values = WIDE << (bits - 8)
    for content in (tiff(values), png16(values)):
        with pytest.raises(
            PatchError, match=rf"16 bits per channel, and the highest value is [\d,]+ \({bits} bits used"
        ):
            decode_image(content, "scan")
    stated = (tiff(values, more=((281, 3, [(1 << bits) - 1] * 3),)), png16(values, used=bits))
    for content in stated:
        assert np.array_equal(decode_image(content, "scan"), PIXELS)


def test_sixteen_used_bits_are_reduced_to_the_upper_eight() -> None:
    for content in (tiff(WIDE * 257), png16(WIDE * 257), tiff(WIDE * 256, more=((281, 3, [65535] * 3),))):
        assert np.array_equal(decode_image(content, "scan"), PIXELS)


def test_a_few_bright_pixels_do_not_hide_empty_upper_bits() -> None:
    hot, bar = WIDE << 4, WIDE << 4
    hot[0, 0], bar[90:92] = 65535, 65535
    for values in (hot, bar):
        for content in (tiff(values), png16(values)):
            with pytest.raises(PatchError, match=r"90% of the values are at most [\d,]+ \(12 bits used\)"):
                decode_image(content, "scan")
    with pytest.raises(PatchError, match=r"the highest value is 32,\d+ \(15 bits used\)"):
        decode_image(tiff(WIDE << 7), "scan")
    opaque = np.dstack([PIXELS, np.full((96, 96), 255, np.uint8)]).astype("<u2") << 4
    with pytest.raises(PatchError, match=r"12 bits used"):
        decode_image(tiff(opaque, more=((338, 3, [2]),)), "scan")


def test_black_of_sixteen_bits_is_not_called_benign() -> None:
    with pytest.raises(PatchError, match=r"the highest value is 0 \(0 bits used\)"):
        decode_image(tiff(WIDE * 0), "scan")


def with_opacity(opacity: NDArray[np.uint8]) -> bytes:
    return saved(Image.fromarray(np.dstack([PIXELS, opacity])), "PNG")


def test_transparent_images_are_not_judged_as_white() -> None:
    nothing = np.zeros((96, 96), np.uint8)
    rim = np.full((96, 96), 255, np.uint8)
    rim[32:64, 32:64] = 0
    palette = IMAGE.quantize(1)
    for content, words in (
        (with_opacity(nothing), "100% transparent; expected opaque pixels"),
        (with_opacity(nothing + 50), "80% transparent"),
        (with_opacity(rim), "100% transparent in the centre"),
        (saved(palette, "PNG", transparency=0), "100% transparent"),
        (tiff(np.dstack([PIXELS, nothing]), more=((338, 3, [2]),)), "100% transparent"),
    ):
        with pytest.raises(PatchError, match=words):
            decode_image(content, "scan")
    assert np.array_equal(decode_image(with_opacity(nothing + 255), "scan"), PIXELS)


def damaged(content: bytes) -> bytes:
    """The file with flipped bytes in its pixels."""
    changed = bytearray(content)
    for place in range(500, len(changed) - 600, 997):
        changed[place] ^= 0x5A
    return bytes(changed)


# name: (file, words of the message)
NAMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG 2000": (lambda: saved(IMAGE, "JPEG2000"), r"not a readable image \(JPEG 2000\).*8 bits per channel"),
    "WebP": (lambda: saved(IMAGE, "WEBP"), r"not a readable image \(WebP\)"),
    "GIF": (lambda: saved(IMAGE, "GIF"), r"\(GIF\)"),
    "BMP": (lambda: saved(IMAGE, "BMP"), r"\(BMP\)"),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(100), r"\(HEIC\)"),
    "HEIC of a phone": (lambda: b"\0\0\0\x18ftypheix" + bytes(100), r"\(HEIC\)"),
    "a raw photograph": (lambda: b"II*\0\x10\0\0\0CR" + bytes(100), "a raw photograph"),
    "a TIFF without its end": (lambda: b"II*\0" + bytes(300), "cut off or damaged.*Download or copy it again"),
    "DICOM": (lambda: bytes(1) + bytes(127) + b"DICM" + bytes(50), r"\(DICOM\)"),
    "web page": (lambda: b"<!doctype html><html></html>", r"\(a web page\)"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", r"\(a Git LFS pointer"),
    "empty": (lambda: b"", r"\(an empty file\)"),
    "zeros": (lambda: bytes(30000), r"\(only zero bytes\)"),
    "cut TIFF": (lambda: saved(IMAGE, "TIFF", compression="tiff_lzw")[:5000], "cut off or damaged"),
    "JPEG 2000 in TIFF": (lambda: tiff(PIXELS, compression=33005), "TIFF with JPEG 2000 compression"),
    "WebP in TIFF": (lambda: tiff(PIXELS, compression=50001), "TIFF with WebP compression"),
    "JPEG XL in TIFF": (lambda: tiff(PIXELS, compression=50002), "TIFF with JPEG XL compression"),
    "float32": (
        lambda: tiff((PIXELS / 255).astype("<f4"), sample_format=3), "TIFF with floating-point samples of 32 bits"
    ),
    "float64": (lambda: tiff((PIXELS / 255).astype("<f8"), sample_format=3), "floating-point samples of 64 bits"),
    "int8": (lambda: tiff(PIXELS.astype("i1"), sample_format=2), "TIFF with signed integer samples of 8 bits"),
    "int16": (lambda: tiff(PIXELS.astype("<i2"), sample_format=2), "signed integer samples of 16 bits"),
    "uint32": (lambda: tiff(PIXELS.astype("<u4")), "TIFF with samples of 32 bits"),
    "Lab": (lambda: tiff(PIXELS, colours=8), "colours of mode LAB"),
    "CMYK": (lambda: saved(IMAGE.convert("CMYK"), "JPEG"), "colours of mode CMYK"),
    "one bit": (lambda: saved(IMAGE.convert("1"), "TIFF"), "black and white of mode 1"),
    "pages": (lambda: saved(IMAGE, "TIFF", save_all=True, append_images=[IMAGE]), "2 images in one file"),
    "damaged LZW": (lambda: damaged(saved(IMAGE, "TIFF", compression="tiff_lzw")), "damaged or cut off"),
    "damaged Deflate": (lambda: damaged(saved(IMAGE, "TIFF", compression="tiff_adobe_deflate")), "damaged or cut off"),
}  # fmt: skip


TISSUE = Image.fromarray(np.random.default_rng(1).integers(60, 250, (12, 16, 3), dtype=np.uint8)).resize((320, 240))


def jpeg_pixels(content: bytes) -> slice:
    """Return the part of a JPEG file that has the compressed pixels."""
    return slice(content.index(b"\xff\xda") + 14, len(content) - 2)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_half_damaged_jpeg_is_never_judged(options: dict[str, object], capfd: pytest.CaptureFixture[str]) -> None:
    whole = saved(TISSUE, "JPEG", **options)
    inside = jpeg_pixels(whole)
    half = inside.start + (inside.stop - inside.start) // 2
    decode_image(whole, "scan")
    decode_image(whole + bytes(5000), "scan")
    for damaged_file in (
        whole[:half],
        whole[:half] + b"\xff\xd9",
        whole[:half] + bytes(len(whole) - half),
        whole[: inside.stop - 40] + bytes(42),
        whole[:half] + bytes(4096) + whole[half:],
        whole[:half] + PIXELS.tobytes()[:4096] + whole[half:],
        whole[: half - 400] + whole[half:],
    ):
        with pytest.raises(PatchError, match=r"^scan: damaged or cut off \(.+\); expected a complete ") as caught:
            decode_image(damaged_file, "scan")
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damaged_jpeg_compression_in_a_tiff_is_never_judged(capfd: pytest.CaptureFixture[str]) -> None:
    whole = saved(TISSUE, "TIFF", compression="jpeg")
    decode_image(whole, "scan")
    middle = len(whole) // 2
    with pytest.raises(PatchError, match=r"^scan: damaged or cut off \(Corrupt JPEG data"):
        decode_image(whole[:middle] + bytes(400) + whole[middle + 400 :], "scan")
    assert capfd.readouterr() == ("", "")


def smaller(factor: int, image: Image.Image = TISSUE) -> Image.Image:
    return image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)


OTHER = TISSUE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_of_a_pyramid_the_first_image_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compression: str
) -> None:
    pages, scan = [smaller(2), smaller(4), smaller(20)], tmp_path / "scan.tif"
    alone = decode_image(saved(TISSUE, "TIFF", compression=compression), "scan")
    scan.write_bytes(saved(TISSUE, "TIFF", compression=compression, save_all=True, append_images=pages))
    with caplog.at_level("INFO", "claris_kaggle"):
        assert np.array_equal(decode_image(scan.read_bytes(), "upload"), alone)
        assert caplog.messages == []  # the names of uploads are never logged
        assert np.array_equal(_read_image(scan), alone)
    assert caplog.messages == [
        f"{scan}: 4 images in one file. Only the first one is used: the others are smaller copies of it"
    ]


def test_of_a_photograph_with_a_preview_the_photograph_is_read() -> None:
    photograph = saved(TISSUE, "MPO", save_all=True, append_images=[smaller(3)])
    alone = decode_image(saved(TISSUE, "JPEG"), "scan")
    without = photograph[: photograph.rindex(b"\xff\xd8\xff")]  # as programs leave it that keep only the first image
    assert np.array_equal(decode_image(photograph, "scan"), alone)
    assert np.array_equal(decode_image(without, "scan"), alone)


def test_grey_images_that_are_stored_as_rgb_are_refused() -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        with pytest.raises(PatchError, match="a grey image, stored as RGB with equal channels; expected an RGB image"):
            decode_image(saved(IMAGE.convert("L").convert("RGB"), kind), "scan")
    empty = Image.new("RGB", (96, 96), (243, 243, 243))
    assert (decode_image(saved(empty, "PNG"), "scan") == 243).all()


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("TIFF", [TISSUE, TISSUE]),
        ("TIFF", [smaller(2), smaller(2, OTHER)]),
        ("TIFF", [smaller(2), TISSUE.crop((0, 0, 160, 200))]),
        ("TIFF", [TISSUE.resize((640, 480)), smaller(2)]),
        ("MPO", [TISSUE, smaller(2)]),
        ("MPO", [smaller(2, OTHER), smaller(4)]),
        ("PNG", [OTHER, TISSUE]),
    ],
)
def test_real_stacks_are_refused_with_the_number_of_images(kind: str, others: list[Image.Image]) -> None:
    with pytest.raises(PatchError, match="scan: 3 images in one file; .*Save each image as its own file"):
        decode_image(saved(TISSUE, kind, save_all=True, append_images=others), "scan")


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_read_is_named_and_no_library_prints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    make, words = NAMED[name]
    content = make()
    capfd.readouterr()
    with pytest.raises(PatchError, match=f"scan: .*{words}") as caught:
        decode_image(content, "scan")
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    (tmp_path / "scan.tif").write_bytes(content)
    if name not in ("JPEG 2000", "WebP", "BMP", "GIF", "pages"):  # Pillow reads these; their id proves the pixels
        with pytest.raises(PatchError) as caught:
            read_patch(tmp_path / "scan.tif")
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
