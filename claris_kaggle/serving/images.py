"""Decode image files of any size to pixels and windows, with size limits and strict checks.

The EXIF orientation is not applied. The mean over the eight views of a patch does not depend on it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import OversizeError, PatchError, UsageError, first_line
from claris_kaggle.core.files import explain_disk_errors, is_folder
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import SIZE

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("TIFF", "PNG", "JPEG")
_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_MAX_PIXELS = 25_000_000
# The largest file for a number of pixels: four channels of 16 bits, and space for metadata.
_BYTES_A_PIXEL, _DECODE_SPARE_BYTES = 8, 1 << 20
_WHITE = 255
# Pillow's image modes with a defined conversion to RGB, and names of some other modes for messages.
_ACCEPTED_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")
_MODE_NAMES = {"1": "black and white", "L": "grey", "LA": "greyscale with transparency", "I": "grey", "F": "grey"}


def list_images(paths: Sequence[Path], *, recursive: bool = False) -> list[Path]:
    """Return the files in `paths`, and for each folder the image files in it, sorted by name.

    Args:
        paths: files and folders.
        recursive: also list the subfolders of each folder.

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
            every = path.rglob("*") if recursive else path.iterdir()
            inside = sorted(one for one in every if one.suffix.lower() in _SUFFIXES and one.name[0] != ".")
        if not inside:
            hint = "" if recursive else "Give --recursive to search its subfolders"
            expected = f"expected files ending in {', '.join(_SUFFIXES)}"
            raise UsageError(f"{path}: no image in this folder", expected, hint)
        found += inside
    return found


def _read_image(path: Path, max_pixels: int = _MAX_PIXELS) -> Pixels:
    """Read an image file as uint8 [H, W, 3]. See `decode_image`.

    Raises:
        PatchError: as in `decode_image`.
        DiskError: the file does not exist or cannot be read.
    """
    with explain_disk_errors(path), path.open("rb") as stream:
        content = stream.read(_largest_file(max_pixels) + 1)
    return decode_image(content, path, max_pixels)


def decode_image(content: bytes, name: object, max_pixels: int = _MAX_PIXELS) -> Pixels:
    """Decode a TIFF, PNG or JPEG file to uint8 [H, W, 3] RGB of at least 96 x 96 pixels.

    Palettes are converted to RGB, transparent images are composited on white, and 16-bit channels are reduced to their
    upper eight bits. Sizes are checked before decoding.

    Args:
        content: the bytes of the file.
        name: name of the image, for messages.
        max_pixels: the largest allowed width x height.
    Raises:
        OversizeError: the file or the image is too large.
        PatchError: the image is too small, greyscale or in an unsupported colour mode, has several frames, is cut
            off or damaged, or is not a TIFF, PNG or JPEG.
    """
    from PIL import Image, UnidentifiedImageError

    if len(content) > _largest_file(max_pixels):
        raise _too_large(name, f"more than {len(content) - 1:,} bytes", max_pixels)
    try:
        with _pillow_limit(max_pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata; faults that matter raise below
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _require_fit(image, name, max_pixels)
                return _to_rgb(image)
    except PatchError:
        raise
    except UnidentifiedImageError as error:
        raise PatchError(f"{name}: not a readable image", "expected a TIFF, PNG or JPEG file") from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, first_line(error), max_pixels) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        found = f"{name}: damaged or cut off ({first_line(error)})"
        raise PatchError(found, "expected a complete TIFF, PNG or JPEG file", "Download or save it again") from error


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
        PatchError: the image is too small, has several frames, or an unsupported colour mode.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width:,} x {height:,} pixels", max_pixels)
    if min(width, height) < SIZE:
        hint = "Use a larger region at about 1 micrometre per pixel (10x). Enlarging the image does not help"
        raise PatchError(f"{name}: {width} x {height} pixels", f"expected at least {SIZE} x {SIZE}", hint)
    if getattr(image, "is_animated", False):
        raise PatchError(f"{name}: several images in one file", "expected one", "Save one image as its own file")
    if image.mode not in _ACCEPTED_MODES:
        found = f"{name}: {_MODE_NAMES.get(image.mode.split(';')[0], 'colours')} of mode {image.mode}"
        raise PatchError(found, "expected an RGB image of stained tissue", "Use the original colour image")


def _largest_file(max_pixels: int) -> int:
    """Return the largest allowed size in bytes of a file with `max_pixels` pixels."""
    return _BYTES_A_PIXEL * max_pixels + _DECODE_SPARE_BYTES


def _too_large(name: object, found: str, max_pixels: int) -> OversizeError:
    """Return the error for a file above the size limit."""
    expected = f"at most {max_pixels:,} pixels are allowed"
    return OversizeError(f"{name}: {found}", expected, "Cut it into pieces, or raise --max-pixels")


def _to_rgb(image: Image.Image) -> Pixels:
    """Decode the whole image to uint8 [H, W, 3]. Transparent images are composited on white."""
    from PIL import Image

    if image.mode in ("P", "PA") or (image.mode == "RGB" and "transparency" in image.info):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode in ("RGBA", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_WHITE,) * 4), image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


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
