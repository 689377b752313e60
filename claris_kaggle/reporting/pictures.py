"""Pictures for pages: patches and what speaks for and against, as PNG or JPEG inside the page itself."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import CENTRE, SIZE

# Okabe and Ito's vermilion for malignant and blue for benign, which the colour-blind can tell apart as well.
_MALIGNANT_COLOR, _BENIGN_COLOR = (213, 94, 0), (0, 114, 178)
_TINT_OPACITY = 0.6
_LONGEST_SIDE = 960
_TintValues = NDArray[np.float32]


def _png_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3], or [H, W, 4] with transparency, as the address of a picture that is held in the page."""
    return _uri(pixels, "PNG", optimize=True)


def jpeg_uri(pixels: Pixels) -> str:
    """The same of [H, W, 3] to be looked at, not measured: of real patches in a third of the bytes, off by 1 of 255."""
    return _uri(pixels, "JPEG", quality=90, subsampling=0)


def _uri(pixels: NDArray[np.uint8], kind: str, **options: Any) -> str:
    """A picture of a kind that Pillow writes, as the address that holds it."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format=kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _reduce(pixels: Pixels, longest: int = _LONGEST_SIDE) -> Pixels:
    """The picture with its longer side at most so long; smaller ones as they are."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.BOX)
    return np.array(image)


def _tint(pixels: Pixels, values: NDArray[np.floating]) -> Pixels:
    """The picture coloured by values of -1 (benign) to 1 (malignant), float [H, W]; 0 leaves it as it is."""
    strength = np.abs(values)[:, :, None] * _TINT_OPACITY
    colours = np.where(values[:, :, None] > 0, _MALIGNANT_COLOR, _BENIGN_COLOR)
    return np.rint(pixels * (1 - strength) + colours * strength).astype(np.uint8)


def draw_map(patch: Pixels, parts: _TintValues, crop: int) -> Pixels:
    """A patch tinted by the parts of its log-odds, the strongest part full; the middle 32 x 32 outlined in black.

    Args:
        patch: uint8 [96, 96, 3].
        parts: float [h, w] as one of `Evidence.maps`.
        crop: side of the square that the grid lies over.
    Returns:
        uint8 [96, 96, 3], to be shown enlarged.
    """
    begin = (SIZE - crop) // 2
    rows, columns = (np.arange(crop) * cells // crop for cells in parts.shape)
    values = np.zeros((SIZE, SIZE))
    values[begin : begin + crop, begin : begin + crop] = parts[np.ix_(rows, columns)]
    drawn = _tint(patch, values / max(float(np.abs(parts).max()), 1e-9))
    low, high = (SIZE - CENTRE) // 2, (SIZE + CENTRE) // 2
    for edge in (low, high - 1):
        drawn[edge, low:high] = drawn[low:high, edge] = 0
    return drawn


def draw_heat(
    pixels: Pixels, tops: NDArray[np.int64], lefts: NDArray[np.int64], probabilities: _TintValues, threshold: float
) -> Pixels:
    """A picture tinted by the probability of the window whose middle is nearest; its size as by `_reduce`.

    What lies in no window's middle 32 x 32, such as the rim, is left as it is where windows are that close.

    Args:
        pixels: uint8 [H, W, 3].
        tops, lefts: upper left corners of the windows' rows and columns, ascending.
        probabilities: float [rows, columns].
        threshold: from where on a window is malignant; there the colour changes.
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
    """Which window's middle is nearest to each of so many drawn pixels, and whether it lies between the middles."""
    places = (np.arange(drawn) + 0.5) * whole / drawn
    middles = starts + SIZE / 2
    inside = (places >= middles[0] - CENTRE / 2) & (places <= middles[-1] + CENTRE / 2)
    return np.searchsorted((middles[1:] + middles[:-1]) / 2, places), inside
