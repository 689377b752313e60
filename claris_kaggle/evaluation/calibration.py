"""Calibration curve and temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.data.arrays import Labels, Probabilities
from claris_kaggle.evaluation.metrics import clip_probabilities

_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class CalibrationCurve:
    """Predicted probability and observed share in bins of patches.

    Attributes:
        predicted: mean predicted probability of each bin.
        observed: share of malignant patches in each bin.
        patches: number of patches in each bin.
    """

    predicted: list[float]
    observed: list[float]
    patches: list[float]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of predicted and observed, weighted by bin size."""
        sizes = np.array(self.patches)
        return float(np.abs(np.array(self.predicted) - np.array(self.observed)) @ sizes / sizes.sum())


def calibration_curve(
    labels: Labels, probabilities: NDArray[np.floating], bins: int = _CALIBRATION_BINS
) -> CalibrationCurve:
    """Return the calibration curve over bins with about equal numbers of patches; equal probabilities share a bin.

    Args:
        labels: [N] of 0 and 1.
        probabilities: float [N] in 0..1.
        bins: number of bins if all probabilities differ.
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) == 1
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.split(order, _bin_edges(values[order], bins)) if len(part)]
    return CalibrationCurve(
        predicted=[float(values[part].mean()) for part in parts],
        observed=[float(truth[part].mean()) for part in parts],
        patches=[float(len(part)) for part in parts],
    )


def _bin_edges(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the first row of each bin after the first, for ascending values. Never splits equal values."""
    edges = np.arange(1, bins) * len(values) // bins
    edges = edges[edges > 0]
    boundaries = np.searchsorted(values, values[edges], "left"), np.searchsorted(values, values[edges - 1], "right")
    return np.unique(np.concatenate(boundaries))


def fit_temperature(labels: Labels, probabilities: NDArray[np.floating]) -> float:
    """Return the temperature with the smallest log loss (Guo et al. 2017); above 1 it lowers the confidence."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, logit

    logits = logit(clip_probabilities(probabilities))
    signed = np.where(np.asarray(labels) == 1, logits, -logits)

    def loss(log_temperature: float) -> float:
        return float(-log_expit(signed * np.exp(-log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))


def apply_temperature(probabilities: NDArray[np.floating], temperature: float) -> Probabilities:
    """Return the probabilities after dividing their logits by the temperature; float64 stays float64, else float32.

    The order does not change, and different probabilities stay different.
    """
    from scipy.special import expit, logit

    dtype = np.float64 if np.asarray(probabilities).dtype == np.float64 else np.float32
    values, inverse = np.unique(np.asarray(probabilities, dtype=np.float64), return_inverse=True)
    scaled = expit(logit(values) / temperature).astype(dtype)
    return _separate_ties(scaled)[inverse.reshape(np.shape(probabilities))]


def _separate_ties(values: NDArray[np.float32] | NDArray[np.float64]) -> Probabilities:
    """Return ascending values in 0..1 with equal values moved to the next unused number of their type."""
    rows = np.arange(len(values))
    # The bits of non-negative floats, read as integers, have the same order as the floats, without gaps.
    integer = np.int64 if values.dtype == np.float64 else np.int32
    bits = np.maximum.accumulate(values.view(integer).astype(np.int64) - rows) + rows
    highest = int(np.ones(1, values.dtype).view(integer)[0]) - rows[::-1]
    return np.minimum(bits, highest).astype(integer).view(values.dtype)


def nested_temperature(labels: Labels, probabilities: NDArray[np.floating], fold: NDArray[np.int64]) -> Probabilities:
    """Scale each fold by the temperature of the other folds, so that no fold is scored on its own fit.

    Args:
        labels: [N] of 0 and 1.
        probabilities: float [N] in 0..1.
        fold: int64 [N], the fold of each patch.
    Returns:
        [N] of the type of `apply_temperature`; unchanged with a single fold. The order within a fold is unchanged, the
        order between folds may change. Use these values only to measure the effect of a temperature, not as
        predictions.
    """
    values: Probabilities = np.asarray(probabilities)
    scaled = values.copy()
    numbers = np.unique(fold)
    if len(numbers) == 1:
        return scaled
    for number in numbers:
        in_fold = fold == number
        temperature = fit_temperature(np.asarray(labels)[~in_fold], values[~in_fold])
        scaled[in_fold] = apply_temperature(values[in_fold], temperature)
    return scaled
