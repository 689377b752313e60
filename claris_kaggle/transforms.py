"""Augmentation and normalisation, drawn for each patch from (seed, epoch, id) alone.

Geometry is albumentations' on uint8 for a CPU, and the same symmetries on the device for a GPU,
which leaves the host no more than to gather. Colour is one affine map of RGB a patch, folded with
the normalisation and applied to the whole batch on the device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# albumentations asks the network for its newest version at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Channel mean and standard deviation in 0..1: of the competition's training patches, and of
# ImageNet, with which the pretrained weights were made (torchvision's documentation).
STATISTICS = {
    "scratch": ((0.7059, 0.5504, 0.6995), (0.2374, 0.2816, 0.2150)),
    "pretrained": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# albumentations' eight symmetries, in its order: transposed first, then upside down, then mirrored.
TURNS = (
    (False, False, False), (True, True, False), (False, True, True), (True, False, True),
    (False, True, False), (True, True, True), (False, False, True), (True, False, False),
)  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
DRAWS = 8
ORDER, GEOMETRY, COLOR = 0, 1, slice(2, 8)
# Half-widths at strength 1 of contrast, saturation, brightness and the three channel gains.
WIDTHS = (0.2, 0.2, 0.08, 0.08, 0.08, 0.08)


def draw(seed: int, epoch: int, ids: Sequence[str]) -> NDArray[np.uint64]:
    """Random words of each patch, uint64 [N, 8], a pure function of (seed, epoch, id).

    A hash instead of a generator: no state to keep, and the same on every version of NumPy.
    """
    prefix = f"{seed}/{epoch}/"
    digests = (hashlib.blake2b((prefix + name).encode(), digest_size=8 * DRAWS).digest() for name in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(len(ids), DRAWS)


def build_geometry() -> tuple[Any, Sequence[str]]:
    """albumentations' symmetries of the square, and the names of the eight."""
    import albumentations
    from albumentations.core.type_definitions import d4_group_elements

    return albumentations.D4(p=1.0), list(d4_group_elements)


def augment_geometry(
    geometry: tuple[Any, Sequence[str]], pixels: NDArray[np.uint8], words: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """Each patch turned by its own draw, each of the eight symmetries as likely.

    The element is drawn here and handed to albumentations' transform: seeding its own generator for
    each patch takes longer than the turning.

    Args:
        geometry: from `build_geometry`.
        pixels: uint8 [B, 96, 96, 3].
        words: uint64 [B, 8] from `draw`.
    Returns:
        uint8 [B, 96, 96, 3], a new array.
    """
    transform, elements = geometry
    turned = np.empty_like(pixels)
    for row, turn in enumerate(turn_numbers(words).tolist()):
        turned[row] = transform.apply(pixels[row], group_element=elements[turn])
    return turned


def turn_numbers(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Which of the eight symmetries each patch gets, int64 [B] of 0..7 in albumentations' order."""
    return (words[:, GEOMETRY] % np.uint64(len(TURNS))).astype(np.int64)


def turn_on_device(images: Tensor, turns: Tensor) -> Tensor:
    """What `augment_geometry` does, for a whole batch on the device and without waiting for it.

    Args:
        images: uint8 [B, S, S, 3].
        turns: int64 [B] from `turn_numbers`.
    """
    transposed, upside_down, mirrored = torch.tensor(TURNS, device=images.device)[turns].T[:, :, None, None, None]
    images = torch.where(transposed, images.transpose(1, 2), images)
    images = torch.where(upside_down, images.flip(1), images)
    return torch.where(mirrored, images.flip(2), images)


def color_draws(words: NDArray[np.uint64], strength: float) -> NDArray[np.float32]:
    """Contrast, saturation, brightness and channel gains of each patch, float32 [B, 6] about 0."""
    uniform = (words[:, COLOR] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2 * uniform - 1) * strength * np.array(WIDTHS)).astype(np.float32)


def color_maps(draws: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The affine change of colour of each patch: x becomes matrix @ x + offset, x in 0..1.

    Saturation mixes each colour with its grey, gains weigh the channels, contrast acts about the
    mean colour `mean` [3] of the data, brightness is added.

    Args:
        draws: float32 [B, 6] from `color_draws`.
    Returns:
        float32 [B, 3, 3] and [B, 3].
    """
    contrast, saturation, brightness = (1 + draws[:, 0], 1 + draws[:, 1], draws[:, 2])
    grey = torch.tensor(LUMA, device=draws.device).expand(3, 3)
    identity = torch.eye(3, device=draws.device)
    mixed = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * grey
    matrix = contrast[:, None, None] * (1 + draws[:, 3:6])[:, :, None] * mixed
    offset = (1 - contrast)[:, None] * mean + brightness[:, None]
    return matrix, offset


def to_input(images: Tensor, recipe: str, draws: Tensor | None = None) -> Tensor:
    """What the network takes: normalised, channels-last, with the colour change if there is one.

    Args:
        images: uint8 [B, H, W, 3] on the device.
        recipe: whose mean and deviation: scratch or pretrained.
        draws: float32 [B, 6] from `color_draws`, or None.
    Returns:
        float32 [B, 3, H, W] in channels-last memory.
    """
    mean, deviation = (torch.tensor(values, device=images.device) for values in STATISTICS[recipe])
    flat = images.reshape(len(images), -1, 3).float()
    if draws is None:
        shaped = torch.addcmul(-mean / deviation, flat, 1 / (255 * deviation))
    else:
        matrix, offset = color_maps(draws, mean)
        # Folded: normalise(matrix @ (x / 255) + offset), as one batched product.
        matrix = matrix.transpose(1, 2) / (255 * deviation)
        shaped = torch.baddbmm(((offset - mean) / deviation)[:, None, :], flat, matrix)
    return shaped.reshape(images.shape).permute(0, 3, 1, 2)
