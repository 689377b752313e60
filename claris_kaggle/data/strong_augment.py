"""The augmentation `strong`: distortions and colour changes in the ranges of published solutions.

The ranges are those of a team at place 15 of the competition (private score 0.9795): shift 0.06, scale 0.5, rotation by
45 degrees, elastic and grid distortion, brightness, gamma, HSV 20 and CLAHE. Parameters that its write-up does not give
have albumentations' defaults, except the elastic distortion and CLAHE, which are weaker. Holes follow DeVries and
Taylor (2017). One hole hides at most a quarter of the labelled centre.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.data.augment import _GEOMETRY_WORD, STATISTICS

_SHIFT, _SCALE, _DEGREES = 0.0625, (0.5, 1.5), 45
_ELASTIC, _ELASTIC_SIGMA, _GRID_LIMIT = 40, 6, 0.3  # elastic shifts of about 2 pixels, smooth over 6
_HSV, _BRIGHTNESS, _GAMMA, _CLAHE = 20, 0.2, (80, 120), (1, 2)
_HOLES, _HOLE_SIDE = (1, 4), (8, 16)


class _StrongAugmentation:
    """Random distortions and colour changes of each patch, before its rotation or reflection.

    Each change is applied to a part of the patches only, so that most keep their colour or their shape.
    """

    def __init__(self) -> None:
        import albumentations
        import cv2

        mirrored = {"border_mode": cv2.BORDER_REFLECT_101, "interpolation": cv2.INTER_LINEAR}
        distortions = [
            albumentations.ElasticTransform(_ELASTIC, _ELASTIC_SIGMA, p=1.0, **mirrored),
            albumentations.GridDistortion(distort_limit=_GRID_LIMIT, p=1.0, **mirrored),
        ]
        contrasts = [
            albumentations.RandomBrightnessContrast(_BRIGHTNESS, _BRIGHTNESS, p=1.0),
            albumentations.RandomGamma(_GAMMA, p=1.0),
            albumentations.CLAHE(_CLAHE, p=1.0),
        ]
        fill = tuple(255 * value for value in STATISTICS["patches"][0])
        self.pipeline = albumentations.Compose(
            [
                albumentations.Affine(
                    # One factor for both axes, as in the published shift-scale-rotate.
                    scale=_SCALE,
                    translate_percent=(-_SHIFT, _SHIFT),
                    rotate=(-_DEGREES, _DEGREES),
                    keep_ratio=True,
                    p=0.5,
                    **mirrored,
                ),
                albumentations.OneOf(distortions, p=0.3),
                albumentations.HueSaturationValue(_HSV, _HSV, _HSV, p=0.3),
                albumentations.OneOf(contrasts, p=0.5),
                albumentations.CoarseDropout(_HOLES, _HOLE_SIDE, _HOLE_SIDE, fill=fill, p=0.2),
            ]
        )

    def __call__(self, pixels: NDArray[np.uint8], words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the augmented patches.

        Args:
            pixels: uint8 [B, 96, 96, 3].
            words: uint64 [B, 8] from `_draw_words`. Other bits are used than for the rotation.
        Returns:
            uint8 [B, 96, 96, 3].
        """
        seeds = (words[:, _GEOMETRY_WORD] >> np.uint64(32)).tolist()
        return np.stack([self.augment_one(*arguments) for arguments in zip(pixels, seeds, strict=True)])

    def augment_one(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return one augmented patch. All transforms share two generators; two for each take ten times longer."""
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.asarray(self.pipeline(image=image)["image"])
