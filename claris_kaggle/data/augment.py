"""Augmentation and normalisation. Random values of a patch depend on (seed, epoch, id) only.

On a CPU, albumentations flips and rotates uint8 patches. On a GPU, the device applies the same symmetries, so that the
host only gathers patches. Colour augmentation is one affine map of RGB for each patch. It is combined with the
normalisation and applied to the whole batch on the device.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from claris_kaggle.data.d4 import _SYMMETRIES, _cached_tensor
from claris_kaggle.data.patches import SIZE

# Without this, albumentations looks for a new version online at import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_Channels = tuple[float, float, float]
_Images = TypeVar("_Images", Tensor, NDArray[np.uint8])
# Channel mean and standard deviation in 0..1: of the competition's training patches, and of the inputs of published
# weights, named as in timm (timm.data.constants).
STATISTICS: dict[str, tuple[_Channels, _Channels]] = {
    "patches": ((0.7059, 0.5504, 0.6995), (0.2374, 0.2816, 0.2150)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001).
_STAIN_VECTORS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_WORDS_PER_PATCH = 8
_ORDER_WORD, _GEOMETRY_WORD, _COLOR_WORDS = 0, 1, slice(2, 8)
# Half-widths of the uniform ranges at strength 1: contrast, saturation, brightness and the three channel gains.
_COLOR_WIDTHS = (0.2, 0.2, 0.08, 0.08, 0.08, 0.08)


def _draw_words(seed: int, epoch: int, ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return random words for each patch, uint64 [N, 8], as a pure function of (seed, epoch, id).

    Uses a hash instead of a generator: it has no state, and gives the same words with every version of NumPy.
    """
    prefix = f"{seed}/{epoch}/"
    digests = (hashlib.blake2b((prefix + name).encode(), digest_size=8 * _WORDS_PER_PATCH).digest() for name in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(len(ids), _WORDS_PER_PATCH)


class _Geometry:
    """The centre crop and a random rotation or reflection of each patch.

    Args:
        kind: `d4` draws one of the eight symmetries with equal probability. `flips` draws two flips and a rotation
            within 20 degrees with black corners, as the original project did.
        crop: side of the crop in pixels.
        transform: False only crops, and leaves the symmetries to the device (see `apply_symmetry`).
    """

    def __init__(self, kind: str = "d4", crop: int = SIZE, *, transform: bool = True) -> None:
        self.kind, self.crop, self.transform = kind, crop, transform
        if not transform:
            return
        import albumentations
        import cv2
        from albumentations.core.type_definitions import d4_group_elements

        self.symmetry, self.elements = albumentations.D4(p=1.0), list(d4_group_elements)
        self.flips = albumentations.Compose(
            [
                albumentations.HorizontalFlip(p=0.5),
                albumentations.VerticalFlip(p=0.5),
                albumentations.Rotate(20, interpolation=cv2.INTER_NEAREST, border_mode=cv2.BORDER_CONSTANT, p=1.0),
            ]
        )

    def __call__(self, pixels: NDArray[np.uint8], words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the patches cropped and rotated or reflected.

        Args:
            pixels: uint8 [B, 96, 96, 3].
            words: uint64 [B, 8] from `_draw_words`.
        Returns:
            uint8 [B, crop, crop, 3].
        """
        pixels = crop_centre(pixels, self.crop)
        if not self.transform:
            return np.ascontiguousarray(pixels)
        symmetries = _symmetry_numbers(words).tolist()
        seeds = words[:, _GEOMETRY_WORD].tolist()
        return np.stack([self.transform_one(*each) for each in zip(pixels, symmetries, seeds, strict=True)])

    def transform_one(self, image: NDArray[np.uint8], symmetry: int, word: int) -> NDArray[np.uint8]:
        """Return one patch rotated or reflected. Passes the D4 element, because seeding albumentations is slower."""
        if self.kind == "d4":
            return np.asarray(self.symmetry.apply(image, group_element=self.elements[symmetry]))
        self.flips.set_random_seed(word & 0xFFFFFFFF)
        return np.asarray(self.flips(image=np.ascontiguousarray(image))["image"])


def _symmetry_numbers(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of each patch's symmetry, int64 [B] of 0..7 in albumentations' order."""
    return (words[:, _GEOMETRY_WORD] % np.uint64(len(_SYMMETRIES))).astype(np.int64)


def _color_draws(words: NDArray[np.uint64], strength: float) -> NDArray[np.float32]:
    """Return contrast, saturation, brightness and channel gains of each patch, float32 [B, 6] around 0."""
    uniform = (words[:, _COLOR_WORDS] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2 * uniform - 1) * strength * np.array(_COLOR_WIDTHS)).astype(np.float32)


def _stain_draws(words: NDArray[np.uint64], strength: float) -> NDArray[np.float32]:
    """Return a factor and an offset for each of the three stains of each patch, float32 [B, 6] around 0.

    Uses other bits of the words than `_color_draws`.
    """
    uniform = (words[:, _COLOR_WORDS] & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
    return ((2 * uniform - 1) * strength).astype(np.float32)


@functools.cache
def _stain_matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the normalised stain vectors in optical density, float32 [3, 3], and the inverse matrix."""
    with torch.inference_mode(False):
        stains = torch.tensor(_STAIN_VECTORS)
        stains = stains / stains.norm(dim=1, keepdim=True)
        return stains.to(device), torch.linalg.inv(stains).to(device)


def change_stain(images: Tensor, draws: Tensor) -> Tensor:
    """Change the strength of haematoxylin, eosin and the third stain in optical density (Tellez et al. 2019).

    Args:
        images: uint8 [B, H, W, 3].
        draws: float32 [B, 6] from `_stain_draws`; the offsets are multiplied by 0.1, because densities are small.
    Returns:
        float32 [B, H, W, 3] in 0..255.
    """
    stains, unmixing = _stain_matrices(images.device)
    density = -torch.log((images.reshape(len(images), -1, 3).float() + 1) / 256)
    amounts = torch.matmul(density, unmixing)
    new_amounts = amounts * (1 + draws[:, None, :3]) + 0.1 * draws[:, None, 3:]
    transmitted = 256 * torch.exp(-torch.matmul(new_amounts, stains)) - 1
    return transmitted.clamp(0, 255).reshape(images.shape)


def crop_centre(images: _Images, crop: int) -> _Images:
    """Return the centre square of square images, [B, S, S, C] to [B, crop, crop, C], as a view of their memory."""
    begin = (images.shape[1] - crop) // 2
    return images[:, begin : begin + crop, begin : begin + crop]


@functools.cache
def _channel_statistics(normalise: str) -> tuple[_Channels, _Channels]:
    """Return the channel mean and standard deviation: those of a key of `STATISTICS`, or numbers as text.

    >>> _channel_statistics("0.5,0.5,0.5/0.25,0.25,0.25")
    ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    """
    if normalise in STATISTICS:
        return STATISTICS[normalise]
    mean, deviation = ([float(number) for number in part.split(",")] for part in normalise.split("/"))
    return (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2])


def _color_maps(draws: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the affine colour map of each patch: x becomes matrix @ x + offset, with x in 0..1.

    Saturation mixes each colour with its grey value. Gains scale the channels. Contrast scales the distance to the mean
    colour of the data. Brightness is added.

    Args:
        draws: float32 [B, 6] from `_color_draws`.
        mean: float32 [3], the mean colour in 0..1.
    Returns:
        The matrices, float32 [B, 3, 3], and the offsets, float32 [B, 3].
    """
    contrast, saturation, brightness = (1 + draws[:, 0], 1 + draws[:, 1], draws[:, 2])
    grey = _cached_tensor(_LUMA, draws.device).expand(3, 3)
    identity = torch.eye(3, device=draws.device)
    mixed = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * grey
    matrix = contrast[:, None, None] * (1 + draws[:, 3:6])[:, :, None] * mixed
    offset = (1 - contrast)[:, None] * mean + brightness[:, None]
    return matrix, offset


def to_input(images: Tensor, normalise: str, draws: Tensor | None = None, resolution: int = 0) -> Tensor:
    """Return the input of the network: normalised, channels-last, with colour augmentation if `draws` are given.

    Args:
        images: uint8 or float [B, H, W, 3] in 0..255 on the device.
        normalise: mean and standard deviation: a key of `STATISTICS`, or numbers such as `0.5,0.5,0.5/0.2,0.2,0.2`.
        draws: float32 [B, 6] from `_color_draws`, or None.
        resolution: side of the result: bilinear enlargement, or area averaging to a smaller size; 0 keeps the size.
    Returns:
        float32 [B, 3, H, W] in channels-last memory; H and W are `resolution` if it is set.
    """
    mean, deviation = (_cached_tensor(values, images.device) for values in _channel_statistics(normalise))
    flat = images.reshape(images.shape[0], -1, 3).float()
    if draws is None:
        normalised = torch.addcmul(-mean / deviation, flat, 1 / (255 * deviation))
    else:
        matrix, offset = _color_maps(draws, mean)
        # normalise(matrix @ (x / 255) + offset) as one batched product.
        matrix = matrix.transpose(1, 2) / (255 * deviation)
        normalised = torch.baddbmm(((offset - mean) / deviation)[:, None, :], flat, matrix)
    inputs = normalised.reshape(images.shape).permute(0, 3, 1, 2)
    return _resize(inputs, resolution) if resolution else inputs


def _resize(inputs: Tensor, side: int) -> Tensor:
    """Resize square images: bilinear to a larger side, area averages (antialiased) to a smaller one.

    Args:
        inputs: float [B, C, S, S].
        side: side of the result in pixels.
    Returns:
        float [B, C, side, side] in the same memory format.
    """
    if side <= inputs.shape[-1]:
        return functional.adaptive_avg_pool2d(inputs, side)
    return functional.interpolate(inputs, size=(side, side), mode="bilinear", align_corners=False)
