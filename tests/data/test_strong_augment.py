"""Test the augmentation `strong`: it depends only on the random words, and stays within its ranges."""

from __future__ import annotations

import numpy as np
import pytest

from claris_kaggle.data.augment import _draw_words
from claris_kaggle.data.strong_augment import _StrongAugmentation

IDS = [f"{number:040x}" for number in range(300)]


@pytest.fixture(scope="module")
def strong() -> _StrongAugmentation:
    return _StrongAugmentation()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (300, 96, 96, 3), dtype=np.uint8)


def test_a_patch_is_changed_the_same_in_any_order_and_company(strong: _StrongAugmentation, pixels: np.ndarray) -> None:
    words = _draw_words(3, 1, IDS)
    whole = strong(pixels, words)
    assert whole.shape == pixels.shape and whole.dtype == np.uint8
    np.testing.assert_array_equal(_StrongAugmentation()(pixels[40:2:-1], words[40:2:-1]), whole[40:2:-1])
    other = strong(pixels, _draw_words(3, 2, IDS))
    assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.8


def test_each_part_of_the_change_is_left_out_for_some_patches(strong: _StrongAugmentation, pixels: np.ndarray) -> None:
    changed = strong(pixels, _draw_words(0, 0, IDS))
    unchanged = (changed == pixels).all(axis=(1, 2, 3)).mean()
    # None of five parts: 0.5 * 0.7 * 0.7 * 0.5 * 0.8 of all patches, with a standard deviation of 0.017.
    assert 0.098 - 0.07 < unchanged < 0.098 + 0.07


def test_borders_are_mirrored_and_not_black(strong: _StrongAugmentation) -> None:
    grey = np.full((300, 96, 96, 3), (200, 150, 190), dtype=np.uint8)
    assert strong(grey, _draw_words(0, 0, IDS)).min() > 60


def test_holes_are_small_and_have_the_mean_colour(strong: _StrongAugmentation) -> None:
    holes = strong.pipeline.transforms[-1]
    black = np.zeros((96, 96, 3), dtype=np.uint8)
    filled = [holes(image=black)["image"].any(axis=-1) for _ in range(200)]
    shares = [one.mean() for one in filled if one.any()]
    assert 20 <= len(shares) <= 65 and max(shares) <= 4 * 16 * 16 / 96**2
