"""Draw patches, evidence maps and heat maps as PNG or JPEG images that are embedded in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import CENTRE, SIZE

# Vermilion for malignant and blue for benign, from the colour-blind safe palette of Okabe and Ito.
_MALIGNANT_COLOR, _BENIGN_COLOR = (213, 94, 0), (0, 114, 178)
_TINT_OPACITY = 0.6
_LONGEST_SIDE = 960
_TintValues = NDArray[np.float32]
# Weights of red, green and blue in a grey value (ITU-R BT.601).
_GREY_WEIGHTS = (0.299, 0.587, 0.114)
MAP_LIMITS = (
    "An evidence map cannot show whether a prediction is correct, or which structure caused it: the receptive field of "
    "a cell is larger than the cell."
)


def _png_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 [H, W, 3] or [H, W, 4] with transparency, as a PNG data URI."""
    return _uri(pixels, "PNG", {"optimize": True})


def jpeg_uri(pixels: Pixels) -> str:
    """Return an image, uint8 [H, W, 3], as a JPEG data URI. For display only, because JPEG is lossy.

    On real patches it takes a third of the bytes of PNG, with differences of 1 of 255.
    """
    return _uri(pixels, "JPEG", {"quality": 90, "subsampling": 0})


def _uri(pixels: NDArray[np.uint8], kind: str, options: Mapping[str, int]) -> str:
    """Return an image as a data URI in a format that Pillow can write."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format=kind, **options)
    return data_uri(stream.getvalue(), f"image/{kind.lower()}")


def data_uri(content: bytes, kind: str) -> str:
    """Return the content of a file as a data URI. `kind` is its MIME type, such as `image/png`."""
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def _reduce(pixels: Pixels) -> Pixels:
    """Reduce an image so that its longer side is at most `_LONGEST_SIDE` pixels. Smaller images stay unchanged."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BOX)
    return np.array(image)


def _tint(pixels: Pixels, values: NDArray[np.floating]) -> Pixels:
    """Tint an image by values, float [H, W] from -1 (benign) to 1 (malignant). Zero leaves a pixel unchanged."""
    strength = np.abs(values)[:, :, None] * _TINT_OPACITY
    colours = np.where(values[:, :, None] > 0, _MALIGNANT_COLOR, _BENIGN_COLOR)
    return np.rint(pixels * (1 - strength) + colours * strength).astype(np.uint8)


def draw_map(patch: Pixels, parts: _TintValues, crop: int) -> Pixels:
    """Return a patch in grey, tinted by its evidence map, with the centre 32 x 32 pixels outlined in black.

    The colours are scaled to the strongest cell of the map. The colours of the stain would mix with them.

    Args:
        patch: uint8 [96, 96, 3].
        parts: float [h, w], one of `Evidence.maps`.
        crop: side of the central square that the map covers, in pixels.
    Returns:
        uint8 [96, 96, 3], to be shown enlarged.
    """
    begin = (SIZE - crop) // 2
    rows, columns = (np.arange(crop) * cells // crop for cells in parts.shape)
    values = np.zeros((SIZE, SIZE))
    values[begin : begin + crop, begin : begin + crop] = parts[np.ix_(rows, columns)]
    grey = np.rint(patch @ np.array(_GREY_WEIGHTS))[:, :, None].repeat(3, axis=2).astype(np.uint8)
    drawn = _tint(grey, values / max(float(np.abs(parts).max()), 1e-9))
    low, high = (SIZE - CENTRE) // 2, (SIZE + CENTRE) // 2
    for edge in (low, high - 1):
        drawn[edge, low:high] = drawn[low:high, edge] = 0
    return drawn


def draw_heat(
    pixels: Pixels, tops: NDArray[np.int64], lefts: NDArray[np.int64], probabilities: _TintValues, threshold: float
) -> Pixels:
    """Return an image tinted by the probability of the nearest window, reduced to at most 960 pixels per side.

    The rim, which is outside the centre 32 x 32 pixels of the outermost windows, is not tinted.

    Args:
        pixels: uint8 [H, W, 3].
        tops: int64 [R], the top edges of the rows of windows in pixels, ascending.
        lefts: int64 [C], the left edges of the columns of windows in pixels, ascending.
        probabilities: float [R, C] in 0..1.
        threshold: windows from this probability on are malignant. The colour changes here.
    Returns:
        uint8 [h, w, 3], with the aspect ratio of `pixels`.
    """
    small = _reduce(pixels)
    above, below = (probabilities - threshold) / max(1 - threshold, 1e-9), probabilities / max(threshold, 1e-9) - 1
    signed = np.where(probabilities >= threshold, above, below)
    (rows, seen_rows), (columns, seen_columns) = (
        _nearest(starts, whole, drawn)
        for starts, whole, drawn in zip((tops, lefts), pixels.shape[:2], small.shape[:2], strict=True)
    )
    return _tint(small, signed[np.ix_(rows, columns)] * np.outer(seen_rows, seen_columns))


def _nearest(starts: NDArray[np.int64], whole: int, drawn: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the nearest window of each drawn pixel along one side, and True for pixels that are not in the rim.

    Args:
        starts: int64, the first pixel of each window, ascending.
        whole: side of the original image in pixels.
        drawn: side of the reduced image in pixels.
    Returns:
        int64 [drawn], indices into `starts`; bool [drawn].
    """
    places = (np.arange(drawn) + 0.5) * whole / drawn
    middles = starts + SIZE / 2
    inside = (places >= middles[0] - CENTRE / 2) & (places <= middles[-1] + CENTRE / 2)
    return np.searchsorted((middles[1:] + middles[:-1]) / 2, places), inside
