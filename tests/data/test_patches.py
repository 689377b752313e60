"""Test decoding: the fast decoder agrees with Pillow, and damage is always detected."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from claris_kaggle.core.errors import PatchError
from claris_kaggle.data.patches import (
    PATCH_BYTES,
    _decode_tiff,
    _decode_with_pillow,
    _encode_tiff,
    _find_pixel_offset,
    patch_id,
    read_patch,
)

# Ids of the two patches of the competition's training set that are all black and all white.
BLACK_ID, WHITE_ID = "9369c7278ec8bcc6c880d99194de09fc2bd4efbe", "54df3640d17119486e5c5f98019d2a92736feabc"
PIXELS = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def tiff(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format="TIFF", **options)
    return stream.getvalue()


def test_what_is_written_comes_back_by_the_fast_way_and_by_pillow() -> None:
    content = _encode_tiff(PIXELS)
    assert _find_pixel_offset(content) is not None
    assert np.array_equal(_decode_tiff(content, "x"), PIXELS)
    assert np.array_equal(_decode_with_pillow(content, "x"), PIXELS)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_files_are_read_as_well(compression: str) -> None:
    content = tiff(PIXELS, compression=compression)
    assert _find_pixel_offset(content) is None
    assert np.array_equal(_decode_tiff(content, "x"), PIXELS)


def test_the_odd_patches_have_the_ids_of_the_competition() -> None:
    assert patch_id(np.zeros((96, 96, 3), np.uint8)) == BLACK_ID
    assert patch_id(np.full((96, 96, 3), 255, np.uint8)) == WHITE_ID


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(PIXELS[:64]), "96 x 64 pixels of mode RGB"),
        (tiff(PIXELS, "L"), "96 x 96 pixels of mode L"),
        (tiff(PIXELS, "RGBA"), "mode RGBA"),
        (b"", "damaged or cut off"),
        (b"<html>403 Forbidden</html>", "damaged or cut off"),
        (_encode_tiff(PIXELS)[:20_000], "damaged or cut off"),
        (_encode_tiff(PIXELS)[:-1], "damaged or cut off"),
    ],
)
def test_a_wrong_or_damaged_image_is_named_with_its_fault(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(PatchError) as caught:
        read_patch(tmp_path / "x.tif")
    assert words in str(caught.value) and "x.tif" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"x\.tif: file not found"):
        read_patch(tmp_path / "x.tif")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_changed_bytes_never_raise_anything_but_a_patch_error(data: st.DataObject) -> None:
    content = bytearray(_encode_tiff(PIXELS))
    header = len(content) - PATCH_BYTES
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(-header, header))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 300))
    try:
        pixels = _decode_tiff(bytes(content[: len(content) - cut]), "x")
        assert pixels.shape == (96, 96, 3) and pixels.dtype == np.uint8
    except PatchError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_bytes_are_refused_in_one_line(content: bytes, head: bytes) -> None:
    with pytest.raises(PatchError):
        _decode_tiff(head + content, "x")


def test_every_real_file_goes_the_fast_way_and_matches_its_id(sample: object) -> None:
    paths = [path for split in ("train", "test") for path in sample.patches(split).glob("*.tif")]  # type: ignore[attr-defined]
    assert len(paths) == 1518
    for path in paths:
        content = path.read_bytes()
        assert _find_pixel_offset(content) is not None
        assert patch_id(_decode_tiff(content, path)) == path.stem
