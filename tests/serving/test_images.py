"""Test reading images: each becomes RGB pixels or is refused in one line, within limits of size."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from claris_kaggle.core.errors import DiskError, PatchError, UsageError
from claris_kaggle.data.patches import _encode_tiff
from claris_kaggle.serving.images import _read_image, decode_image, list_images

PIXELS = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: what Pillow does not write, and bombs."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_lossless_files_come_back_as_they_are(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(decode_image(saved(Image.fromarray(PIXELS), kind, **options), "x"), PIXELS)


def test_a_patch_of_the_competition_and_a_jpeg_are_read() -> None:
    assert np.array_equal(decode_image(_encode_tiff(PIXELS[:96, :96]), "x"), PIXELS[:96, :96])
    smooth = np.full((96, 130, 3), (200, 120, 180), dtype=np.uint8)
    found = decode_image(saved(Image.fromarray(smooth), "JPEG", quality=95), "x")
    assert found.shape == smooth.shape and np.abs(found.astype(int) - smooth).max() < 6


def test_palettes_are_looked_up() -> None:
    image = Image.fromarray(PIXELS // 128 * 255).quantize(8)
    assert np.array_equal(decode_image(saved(image), "x"), np.array(image.convert("RGB")))


def test_what_is_transparent_lies_on_white() -> None:
    opacity = np.full((100, 120, 1), 255, dtype=np.uint8)
    opacity[50:] = 0
    found = decode_image(saved(Image.fromarray(np.concatenate([PIXELS, opacity], axis=2))), "x")
    assert np.array_equal(found[:50], PIXELS[:50]) and (found[50:] == 255).all()


def test_of_sixteen_bits_a_channel_the_upper_eight_are_kept() -> None:
    wide = (PIXELS.astype(np.uint16) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    assert np.array_equal(decode_image(png(120, 100, 16, 2, rows), "x"), PIXELS)


def test_how_a_photograph_is_turned_is_left_as_stored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode_image(saved(Image.fromarray(PIXELS), exif=exif.tobytes()), "x"), PIXELS)


GREY = Image.fromarray(PIXELS[:, :, 0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"not a readable image \(an empty file\); expected a TIFF, PNG or JPEG file"),
        (b"<html>not found</html>", "not a readable image"),
        (saved(Image.fromarray(PIXELS), "GIF"), "not a readable image"),
        (saved(Image.fromarray(PIXELS), "BMP"), "not a readable image"),
        (saved(GREY), "grey of mode L; expected an RGB image of stained tissue"),
        (saved(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 256), "TIFF"), "grey of mode I;16"),
        (saved(GREY.convert("1")), "black and white"),
        (saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), "colours of mode CMYK"),
        (saved(Image.fromarray(PIXELS[:80])), "120 x 80 pixels; expected at least 96 x 96. Use a larger region"),
        (saved(GREY.convert("RGB"), "TIFF", save_all=True, append_images=[GREY.convert("RGB")]), "2 images in one"),
        (saved(Image.fromarray(PIXELS))[:5000], "damaged or cut off"),
    ],
)
def test_what_cannot_be_classified_is_one_clear_line(content: bytes, words: str) -> None:
    with pytest.raises(PatchError, match=f"scan: .*{words}") as caught:
        decode_image(content, "scan")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [5_001, 20_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(PatchError, match="at most 25,000,000 pixels are allowed"):
        decode_image(png(side, side, 8, 2, bytes(1_000_000)), "bomb")


def test_a_file_with_too_many_bytes_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(PatchError, match="more than 1,128,576 bytes"):
        _read_image(tmp_path / "large.png", 10_000)
    with pytest.raises(DiskError, match="file not found"):
        _read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_or_flipped_file_gives_pixels_or_one_line(kind: str, data: st.DataObject) -> None:
    content = bytearray(saved(Image.fromarray(PIXELS), kind))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_image(bytes(content), "x")
    except PatchError as error:
        assert str(error).startswith("x: ") and "\n" not in str(error)
    else:
        assert found.dtype == np.uint8 and found.ndim == 3 and min(found.shape[:2]) >= 96


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_no_pixel_of_a_cut_file_is_made_up(kind: str) -> None:
    content = saved(Image.fromarray(PIXELS), kind)
    for kept in range(0, len(content) - 600, 997):
        with pytest.raises(PatchError):
            decode_image(content[:kept], "x")


def test_the_limit_is_the_callers_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_image(saved(Image.fromarray(PIXELS)), "x", 12_000).shape == PIXELS.shape
    assert Image.MAX_IMAGE_PIXELS == 1000
    for most in (11_999, 5_000):
        with pytest.raises(PatchError, match=f"at most {most:,} pixels are allowed"):
            decode_image(saved(Image.fromarray(PIXELS)), "x", most)


def test_what_cannot_be_looked_at_is_left_to_be_named_with_the_file(tmp_path: Path) -> None:
    paths = [tmp_path / ("n" * 300), tmp_path / "good.png"]
    assert list_images(paths) == paths


def test_an_address_is_no_file() -> None:
    with pytest.raises(UsageError, match="is a URL; expected image files. Download it first"):
        list_images([Path("https://example.org/a.png")])


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.PNG", "a.tif", ".hidden.png", "notes.txt", "c.jpeg"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    found = list_images([tmp_path / "notes.txt", tmp_path])
    assert [path.name for path in found] == ["notes.txt", "a.tif", "b.PNG", "c.jpeg"]
    deeper = tmp_path / "deeper"
    with pytest.raises(UsageError, match="no image in this folder; .*Give image files, or a folder that has them"):
        list_images([deeper])
    (deeper / "still").mkdir()
    (deeper / "still" / ".hidden.png").touch()
    with pytest.raises(UsageError, match="Give image files"):
        list_images([deeper])
    (deeper / "still" / "d.png").touch()
    with pytest.raises(UsageError, match="no image in this folder; .*Give --recursive to search its subfolders"):
        list_images([deeper])
    assert list_images([deeper], recursive=True) == [deeper / "still" / "d.png"]
    assert not caplog.messages
    assert list_images([tmp_path]) == found[1:]
    (deeper / "e.png").touch()
    list_images([tmp_path])
    assert caplog.messages == [
        f"{tmp_path}: 1 image in subfolders is not classified; --recursive includes them",
        f"{tmp_path}: 2 images in subfolders are not classified; --recursive includes them",
    ]
    (deeper / "e.png").unlink()
    (deeper / "still" / "d.png").unlink()
    with pytest.raises(UsageError, match="no image in this folder or its subfolders; .*Give image files"):
        list_images([deeper], recursive=True)
