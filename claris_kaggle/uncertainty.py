"""How sure an AUC is: DeLong's variance, a bootstrap of slides, and the comparison of two runs.

Patches of one slide resemble each other, so where the slides are known an interval must let
whole slides vary, not patches; DeLong's variance takes every patch for independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.errors import DataError
from claris_kaggle.metrics import Labels, require_both_classes

LEVEL = 0.95
RESAMPLES = 1000
# With more slides than this the matrix of their pairs is no gain any more, and their shares say the same.
MOST_PAIRED = 2000
Columns = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error and interval.

    Attributes:
        value, error: the figure and its standard error.
        low, high: the interval at `LEVEL`.
        way: how the error was found: `DeLong` or `slides`.
    """

    value: float
    error: float
    low: float
    high: float
    way: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"value": self.value, "error": self.error, "interval": [self.low, self.high], "way": self.way}


@dataclass(frozen=True)
class Comparison:
    """AUC of `a` minus AUC of `b` on the same patches, with its error, interval and two-sided p-value."""

    difference: float
    error: float
    low: float
    high: float
    p: float
    way: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        ends = [self.low, self.high]
        return {"difference": self.difference, "error": self.error, "interval": ends, "p": self.p, "way": self.way}


def placements(labels: Labels, values: NDArray[Any]) -> tuple[Columns, Columns]:
    """The share of the other class that each patch stands on the right side of, ties by half.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
    Returns:
        float64 of the malignant patches (share of benign ones below) and of the benign ones (share of
        malignant ones above), each in the order of the rows. The mean of either is the AUC.
    """
    from scipy.stats import rankdata

    malignant = np.asarray(labels) == 1
    ups, downs = np.asarray(values)[malignant], np.asarray(values)[~malignant]
    together = rankdata(np.concatenate([ups, downs]))
    above = (together[: len(ups)] - rankdata(ups)) / len(downs)
    below = 1 - (together[len(ups) :] - rankdata(downs)) / len(ups)
    return above, below


def delong(labels: Labels, columns: NDArray[Any]) -> tuple[Columns, Columns]:
    """AUC of each column and their covariance, as if patches were independent.

    Source: DeLong, DeLong and Clarke-Pearson 1988, by the ranks of Sun and Xu 2014.

    Args:
        labels: [N] of 0 and 1, at least two of each.
        columns: [N] or [N, M].
    Returns:
        float64 [M] and [M, M].
    Raises:
        DataError: fewer than two patches of a class.
    """
    ups, downs = placement_columns(labels, columns)
    if min(len(ups), len(downs)) < 2:
        raise DataError(f"{len(ups)} malignant and {len(downs)} benign patches", "two of each are needed")
    covariance = np.cov(ups, rowvar=False) / len(ups) + np.cov(downs, rowvar=False) / len(downs)
    return ups.mean(axis=0), np.atleast_2d(covariance)


def placement_columns(labels: Labels, columns: NDArray[Any]) -> tuple[Columns, Columns]:
    """`placements` of each column, float64 [P, M] and [N - P, M]."""
    columns = as_columns(columns)
    require_both_classes(labels, columns)
    parts = [placements(labels, column) for column in columns.T]
    return np.stack([part[0] for part in parts], axis=1), np.stack([part[1] for part in parts], axis=1)


def as_columns(columns: NDArray[Any]) -> NDArray[Any]:
    """[N, M], also where one column was given as [N]."""
    return columns if columns.ndim == 2 else columns[:, None]


def slide_shares(labels: Labels, columns: NDArray[Any], slides: Sequence[str]) -> tuple[Columns, Columns]:
    """AUC of each column, and what each slide adds to its deviation.

    A slide's share is the sum of its patches' placements about their mean. Slides are independent,
    so the AUC's variance is the sum of the shares' squares. Source: Obuchowski 1997.

    Args:
        slides: [N], the slide of each patch; at least two different ones.
    Returns:
        float64 [M] and [slides, M].
    Raises:
        DataError: a single slide.
    """
    ups, downs = placement_columns(labels, columns)
    numbers = np.unique(np.asarray(slides), return_inverse=True)[1]
    total = int(numbers.max()) + 1
    if total < 2:
        raise DataError("a single slide", "two or more are needed to say how sure a figure is")
    malignant = np.asarray(labels) == 1
    aucs = ups.mean(axis=0)
    shares = np.zeros((total, ups.shape[1]))
    np.add.at(shares, numbers[malignant], (ups - aucs) / len(ups))
    np.add.at(shares, numbers[~malignant], (downs - aucs) / len(downs))
    return aucs, shares * np.sqrt(total / (total - 1))


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
    columns = as_columns(columns)
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


def contrast(
    labels: Labels, columns: NDArray[Any], weights: Columns, slides: Sequence[str] | None
) -> tuple[float, float, float, str]:
    """A weighted sum of the columns' AUCs, its standard error, degrees of freedom, and the way's name.

    Without slides the error is DeLong's. With slides it is that of the bootstrap of slides, and as
    few slides may make most of it, the degrees of freedom are Satterthwaite's, from their shares.
    """
    if slides is None:
        aucs, covariance = delong(labels, columns)
        variance = max(0.0, float(weights @ covariance @ weights))
        return float(aucs @ weights), math.sqrt(variance), math.inf, "DeLong"
    aucs, shares = slide_shares(labels, columns, slides)
    squares = (shares @ weights) ** 2
    spread = len(squares) * squares.var(ddof=1)
    freedom = float(np.clip(2 * squares.sum() ** 2 / spread, 1, len(squares) - 1)) if spread else len(squares) - 1.0
    error = np.sqrt(squares.sum())
    if len(squares) <= MOST_PAIRED:
        error = np.std(cluster_bootstrap(labels, columns, slides) @ weights, ddof=1)
    return float(aucs @ weights), float(error), freedom, "slides"


def estimate_auc(labels: Labels, probabilities: NDArray[Any], slides: Sequence[str] | None = None) -> Estimate:
    """The AUC with its interval, found on the logit scale, where it is more nearly symmetric.

    Args:
        labels: int [N] of 0 and 1, at least two of each.
        probabilities: [N]; only their order matters.
        slides: the slide of each patch, where it is known.
    Raises:
        DataError: one class alone, or a single slide.
    """
    from scipy import stats

    value, error, freedom, way = contrast(labels, probabilities, np.array([1.0]), slides)
    return Estimate(value, error, *logit_interval(value, error, stats.t.ppf((1 + LEVEL) / 2, freedom)), way)


def logit_interval(value: float, error: float, quantile: float) -> tuple[float, float]:
    """The interval of a share whose logit is about normal; a share of 0 or 1 has none but itself."""
    from scipy.special import expit, logit

    if not 0 < value < 1:
        return value, value
    width = quantile * error / (value * (1 - value))
    return float(expit(logit(value) - width)), float(expit(logit(value) + width))


def compare_aucs(labels: Labels, a: NDArray[Any], b: NDArray[Any], slides: Sequence[str] | None = None) -> Comparison:
    """Whether `a` ranks the patches better than `b`: paired, so what is hard for both drops out.

    Raises:
        DataError: one class alone, or a single slide.
    """
    from scipy import stats

    difference, error, freedom, way = contrast(labels, np.stack([a, b], axis=1), np.array([1.0, -1.0]), slides)
    if error < 1e-12:  # the same order of all patches, up to rounding
        return Comparison(difference, 0.0, difference, difference, 1.0 if abs(difference) < 1e-12 else 0.0, way)
    law = stats.t(freedom)
    width = float(law.ppf((1 + LEVEL) / 2) * error)
    p = float(2 * law.sf(abs(difference) / error))
    return Comparison(difference, error, difference - width, difference + width, p, way)
