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
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import Labels
from claris_kaggle.data.tables import number_texts
from claris_kaggle.evaluation.metrics import _count_below, _require_rankable, _search_ranks

_RESAMPLES = 1000
_CONFIDENCE_LEVEL = 0.95
# With more slides the matrix of slide pairs needs too much memory; the components of the slides give the same variance.
_MAX_PAIRED_SLIDES = 2000


@dataclass(frozen=True)
class _Estimate:
    """An AUC with its standard error and confidence interval.

    Attributes:
        value, error: the AUC and its standard error.
        interval: the ends of the interval at `_CONFIDENCE_LEVEL`.
        interval_by: `slide` if the slides vary independently, `patch` (DeLong) if the patches do.
    """

    value: float
    error: float
    interval: tuple[float, float]
    interval_by: str


@dataclass(frozen=True)
class Comparison:
    """The AUC of `a` minus the AUC of `b` on the same patches.

    Attributes:
        difference, error: the difference and its standard error.
        interval: the ends of the interval at `_CONFIDENCE_LEVEL`.
        p: two-sided p-value.
        interval_by: `slide` if the slides vary independently, `patch` (DeLong) if the patches do.
    """

    difference: float
    error: float
    interval: tuple[float, float]
    p: float
    interval_by: str

    @property
    def p_one_sided(self) -> float:
        """The one-sided p-value of a positive difference."""
        return self.p / 2 if self.difference > 0 else 1 - self.p / 2


@dataclass(frozen=True)
class MeasuredAuc:
    """The AUC of one column of scores, and how it varies with the sample.

    Attributes:
        value: the AUC.
        deviations: float64 [K]; their sum of squares is the variance of the AUC.
        components: contribution of each slide to the deviation, float64 [slides]; None if the slides are unknown.
        pairs: number of independent pairs of a malignant and a benign patch, which share no patch or slide.
    """

    value: float
    deviations: NDArray[np.float64]
    components: NDArray[np.float64] | None
    pairs: int

    @property
    def interval_by(self) -> str:
        """The unit that varies independently: `slide`, or `patch` (DeLong) if the slides are unknown."""
        return "patch" if self.components is None else "slide"

    @cached_property
    def estimate(self) -> _Estimate:
        """The AUC with its interval, which is computed on the logit scale, where it is more symmetric."""
        error = float(np.linalg.norm(self.deviations))
        if not 0 < self.value < 1:
            return _Estimate(self.value, error, _exact_interval(self.value, self.pairs), self.interval_by)
        t_quantile = _t_quantile(_degrees_of_freedom(self.components))
        return _Estimate(self.value, error, _logit_interval(self.value, error, t_quantile), self.interval_by)

    def without_resamples(self) -> MeasuredAuc:
        """Return a copy with the deviations of slides instead of resamples, as from `measure` without `resample`."""
        return self if self.components is None else replace(self, deviations=self.components)

    def compare(self, other: MeasuredAuc) -> Comparison:
        """Compare with other scores of the same patches. Both are measured with the same slides, or both without."""
        difference = self.value - other.value
        error = float(np.linalg.norm(self.deviations - other.deviations))
        if error < 1e-12:  # both columns rank all patches alike, up to rounding
            difference = difference if abs(difference) > 1e-12 else 0.0
            return Comparison(difference, 0.0, (difference, difference), 0.0 if difference else 1.0, self.interval_by)
        components = None if self.components is None or other.components is None else self.components - other.components
        degrees = _degrees_of_freedom(components)
        half_width = _t_quantile(degrees) * error
        p = 2 * _t_tail(abs(difference) / error, degrees)
        return Comparison(difference, error, (difference - half_width, difference + half_width), p, self.interval_by)


def measure(
    labels: Labels, values: NDArray[np.floating], slides: Sequence[str] | None = None, *, resample: bool = True
) -> MeasuredAuc:
    """Return the AUC with the data for its interval and for comparisons.

    Without slides the variance is DeLong's. With slides it is that of a cluster bootstrap over slides. The resamples
    depend on labels and slides only, so columns that are measured one by one can be compared. A single slide shows no
    variation between slides: the variance is DeLong's, and too small.

    Args:
        labels: int [N] of 0 and 1, at least two of each.
        values: [N] scores; only their order matters.
        slides: the slide of each patch; None if unknown.
        resample: False to take the variance from the contributions of the slides (Obuchowski 1997), without resamples.
            This is about ten times as fast.
    Raises:
        DataError: there are fewer than two patches of a class.
    """
    malignant = np.asarray(labels) == 1
    slide_index = None if slides is None else number_texts(slides)
    if slide_index is None or not slide_index.any():  # all patches have the number 0
        value, components = _patch_components(labels, values)
        return MeasuredAuc(value, components, None, int(min(malignant.sum(), (~malignant).sum())))
    value, components = _slide_components(labels, values, slide_index)
    counts = len(np.unique(slide_index[malignant])), len(np.unique(slide_index[~malignant])), len(components) // 2
    deviations = components
    if resample and len(components) <= _MAX_PAIRED_SLIDES:
        samples = _cluster_bootstrap(labels, values, slide_index)
        deviations = (samples - samples.mean()) / math.sqrt(len(samples) - 1)
    return MeasuredAuc(value, deviations, components, min(counts))


def _placements(labels: Labels, values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each patch the share of the other class that it is ranked correctly against; ties count half.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
    Returns:
        float64 for the malignant patches (share of benign patches below) and for the benign patches (share of malignant
        patches above), each in the order of the rows. The mean of either is the AUC.
    """
    malignant = np.asarray(labels) == 1
    positive, negative = np.asarray(values)[malignant], np.asarray(values)[~malignant]
    return _count_below(positive, negative) / len(negative), 1 - _count_below(negative, positive) / len(positive)


def _deviations_by_patch(labels: Labels, values: NDArray[np.floating]) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC and the contribution of each patch, float64 [N].

    The contribution of a patch is its placement minus the AUC, divided by the number of patches of its class.
    """
    _require_rankable(labels, values)
    malignant = np.asarray(labels) == 1
    above, below = _placements(labels, values)
    auc = float(above.mean())
    contributions = np.empty(len(values))
    contributions[malignant] = (above - auc) / len(above)
    contributions[~malignant] = (below - auc) / len(below)
    return auc, contributions


def _patch_components(labels: Labels, values: NDArray[np.floating]) -> tuple[float, NDArray[np.float64]]:
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
    auc, components = _deviations_by_patch(labels, values)
    malignant = np.asarray(labels) == 1
    for name, rows in (("malignant", malignant), ("benign", ~malignant)):
        if rows.sum() < 2:
            raise DataError(f"a single {name} patch", "an interval needs at least two patches of each class")
        components[rows] *= np.sqrt(rows.sum() / (rows.sum() - 1))
    return auc, components


def _slide_components(
    labels: Labels, values: NDArray[np.floating], slides: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC and the contribution of each slide to its deviation.

    A slide's component is the sum of the contributions of its patches. Slides are independent, so the variance of the
    AUC is the sum of the squared components. Source: Obuchowski 1997.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
        slides: [N], the slide of each patch, numbered from 0; at least two different ones.
    Returns:
        The AUC, and float64 [slides].
    """
    auc, contributions = _deviations_by_patch(labels, values)
    total = int(slides.max()) + 1
    return auc, np.bincount(slides, contributions) * np.sqrt(total / (total - 1))


def _degrees_of_freedom(components: NDArray[np.float64] | None) -> float:
    """Return the degrees of freedom of a standard error: infinite for independent patches, without `components`.

    A few slides may cause most of an error. Satterthwaite's number is at most the number of slides minus 1.
    """
    if components is None:
        return math.inf
    squares = components**2
    spread = len(squares) * squares.var(ddof=1)
    return float(min(2 * squares.sum() ** 2 / spread, len(squares) - 1)) if spread else len(squares) - 1.0


def _t_quantile(degrees: float) -> float:
    """Return the quantile of Student's t for an interval at `_CONFIDENCE_LEVEL`: its half-width in standard errors."""
    from scipy.special import ndtri, stdtrit

    probability = (1 + _CONFIDENCE_LEVEL) / 2
    return float(stdtrit(degrees, probability) if math.isfinite(degrees) else ndtri(probability))


def _t_tail(statistic: float, degrees: float) -> float:
    """Return the probability that Student's t is above the statistic."""
    from scipy.special import ndtr, stdtr

    return float(stdtr(degrees, -statistic) if math.isfinite(degrees) else ndtr(-statistic))


def _logit_interval(value: float, error: float, t_quantile: float) -> tuple[float, float]:
    """Return the interval of a value between 0 and 1 whose logit is approximately normal."""
    from scipy.special import expit, logit

    half_width = t_quantile * error / (value * (1 - value))
    return float(expit(logit(value) - half_width)), float(expit(logit(value) + half_width))


def _exact_interval(value: float, pairs: int) -> tuple[float, float]:
    """Return the interval of an AUC of exactly 0 or 1, whose standard error is 0.

    Source: the exact bound of Clopper and Pearson 1934 for `pairs` independent trials with the same outcome.
    """
    half_width = 1 - ((1 - _CONFIDENCE_LEVEL) / 2) ** (1 / pairs)
    return (1 - half_width, 1.0) if value > 0 else (0.0, half_width)


def _cluster_bootstrap(
    labels: Labels,
    values: NDArray[np.floating],
    slides: NDArray[np.int64],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the AUC in resamples of slides, drawn with replacement (cluster bootstrap).

    The numerator of the AUC is the number of correctly ranked pairs of a malignant and a benign patch. These pairs are
    counted once for each pair of slides. Each resample is then a weighted sum of this matrix.

    Args:
        labels: [N] of 0 and 1, both present.
        values: [N].
        slides: [N], the slide of each patch, numbered from 0.
        resamples: number of resamples.
        seed: seed of the resamples.
    Returns:
        float64 [resamples]; resamples with one class only are drawn again.
    """
    _require_rankable(labels, values)
    malignant = np.asarray(labels) == 1
    positive_slides, positive_index = np.unique(slides[malignant], return_inverse=True)
    negative_slides, negative_index = np.unique(slides[~malignant], return_inverse=True)
    weights = _resample_weights(slides, malignant, resamples, np.random.default_rng(seed))
    positive_weights, negative_weights = weights[:, positive_slides], weights[:, negative_slides]
    pairs = (positive_weights @ np.bincount(positive_index)) * (negative_weights @ np.bincount(negative_index))
    correct = _count_correct_pairs(values[malignant], positive_index, values[~malignant], negative_index)
    return ((positive_weights @ correct) * negative_weights).sum(axis=1) / pairs


def _resample_weights(
    slide_index: NDArray[np.int64], malignant: NDArray[np.bool_], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the count of each slide in each resample, float64 [resamples, slides]. Each resample has both classes."""
    total = int(slide_index.max()) + 1
    has_positive, has_negative = np.zeros(total), np.zeros(total)
    has_positive[slide_index[malignant]], has_negative[slide_index[~malignant]] = 1, 1
    weights = generator.multinomial(total, np.full(total, 1 / total), size=resamples).astype(np.float64)
    while (one_class := np.flatnonzero((weights @ has_positive == 0) | (weights @ has_negative == 0))).size:
        weights[one_class] = generator.multinomial(total, np.full(total, 1 / total), size=len(one_class))
    return weights


def _count_correct_pairs(
    positive: NDArray[np.floating],
    positive_slides: NDArray[np.int64],
    negative: NDArray[np.floating],
    negative_slides: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the number of correctly ranked pairs of patches for each pair of slides; ties count half.

    Args:
        positive, negative: values of the malignant and benign patches.
        positive_slides, negative_slides: slides of these patches, 0..P-1 and 0..Q-1.
    Returns:
        float64 [P, Q].
    """
    order = np.argsort(positive)
    positive, positive_slides = positive[order], positive_slides[order]
    shape = (int(positive_slides.max()) + 1, int(negative_slides.max()) + 1)
    correct = np.empty(shape)
    # For each benign patch: the first sorted malignant patch that is not below it, and the first that is above it.
    not_below, above = _search_ranks(negative, positive)
    by_slide = np.argsort(negative_slides, kind="stable")
    bounds = np.searchsorted(negative_slides[by_slide], np.arange(shape[1] + 1))
    for slide in range(shape[1]):
        rows = by_slide[bounds[slide] : bounds[slide + 1]]
        starts = np.bincount(np.concatenate([above[rows], not_below[rows]]), minlength=len(positive) + 1)[:-1]
        correct[:, slide] = np.bincount(positive_slides, np.cumsum(starts, dtype=np.float64)) / 2
    return correct
