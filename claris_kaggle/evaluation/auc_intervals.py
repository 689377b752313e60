"""Confidence intervals of the AUC (DeLong's variance, cluster bootstrap over slides), and the comparison of two runs.

Patches of one slide are similar. If the slides are known, an interval must resample slides, not patches. DeLong's
variance assumes independent patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import Labels
from claris_kaggle.evaluation.metrics import _require_both_classes, midranks

_RESAMPLES = 1000

_LEVEL = 0.95
# Above this number of slides the matrix of slide pairs is too costly; the shares give the same variance.
_MOST_PAIRED = 2000


@dataclass(frozen=True)
class _Estimate:
    """An AUC with its standard error and confidence interval.

    Attributes:
        value, error: the AUC and its standard error.
        interval: the ends of the interval at `_LEVEL`.
        way: method of the standard error: `DeLong` or `slides`.
    """

    value: float
    error: float
    interval: tuple[float, float]
    way: str


@dataclass(frozen=True)
class Comparison:
    """The AUC of `a` minus the AUC of `b` on the same patches.

    Attributes:
        difference, error: the difference and its standard error.
        interval: the ends of the interval at `_LEVEL`.
        p: two-sided p-value.
        way: method of the standard error: `DeLong` or `slides`.
    """

    difference: float
    error: float
    interval: tuple[float, float]
    p: float
    way: str

    @property
    def doubt(self) -> float:
        """The one-sided p-value of a positive difference."""
        return self.p / 2 if self.difference > 0 else 1 - self.p / 2


@dataclass(frozen=True)
class MeasuredAuc:
    """The AUC of one column of scores, and how it varies with the sample.

    Attributes:
        value: the AUC.
        deviations: float64 [K]; their sum of squares is the variance of the AUC.
        shares: contribution of each slide to the deviation, float64 [slides]; None if the slides are unknown.
        pairs: number of independent pairs of a malignant and a benign patch, which share no patch or slide.
    """

    value: float
    deviations: NDArray[np.float64]
    shares: NDArray[np.float64] | None
    pairs: int

    @property
    def way(self) -> str:
        """The method of the standard errors: `DeLong` or `slides`."""
        return "DeLong" if self.shares is None else "slides"

    @cached_property
    def estimate(self) -> _Estimate:
        """The AUC with its interval, which is computed on the logit scale, where it is more symmetric."""
        error = float(np.linalg.norm(self.deviations))
        if not 0 < self.value < 1:
            return _Estimate(self.value, error, _whole_interval(self.value, self.pairs), self.way)
        reach = _quantile(_effective_freedom(self.shares))
        return _Estimate(self.value, error, _logit_interval(self.value, error, reach), self.way)

    def without_resamples(self) -> MeasuredAuc:
        """Return a copy with the deviations of slides instead of resamples, as from `measure` without `resample`."""
        return self if self.shares is None else replace(self, deviations=self.shares)

    def compare(self, other: MeasuredAuc) -> Comparison:
        """Compare with other scores of the same patches. Both are measured with the same slides, or both without."""
        difference = self.value - other.value
        error = float(np.linalg.norm(self.deviations - other.deviations))
        if error < 1e-12:  # both columns rank all patches alike, up to rounding
            difference = difference if abs(difference) > 1e-12 else 0.0
            return Comparison(difference, 0.0, (difference, difference), 0.0 if difference else 1.0, self.way)
        shares = None if self.shares is None or other.shares is None else self.shares - other.shares
        freedom = _effective_freedom(shares)
        width = _quantile(freedom) * error
        p = 2 * _tail(abs(difference) / error, freedom)
        return Comparison(difference, error, (difference - width, difference + width), p, self.way)


def measure(
    labels: Labels, values: NDArray[np.floating], slides: Sequence[str] | None = None, *, resample: bool = True
) -> MeasuredAuc:
    """Return the AUC with the data for its interval and for comparisons.

    Without slides the variance is DeLong's. With slides it is that of a cluster bootstrap over slides. The resamples
    depend on labels and slides only, so columns that are measured one by one can be compared.

    Args:
        labels: int [N] of 0 and 1, at least two of each.
        values: [N] scores; only their order matters.
        slides: the slide of each patch; None if unknown.
        resample: False to take the variance from the contributions of the slides (Obuchowski 1997), without resamples.
            This is about ten times as fast.
    Raises:
        DataError: there are fewer than two patches of a class, or a single slide.
    """
    malignant = np.asarray(labels) == 1
    if slides is None:
        value, shares = _patch_shares(labels, values)
        return MeasuredAuc(value, shares, None, int(min(malignant.sum(), (~malignant).sum())))
    numbers = _number_slides(slides)
    value, shares = _slide_shares(labels, values, numbers)
    sides = len(np.unique(numbers[malignant])), len(np.unique(numbers[~malignant])), len(shares) // 2
    deviations = shares
    if resample and len(shares) <= _MOST_PAIRED:
        samples = _cluster_bootstrap(labels, values, numbers)
        deviations = (samples - samples.mean()) / math.sqrt(len(samples) - 1)
    return MeasuredAuc(value, deviations, shares, min(sides))


def _placements(labels: Labels, values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of the other class that each patch is ranked correctly against; ties count half.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
    Returns:
        float64 for the malignant patches (share of benign patches below) and for the benign patches (share of malignant
        patches above), each in the order of the rows. The mean of either is the AUC.
    """
    malignant = np.asarray(labels) == 1
    ups, downs = np.asarray(values)[malignant], np.asarray(values)[~malignant]
    together = midranks(np.concatenate([ups, downs]))
    above = (together[: len(ups)] - midranks(ups)) / len(downs)
    below = 1 - (together[len(ups) :] - midranks(downs)) / len(ups)
    return above, below


def _deviations_by_patch(labels: Labels, values: NDArray[np.floating]) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC and the contribution of each patch, float64 [N].

    The contribution of a patch is its placement minus the AUC, divided by the number of patches of its class.
    """
    _require_both_classes(labels, values)
    malignant = np.asarray(labels) == 1
    ups, downs = _placements(labels, values)
    auc = float(ups.mean())
    found = np.empty(len(values))
    found[malignant] = (ups - auc) / len(ups)
    found[~malignant] = (downs - auc) / len(downs)
    return auc, found


def _patch_shares(labels: Labels, values: NDArray[np.floating]) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC and the contribution of each patch to its deviation, for independent patches.

    The sums of squares and products of the contributions are the covariance of AUCs. Source: DeLong, DeLong and
    Clarke-Pearson 1988, computed from ranks as in Sun and Xu 2014.

    Args:
        labels: [N] of 0 and 1, at least two of each.
        values: [N].
    Returns:
        The AUC, and float64 [N].
    Raises:
        DataError: there are fewer than two patches of a class.
    """
    auc, shares = _deviations_by_patch(labels, values)
    malignant = np.asarray(labels) == 1
    for name, rows in (("malignant", malignant), ("benign", ~malignant)):
        if rows.sum() < 2:
            raise DataError(f"a single {name} patch", "an interval needs at least two patches of each class")
        shares[rows] *= np.sqrt(rows.sum() / (rows.sum() - 1))
    return auc, shares


def _number_slides(slides: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of the slide of each patch, int64 [N], from 0 in the order of the slides' names."""
    # np.unique sorts all texts, which takes ten times as long.
    return pd.factorize(np.asarray(slides, dtype=object), sort=True)[0]


def _slide_shares(
    labels: Labels, values: NDArray[np.floating], slides: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC and the contribution of each slide to its deviation.

    The share of a slide is the sum of the contributions of its patches. Slides are independent, so the variance of the
    AUC is the sum of the squared shares. Source: Obuchowski 1997.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
        slides: [N], the slide of each patch, numbered from 0; at least two different ones.
    Returns:
        The AUC, and float64 [slides].
    Raises:
        DataError: there is a single slide.
    """
    auc, of_patches = _deviations_by_patch(labels, values)
    total = int(slides.max()) + 1
    if total < 2:
        raise DataError("a single slide", "an interval needs at least two slides")
    return auc, np.bincount(slides, of_patches) * np.sqrt(total / (total - 1))


def _effective_freedom(shares: NDArray[np.float64] | None) -> float:
    """Return the degrees of freedom of a standard error: infinite for independent patches, without `shares`.

    A few slides may cause most of an error. Satterthwaite's number is at most the number of slides minus 1.
    """
    if shares is None:
        return math.inf
    squares = shares**2
    spread = len(squares) * squares.var(ddof=1)
    return float(min(2 * squares.sum() ** 2 / spread, len(squares) - 1)) if spread else len(squares) - 1.0


def _quantile(freedom: float) -> float:
    """Return the half-width of an interval at `_LEVEL` in standard errors (quantile of Student's t)."""
    from scipy.special import ndtri, stdtrit

    share = (1 + _LEVEL) / 2
    return float(stdtrit(freedom, share) if math.isfinite(freedom) else ndtri(share))


def _tail(errors: float, freedom: float) -> float:
    """Return the probability that Student's t is above `errors` standard errors."""
    from scipy.special import ndtr, stdtr

    return float(stdtr(freedom, -errors) if math.isfinite(freedom) else ndtr(-errors))


def _logit_interval(value: float, error: float, reach: float) -> tuple[float, float]:
    """Return the interval of a value between 0 and 1 whose logit is approximately normal."""
    from scipy.special import expit, logit

    width = reach * error / (value * (1 - value))
    return float(expit(logit(value) - width)), float(expit(logit(value) + width))


def _whole_interval(value: float, pairs: int) -> tuple[float, float]:
    """Return the interval of an AUC of exactly 0 or 1, whose standard error is 0.

    Source: the exact bound of Clopper and Pearson 1934 for `pairs` independent trials with the same outcome.
    """
    width = 1 - ((1 - _LEVEL) / 2) ** (1 / pairs)
    return (1 - width, 1.0) if value > 0 else (0.0, width)


def _cluster_bootstrap(
    labels: Labels,
    values: NDArray[np.floating],
    slides: NDArray[np.int64],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the AUC in resamples of slides, drawn with replacement (cluster bootstrap).

    The numerator of the AUC is a sum over pairs of a malignant and a benign patch. It is counted once for each pair of
    slides. Each resample is then a weighted sum of this matrix.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
        slides: [N], the slide of each patch, numbered from 0.
        resamples: number of resamples.
        seed: seed of the resamples.
    Returns:
        float64 [resamples]; resamples with one class only are drawn again.
    """
    _require_both_classes(labels, values)
    malignant = np.asarray(labels) == 1
    slides_up, ups = _compress(slides[malignant])
    slides_down, downs = _compress(slides[~malignant])
    weights = _resample_weights(slides, malignant, resamples, np.random.default_rng(seed))
    pairs = (weights[:, slides_up] @ np.bincount(ups)) * (weights[:, slides_down] @ np.bincount(downs))
    wins = _count_wins(values[malignant], ups, values[~malignant], downs)
    return ((weights[:, slides_up] @ wins) * weights[:, slides_down]).sum(axis=1) / pairs


def _compress(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct numbers, and the index of each number among them."""
    distinct, places = np.unique(numbers, return_inverse=True)
    return distinct, places


def _resample_weights(
    numbers: NDArray[np.int64], malignant: NDArray[np.bool_], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the count of each slide in each resample, float64 [resamples, slides]. Each resample has both classes."""
    total = int(numbers.max()) + 1
    has_up, has_down = np.zeros(total), np.zeros(total)
    has_up[numbers[malignant]], has_down[numbers[~malignant]] = 1, 1
    weights = generator.multinomial(total, np.full(total, 1 / total), size=resamples).astype(np.float64)
    while (bad := np.flatnonzero((weights @ has_up == 0) | (weights @ has_down == 0))).size:
        weights[bad] = generator.multinomial(total, np.full(total, 1 / total), size=len(bad))
    return weights


def _count_wins(
    ups: NDArray[np.floating],
    slides_up: NDArray[np.int64],
    downs: NDArray[np.floating],
    slides_down: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the number of correctly ranked pairs of patches for each pair of slides; ties count half.

    Args:
        ups, downs: values of the malignant and benign patches.
        slides_up, slides_down: slides of these patches, 0..U-1 and 0..D-1.
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
        # searchsorted is many times as fast if the searched values are sorted.
        below = np.searchsorted(values, ups, "left") + np.searchsorted(values, ups, "right")
        wins[:, slide] = np.bincount(slides_up, below) / 2
    return wins
