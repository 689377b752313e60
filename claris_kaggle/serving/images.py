"""Decode image files of any size to pixels and windows, with size limits and strict checks.

The EXIF orientation is not applied. The mean over the eight views of a patch does not depend on it.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.console import capture_native_code, log_info, silence_native_code
from claris_kaggle.core.errors import OversizeError, PatchError, UsageError, first_line, format_count
from claris_kaggle.core.files import explain_disk_errors, is_folder
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.image_kinds import name_image_kind
from claris_kaggle.data.patches import CENTRE, SIZE

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("TIFF", "PNG", "JPEG")
_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_MAX_PIXELS = 25_000_000
# The largest file for a number of pixels: four channels of 16 bits, and space for metadata.
_BYTES_PER_PIXEL, _DECODE_SPARE_BYTES = 8, 1 << 20
_WHITE = 255
# In a 16-bit image, the maximum and the 90 % quantile of the upper eight bits reach these values. Otherwise it holds a
# camera's values that nothing scaled, perhaps with a few hot pixels or a white scale bar.
_WIDE_BITS, _MIN_WIDE_MAXIMUM, _MIN_WIDE_QUANTILE = 16, 128, 64
_TIFF_BITS, _TIFF_COMPRESSION, _TIFF_MAXIMUM = 258, 259, 281
_GREY_CONTRAST = 32  # empty background has less, and may be grey
_JPEG_START, _JPEG_COMPRESSIONS = b"\xff\xd8", (6, 7)
# What libjpeg says of damaged data, which it decodes all the same (JWRN_* in its jerror.h).
_JPEG_DAMAGE = re.compile(rb"(Corrupt JPEG data|Premature end of JPEG file|Inconsistent progression sequence)[^\n]*")
# A smaller copy has the same shape within this share of a side. Its colours, averaged over a grid, differ on average
# by at most this much, and by a share of how far the image's own colours vary: those of other tissue differ by more.
_COPY_SHAPE, _COPY_GRID, _COPY_LEVELS, _COPY_SHARE = 0.02, 32, 2.0, 0.25
# Pillow's image modes with a defined conversion to RGB, and names of some other modes for messages.
_ACCEPTED_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")
_MODE_NAMES = {"1": "black and white", "L": "grey", "LA": "greyscale with transparency", "I": "grey", "F": "grey"}


def list_images(paths: Sequence[Path], *, recursive: bool = False) -> list[Path]:
    """Return the files in `paths`, and for each folder the image files in it, sorted by name.

    Args:
        paths: files and folders.
        recursive: also list the subfolders of each folder. Otherwise the number of images in them is logged.

    Raises:
        UsageError: a folder has no images, or a path is a URL.
    """
    found: list[Path] = []
    for path in paths:
        if path.parts[:1] in (("http:",), ("https:",)):
            raise UsageError(f"{path}: is a URL", "expected image files", "Download it first, then give the file")
        if not is_folder(path):
            found.append(path)
            continue
        with explain_disk_errors(path):
            inside = sorted(_find_images(path, recursive=recursive))
            if not inside:
                raise _explain_no_images(path, recursive=recursive)
            nested = 0 if recursive else sum(1 for _ in _find_images(path, recursive=True)) - len(inside)
        if nested:
            left_out = f"{format_count(nested, 'image')} in subfolders {'is' if nested == 1 else 'are'} not classified"
            log_info(f"{path}: {left_out}; --recursive includes them")
        found += inside
    return found


def _find_images(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """Yield the image files in a folder by their suffixes, without hidden files."""
    every = folder.rglob("*") if recursive else folder.iterdir()
    return (one for one in every if one.suffix.lower() in _SUFFIXES and one.name[0] != ".")


def _explain_no_images(folder: Path, *, recursive: bool) -> UsageError:
    """Return the error for a folder without images. Recommends --recursive if a subfolder has images."""
    nested = not recursive and any(_find_images(folder, recursive=True))
    hint = "Give --recursive to search its subfolders" if nested else "Give image files, or a folder that has them"
    where = "in this folder or its subfolders" if recursive else "in this folder"
    return UsageError(f"{folder}: no image {where}", f"expected files ending in {', '.join(_SUFFIXES)}", hint)


def _read_image(path: Path, max_pixels: int = _MAX_PIXELS) -> Pixels:
    """Read an image file as uint8 [H, W, 3]. See `decode_image`.

    Raises:
        PatchError: as in `decode_image`.
        DiskError: the file does not exist or cannot be read.
    """
    with explain_disk_errors(path), path.open("rb") as stream:
        content = stream.read(_largest_file(max_pixels) + 1)
    pixels, number = _decode_file(content, path, max_pixels)
    if number > 1:
        log_info(
            f"{path}: {number} images in one file. Only the first one is used: the others are smaller copies of it"
        )
    return pixels


def decode_image(content: bytes, name: object, max_pixels: int = _MAX_PIXELS) -> Pixels:
    """Decode a TIFF, PNG or JPEG file to uint8 [H, W, 3] RGB of at least 96 x 96 pixels.

    Palettes are converted to RGB, and transparent parts are composited on white. 16-bit channels are reduced to the
    upper eight of their used bits: all bits, or those that the file states. Sizes are checked before decoding. Of
    several images the first is decoded if the others are smaller copies of it, as previews and image pyramids are.

    Args:
        content: the bytes of the file.
        name: name of the image, for messages.
        max_pixels: the largest allowed width x height.
    Raises:
        OversizeError: the file or the image is too large.
        PatchError: the image is too small, greyscale or in an unsupported colour mode, one of several in the file,
            mostly transparent, leaves the upper bits of its 16-bit channels empty, is cut off or damaged, or is not
            a TIFF, PNG or JPEG.
    """
    return _decode_file(content, name, max_pixels)[0]


def _decode_file(content: bytes, name: object, max_pixels: int) -> tuple[Pixels, int]:
    """Return the pixels of `decode_image`, and the number of images in the file."""
    from PIL import Image, UnidentifiedImageError

    if len(content) > _largest_file(max_pixels):
        raise _too_large(name, f"more than {len(content) - 1:,} bytes", max_pixels)
    if content.startswith(_JPEG_START):
        content = content.rstrip(b"\0")  # zeros in place of the end of the file would be decoded as pixels
    try:
        with _pillow_limit(max_pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata; faults that matter raise below
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _require_fit(image, name, max_pixels)
                bits = _stated_bits(image, content)
                compression = getattr(image, "tag_v2", {}).get(_TIFF_COMPRESSION)
                with silence_native_code() if image.format == "TIFF" else contextlib.nullcontext():
                    pixels = _to_rgb(image, name, wide=bits is not None)
                    if bits is not None:
                        pixels = _use_stated_bits(pixels, content, name, bits)
                    number = _require_copies(image, pixels, name)
        _require_colours(pixels, name)
        if content.startswith(_JPEG_START) or compression in _JPEG_COMPRESSIONS:
            _require_undamaged_jpeg(content, name)
        return pixels, number
    except PatchError:
        raise
    except UnidentifiedImageError as error:
        raise _not_readable(content, name) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, first_line(error), max_pixels) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        kind = name_image_kind(content)
        found = f"{name}: damaged or cut off ({kind or first_line(error)})"
        raise PatchError(found, "expected a complete TIFF, PNG or JPEG file", "Download or save it again") from error


def _not_readable(content: bytes, name: object) -> PatchError:
    """Return the error for a file that Pillow does not identify. The message names its kind, if known."""
    kind = name_image_kind(content)
    hint = "Save it as TIFF, PNG or JPEG with 8 bits per channel" if kind else ""
    if any(word in kind for word in ("cut off", "empty", "zero", "web page", "pointer")):
        hint = "Download or copy it again"
    found = f"{name}: not a readable image{f' ({kind})' if kind else ''}"
    return PatchError(found, "expected a TIFF, PNG or JPEG file", hint)


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Set Pillow's pixel limit to `max_pixels` inside the context. Its default rejects images above 179 million."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _require_fit(image: Image.Image, name: object, max_pixels: int) -> None:
    """Reject an image that cannot be classified, based on the header of the file.

    Raises:
        OversizeError: the image has more than `max_pixels` pixels.
        PatchError: the image is too small, or has an unsupported colour mode.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width:,} x {height:,} pixels", max_pixels)
    if min(width, height) < SIZE:
        hint = "Use a larger region at about 1 micrometre per pixel (10x). Enlarging the image does not help"
        raise PatchError(f"{name}: {width} x {height} pixels", f"expected at least {SIZE} x {SIZE}", hint)
    if image.mode not in _ACCEPTED_MODES:
        found = f"{name}: {_MODE_NAMES.get(image.mode.split(';')[0], 'colours')} of mode {image.mode}"
        raise PatchError(found, "expected an RGB image of stained tissue", "Use the original colour image")


def _require_copies(image: Image.Image, pixels: Pixels, name: object) -> int:
    """Check that all other images of a file are smaller copies of its first one. Return the number of images.

    Args:
        image: the opened file.
        pixels: its first image, uint8 [H, W, 3].
        name: name of the image, for messages.
    Raises:
        PatchError: another image is not a smaller copy of the first one.
    """
    number = int(getattr(image, "n_frames", 1))
    is_animation = image.format == "PNG" and number > 1
    if is_animation or not all(_is_smaller_copy(image, frame, pixels) for frame in range(1, number)):
        found, expected = f"{name}: {number} images in one file", "expected one, or smaller copies of the first one"
        raise PatchError(found, expected, "Save each image as its own file")
    return number


def _is_smaller_copy(image: Image.Image, frame: int, pixels: Pixels) -> bool:
    """Return True if that image of the file is smaller than its first one, uint8 [H, W, 3], and looks the same."""
    from PIL import Image

    try:
        image.seek(frame)
    except ValueError:  # no data there
        return image.format == "MPO"  # a program has removed the preview, and left its mention
    (width, height), (full_height, full_width) = image.size, pixels.shape[:2]
    allowed = 1 + _COPY_SHAPE * min(width, height)
    if width >= full_width or abs(height - width * full_height / full_width) > allowed:
        return False
    grid = (min(_COPY_GRID, width), min(_COPY_GRID, height))
    whole, copy = (
        np.asarray(one.convert("RGB").resize(grid, Image.Resampling.BOX), dtype=np.float64)
        for one in (Image.fromarray(pixels), image)
    )
    variation = np.abs(whole - whole.mean(axis=(0, 1))).mean()
    return bool(np.abs(whole - copy).mean() <= _COPY_LEVELS + _COPY_SHARE * variation)


def _require_colours(pixels: Pixels, name: object) -> None:
    """Check that an image with contrast, uint8 [H, W, 3], is not a grey one that is stored as RGB.

    Raises:
        PatchError: all pixels are grey.
    """
    if np.ptp(pixels) >= _GREY_CONTRAST and (pixels == pixels[..., :1]).all():
        found = f"{name}: a grey image, stored as RGB with equal channels"
        raise PatchError(found, "expected an RGB image of stained tissue", "Use the original colour image")


def _require_undamaged_jpeg(content: bytes, name: object) -> None:
    """Check that libjpeg decodes the JPEG data of a file without a warning.

    Pillow passes no warnings on, but OpenCV prints them. Data without a warning can still be damaged: JPEG has no
    checksum.

    Raises:
        PatchError: libjpeg reports damaged data.
    """
    import cv2

    with capture_native_code() as messages:
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    damage = _JPEG_DAMAGE.search(messages)
    if damage:
        found = f"{name}: damaged or cut off ({damage[0].decode('ascii', 'replace')})"
        raise PatchError(found, "expected a complete JPEG file", "Download it or copy it from the camera again")


def _largest_file(max_pixels: int) -> int:
    """Return the largest allowed size in bytes of a file with `max_pixels` pixels."""
    return _BYTES_PER_PIXEL * max_pixels + _DECODE_SPARE_BYTES


def _too_large(name: object, found: str, max_pixels: int) -> OversizeError:
    """Return the error for a file above the size limit."""
    expected = f"at most {max_pixels:,} pixels are allowed"
    return OversizeError(f"{name}: {found}", expected, "Cut it into pieces, or raise --max-pixels")


def _to_rgb(image: Image.Image, name: object, *, wide: bool) -> Pixels:
    """Decode the whole image to uint8 [H, W, 3]. Transparent parts are composited on white.

    An opacity of 16 bits (`wide`) that leaves the upper bits empty, as the colours do, is ignored.

    Raises:
        PatchError: the image is mostly transparent.
    """
    from PIL import Image

    if image.mode in ("P", "PA") or (image.mode == "RGB" and "transparency" in image.info):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode in ("RGBA", "RGBa"):
        image = image.convert("RGBA")
        opacity = np.asarray(image.getchannel("A"))
        if wide and 0 < opacity.max() < _MIN_WIDE_MAXIMUM and opacity.min() == opacity.max():
            return np.array(image, dtype=np.uint8)[..., :3]
        _require_opaque(opacity, name)
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_WHITE,) * 4), image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _require_opaque(opacity: NDArray[np.uint8], name: object) -> None:
    """Reject an image that would mostly be judged as white: more than half of it, or of a patch's centre.

    Args:
        opacity: uint8 [H, W], 255 where the image is opaque.
        name: name of the image, for messages.
    Raises:
        PatchError: the image is mostly transparent.
    """
    share = float(opacity.mean()) / _WHITE
    where = ""
    if opacity.shape == (SIZE, SIZE):
        begin = (SIZE - CENTRE) // 2
        centre = float(opacity[begin : begin + CENTRE, begin : begin + CENTRE].mean()) / _WHITE
        share, where = (centre, " in the centre") if centre < min(share, 0.5) else (share, where)
    if share < 0.5:
        found = f"{name}: {1 - share:.0%} transparent{where}"
        raise PatchError(found, "expected opaque pixels", "Save it without transparency, or cut out the opaque part")


def _stated_bits(image: Image.Image, content: bytes) -> int | None:
    """Return the used bits per channel that a 16-bit file states, or 16; None for an image of 8 bits per channel.

    A PNG states them in its sBIT chunk, a TIFF in the tag MaxSampleValue.
    """
    if image.format == "PNG" and content[24:25] == b"\x10":
        place = content[: content.find(b"IDAT")].find(b"sBIT")
        return content[place + 4] if 0 < place < len(content) - 4 else _WIDE_BITS
    tags = getattr(image, "tag_v2", {})
    if image.format != "TIFF" or _WIDE_BITS not in tags.get(_TIFF_BITS, ()):
        return None
    most = tags.get(_TIFF_MAXIMUM, 0)
    return max(map(int, most if isinstance(most, tuple) else (most,))).bit_length() or _WIDE_BITS


def _uses_upper_bits(values: NDArray[np.uint8]) -> bool:
    """Return True if the upper eight of 16 bits hold more than a few bright values."""
    return int(values.max()) >= _MIN_WIDE_MAXIMUM and float(np.quantile(values, 0.9)) >= _MIN_WIDE_QUANTILE


def _use_stated_bits(pixels: Pixels, content: bytes, name: object, bits: int) -> Pixels:
    """Return the pixels of a 16-bit image, scaled by its used bits.

    Args:
        pixels: uint8 [H, W, 3], the upper eight of 16 bits.
        content: the bytes of the file.
        name: name of the image, for messages.
        bits: the used bits that the file states; 16 if it states none.
    Raises:
        PatchError: the upper bits are empty, and the file does not state how many are used.
    """
    if _uses_upper_bits(pixels):
        return pixels
    import cv2

    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    wide = np.zeros((1, 1, 3), np.uint16) if decoded is None else np.asarray(decoded)
    most = int(wide[..., :3].max()) if wide.dtype == np.uint16 else 0
    if 8 <= bits < _WIDE_BITS and 0 < most < 1 << bits and wide.shape[2] == 3:
        return np.ascontiguousarray((wide[..., ::-1] >> (bits - 8)).astype(np.uint8))
    values = f"the highest value is {most:,} ({most.bit_length()} bits used)"
    if pixels.max() >= _MIN_WIDE_MAXIMUM:
        usual = int(np.quantile(wide[..., :3], 0.9))
        values = f"90% of the values are at most {usual:,} ({usual.bit_length()} bits used)"
    found = f"{name}: 16 bits per channel, and {values}"
    hint = "Scale its values to the whole range, or save it with 8 bits per channel"
    raise PatchError(found, f"expected values up to {(1 << _WIDE_BITS) - 1:,}", hint)


def _crop_window(pixels: Pixels, top: int, left: int) -> Pixels:
    """Return the window with that top left corner, uint8 [96, 96, 3]."""
    return pixels[top : top + SIZE, left : left + SIZE]


def _window_starts(side: int, stride: int) -> NDArray[np.int64]:
    """Return the start of each window along a side. The last window ends at the end of the side.

    >>> _window_starts(96, 32).tolist(), _window_starts(200, 32).tolist()
    ([0], [0, 32, 64, 96, 104])
    """
    last = side - SIZE
    return np.array([*range(0, last, stride), last], dtype=np.int64)
