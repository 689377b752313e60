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

from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import Labels
from claris_kaggle.evaluation.metrics import _require_both_classes

_RESAMPLES = 1000

_LEVEL = 0.95
# With more slides than this the matrix of their pairs is no gain any more, and their shares say the same.
_MOST_PAIRED = 2000
_ScoreColumns = NDArray[np.float64]


@dataclass(frozen=True)
class _Estimate:
    """A figure with its standard error and interval.

    Attributes:
        value, error: the figure and its standard error.
        low, high: the interval at `_LEVEL`.
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


@dataclass(frozen=True)
class _Measured:
    """AUCs of several columns over the same patches, and how they vary together.

    Attributes:
        aucs: float64 [M].
        deviations: float64 [K, M]; the variance of a weighted sum of AUCs is the sum of squares of
            `deviations @ weights`.
        shares: what each slide adds, float64 [slides, M]; None where slides are not known.
        pairs: how many pairs of a malignant and a benign patch have nothing in common, patch or slide.
    """

    aucs: _ScoreColumns
    deviations: _ScoreColumns
    shares: _ScoreColumns | None
    pairs: int

    @property
    def way(self) -> str:
        """How the errors were found: `DeLong` or `slides`."""
        return "DeLong" if self.shares is None else "slides"

    def contrast(self, weights: _ScoreColumns) -> tuple[float, float, float]:
        """A weighted sum of the AUCs, its standard error and degrees of freedom.

        As few slides may make most of an error, its degrees of freedom are Satterthwaite's, from their shares.
        """
        error = float(np.linalg.norm(self.deviations @ weights))
        freedom = math.inf if self.shares is None else _effective_freedom((self.shares @ weights) ** 2)
        return float(self.aucs @ weights), error, freedom

    def estimate(self, column: int) -> _Estimate:
        """A column's AUC with its interval, found on the logit scale, where it is more nearly symmetric."""
        value, error, freedom = self.contrast(np.eye(len(self.aucs))[column])
        if not 0 < value < 1:
            return _Estimate(value, error, *_whole_interval(value, self.pairs), self.way)
        return _Estimate(value, error, *_logit_interval(value, error, _quantile(freedom)), self.way)

    def compare(self, a: int, b: int) -> Comparison:
        """Column `a` against column `b`, paired: what is hard for both drops out."""
        from scipy import stats

        unit = np.eye(len(self.aucs))
        difference, error, freedom = self.contrast(unit[a] - unit[b])
        if error < 1e-12:  # the same order of all patches, up to rounding
            difference = difference if abs(difference) > 1e-12 else 0.0
            return Comparison(difference, 0.0, difference, difference, 0.0 if difference else 1.0, self.way)
        width = _quantile(freedom) * error
        p = float(2 * stats.t(freedom).sf(abs(difference) / error))
        return Comparison(difference, error, difference - width, difference + width, p, self.way)


def measure(labels: Labels, columns: NDArray[Any], slides: Sequence[str] | None = None) -> _Measured:
    """The AUCs of the columns with all that their intervals and comparisons need.

    Without slides the variance is DeLong's. With slides it is that of a bootstrap of slides.

    Args:
        labels: int [N] of 0 and 1, at least two of each.
        columns: [N] or [N, M]; only their order matters.
        slides: the slide of each patch, where it is known.
    Raises:
        DataError: fewer than two patches of a class, or a single slide.
    """
    malignant = np.asarray(labels) == 1
    if slides is None:
        aucs, shares = _patch_shares(labels, columns)
        return _Measured(aucs, shares, None, int(min(malignant.sum(), (~malignant).sum())))
    aucs, shares = _slide_shares(labels, columns, slides)
    names = np.asarray(slides)
    sides = len(np.unique(names[malignant])), len(np.unique(names[~malignant])), len(shares) // 2
    deviations = shares
    if len(shares) <= _MOST_PAIRED:
        samples = _cluster_bootstrap(labels, columns, slides)
        deviations = (samples - samples.mean(axis=0)) / math.sqrt(len(samples) - 1)
    return _Measured(aucs, deviations, shares, min(sides))


def estimate_auc(labels: Labels, probabilities: NDArray[Any], slides: Sequence[str] | None = None) -> _Estimate:
    """The AUC with its interval; arguments and errors as in `measure`."""
    return measure(labels, probabilities, slides).estimate(0)


def compare_aucs(labels: Labels, a: NDArray[Any], b: NDArray[Any], slides: Sequence[str] | None = None) -> Comparison:
    """Whether `a` ranks the patches better than `b`; arguments and errors as in `measure`."""
    return measure(labels, np.stack([a, b], axis=1), slides).compare(0, 1)


def _placements(labels: Labels, values: NDArray[Any]) -> tuple[_ScoreColumns, _ScoreColumns]:
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


def _deviations_by_patch(labels: Labels, columns: NDArray[Any]) -> tuple[_ScoreColumns, _ScoreColumns]:
    """AUC of each column, float64 [M], and each patch's placement about it over its class's number, [N, M]."""
    columns = columns if columns.ndim == 2 else columns[:, None]
    _require_both_classes(labels, columns)
    malignant = np.asarray(labels) == 1
    aucs, found = np.empty(columns.shape[1]), np.empty(columns.shape)
    for number, column in enumerate(columns.T):
        ups, downs = _placements(labels, column)
        aucs[number] = ups.mean()
        found[malignant, number] = (ups - aucs[number]) / len(ups)
        found[~malignant, number] = (downs - aucs[number]) / len(downs)
    return aucs, found


def _delong(labels: Labels, columns: NDArray[Any]) -> tuple[_ScoreColumns, _ScoreColumns]:
    """AUC of each column and their covariance, float64 [M] and [M, M]; arguments and errors as in `_patch_shares`."""
    aucs, shares = _patch_shares(labels, columns)
    return aucs, shares.T @ shares


def _patch_shares(labels: Labels, columns: NDArray[Any]) -> tuple[_ScoreColumns, _ScoreColumns]:
    """AUC of each column, and what each patch adds to its deviation, as if patches were independent.

    The sums of the shares' squares and products are the AUCs' covariance. Source: DeLong, DeLong and
    Clarke-Pearson 1988, by the ranks of Sun and Xu 2014.

    Args:
        labels: [N] of 0 and 1, at least two of each.
        columns: [N] or [N, M].
    Returns:
        float64 [M] and [N, M].
    Raises:
        DataError: fewer than two patches of a class.
    """
    aucs, shares = _deviations_by_patch(labels, columns)
    malignant = np.asarray(labels) == 1
    for name, rows in (("malignant", malignant), ("benign", ~malignant)):
        if rows.sum() < 2:
            raise DataError(f"a single {name} patch", "two of each class are needed to say how sure a figure is")
        shares[rows] *= np.sqrt(rows.sum() / (rows.sum() - 1))
    return aucs, shares


def _slide_shares(labels: Labels, columns: NDArray[Any], slides: Sequence[str]) -> tuple[_ScoreColumns, _ScoreColumns]:
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
    aucs, of_patches = _deviations_by_patch(labels, columns)
    numbers = np.unique(np.asarray(slides), return_inverse=True)[1]
    total = int(numbers.max()) + 1
    if total < 2:
        raise DataError("a single slide", "two or more are needed to say how sure a figure is")
    shares = np.zeros((total, len(aucs)))
    np.add.at(shares, numbers, of_patches)
    return aucs, shares * np.sqrt(total / (total - 1))


def _effective_freedom(squares: _ScoreColumns) -> float:
    """Satterthwaite's degrees of freedom of a sum of independent squares, 1 to their number less one."""
    spread = len(squares) * squares.var(ddof=1)
    return float(np.clip(2 * squares.sum() ** 2 / spread, 1, len(squares) - 1)) if spread else len(squares) - 1.0


def _quantile(freedom: float) -> float:
    """How many standard errors an interval at `_LEVEL` reaches to either side."""
    from scipy import stats

    return float(stats.t.ppf((1 + _LEVEL) / 2, freedom))


def _logit_interval(value: float, error: float, reach: float) -> tuple[float, float]:
    """The interval of a share between 0 and 1, whose logit is about normal."""
    from scipy.special import expit, logit

    width = reach * error / (value * (1 - value))
    return float(expit(logit(value) - width)), float(expit(logit(value) + width))


def _whole_interval(value: float, pairs: int) -> tuple[float, float]:
    """The interval of an AUC of 0 or 1, which has no spread of its own: so many independent pairs were all alike.

    Source: the exact bound of Clopper and Pearson 1934 for `pairs` trials of one outcome.
    """
    width = 1 - ((1 - _LEVEL) / 2) ** (1 / pairs)
    return (1 - width, 1.0) if value > 0 else (0.0, width)


def _cluster_bootstrap(
    labels: Labels, columns: NDArray[Any], slides: Sequence[str], *, resamples: int = _RESAMPLES, seed: int = 0
) -> _ScoreColumns:
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
    _require_both_classes(labels, columns)
    numbers = np.unique(np.asarray(slides), return_inverse=True)[1]
    malignant = np.asarray(labels) == 1
    slides_up, ups = _compress(numbers[malignant])
    slides_down, downs = _compress(numbers[~malignant])
    weights = _resample_weights(numbers, malignant, resamples, np.random.default_rng(seed))
    pairs = (weights[:, slides_up] @ np.bincount(ups)) * (weights[:, slides_down] @ np.bincount(downs))
    results = np.empty((resamples, columns.shape[1]))
    for number, column in enumerate(columns.T):
        wins = _count_wins(column[malignant], ups, column[~malignant], downs)
        results[:, number] = ((weights[:, slides_up] @ wins) * weights[:, slides_down]).sum(axis=1) / pairs
    return results


def _compress(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct numbers, and each one's place among them."""
    distinct, places = np.unique(numbers, return_inverse=True)
    return distinct, places


def _resample_weights(
    numbers: NDArray[np.int64], malignant: NDArray[np.bool_], resamples: int, generator: np.random.Generator
) -> _ScoreColumns:
    """How often each slide is drawn in each resample, float64 [resamples, slides], both classes in each."""
    total = int(numbers.max()) + 1
    has_up, has_down = np.zeros(total), np.zeros(total)
    has_up[numbers[malignant]], has_down[numbers[~malignant]] = 1, 1
    weights = generator.multinomial(total, np.full(total, 1 / total), size=resamples).astype(np.float64)
    while (bad := np.flatnonzero((weights @ has_up == 0) | (weights @ has_down == 0))).size:
        weights[bad] = generator.multinomial(total, np.full(total, 1 / total), size=len(bad))
    return weights


def _count_wins(
    ups: NDArray[Any], slides_up: NDArray[np.int64], downs: NDArray[Any], slides_down: NDArray[np.int64]
) -> _ScoreColumns:
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
