"""A bootstrap of whole slides, for AUCs: every resample a weighted sum of wins that were counted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.metrics import Labels, require_both_classes

RESAMPLES = 1000
Columns = NDArray[np.float64]


def cluster_bootstrap(
    labels: Labels, columns: NDArray[Any], slides: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Columns:
    """AUC of each column in resamples of whole slides, drawn with replacement.

    The AUC's numerator is a sum over pairs of a malignant and a benign patch. It is counted once
    for each pair of slides; every resample is then a weighted sum of that matrix.

    Args:
        labels: [N] of 0 and 1, both present.
        columns: [N] or [N, M].
        slides: [N].
        seed: of the resamples.
    Returns:
        float64 [resamples, M]; resamples that hold one class alone are drawn again.
    """
    columns = columns if columns.ndim == 2 else columns[:, None]
    require_both_classes(labels, columns)
    numbers = np.unique(np.asarray(slides), return_inverse=True)[1]
    malignant = np.asarray(labels) == 1
    slides_up, ups = compress(numbers[malignant])
    slides_down, downs = compress(numbers[~malignant])
    weights = resample_weights(numbers, malignant, resamples, np.random.default_rng(seed))
    pairs = (weights[:, slides_up] @ np.bincount(ups)) * (weights[:, slides_down] @ np.bincount(downs))
    results = np.empty((resamples, columns.shape[1]))
    for number, column in enumerate(columns.T):
        wins = count_wins(column[malignant], ups, column[~malignant], downs)
        results[:, number] = ((weights[:, slides_up] @ wins) * weights[:, slides_down]).sum(axis=1) / pairs
    return results


def compress(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct numbers, and each one's place among them."""
    distinct, places = np.unique(numbers, return_inverse=True)
    return distinct, places


def resample_weights(
    numbers: NDArray[np.int64], malignant: NDArray[np.bool_], resamples: int, generator: np.random.Generator
) -> Columns:
    """How often each slide is drawn in each resample, float64 [resamples, slides], both classes in each."""
    total = int(numbers.max()) + 1
    has_up, has_down = np.zeros(total), np.zeros(total)
    has_up[numbers[malignant]], has_down[numbers[~malignant]] = 1, 1
    weights = generator.multinomial(total, np.full(total, 1 / total), size=resamples).astype(np.float64)
    while (bad := np.flatnonzero((weights @ has_up == 0) | (weights @ has_down == 0))).size:
        weights[bad] = generator.multinomial(total, np.full(total, 1 / total), size=len(bad))
    return weights


def count_wins(
    ups: NDArray[Any], slides_up: NDArray[np.int64], downs: NDArray[Any], slides_down: NDArray[np.int64]
) -> Columns:
    """For each pair of slides, the pairs of patches in their right order, ties by half.

    Args:
        ups, downs: values of the malignant and of the benign patches.
        slides_up, slides_down: their slides, 0..U-1 and 0..D-1.
    Returns:
        float64 [U, D].
    """
    order = np.argsort(ups, kind="stable")
    ups, slides_up = ups[order], slides_up[order]
    shape = (int(slides_up.max()) + 1, int(slides_down.max()) + 1)
    wins = np.empty(shape)
    by_slide = np.argsort(slides_down, kind="stable")
    bounds = np.searchsorted(slides_down[by_slide], np.arange(shape[1] + 1))
    for slide in range(shape[1]):
        values = np.sort(downs[by_slide[bounds[slide] : bounds[slide + 1]]])
        # Sorted needles walk through the haystack once; that is many times as fast as in random order.
        below = np.searchsorted(values, ups, "left") + np.searchsorted(values, ups, "right")
        wins[:, slide] = np.bincount(slides_up, below, minlength=shape[0]) / 2
    return wins
