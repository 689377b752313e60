"""Whether a probability of 0.8 means eight in ten, and one temperature that mends it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.data.arrays import Labels, Probabilities
from claris_kaggle.evaluation.metrics import clip_probabilities

_CALIBRATION_BINS = 15


def calibration_curve(
    labels: Labels, probabilities: NDArray[Any], bins: int = _CALIBRATION_BINS
) -> dict[str, list[float]]:
    """What was said and what was found in about equally filled bins of patches; equal probabilities share one.

    Args:
        bins: how many there are where all probabilities differ.
    Returns:
        `said`: mean probability of each bin, `found`: share of malignant patches, `patches`: their number.
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) == 1
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.split(order, _bin_edges(values[order], bins)) if len(part)]
    return {
        "said": [float(values[part].mean()) for part in parts],
        "found": [float(truth[part].mean()) for part in parts],
        "patches": [float(len(part)) for part in parts],
    }


def _bin_edges(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Where bins begin after the first, in ascending values; an edge among equal ones gives way to both their ends."""
    edges = np.arange(1, bins) * len(values) // bins
    edges = edges[edges > 0]
    ends = np.searchsorted(values, values[edges], "left"), np.searchsorted(values, values[edges - 1], "right")
    return np.unique(np.concatenate(ends))


def calibration_error(labels: Labels, probabilities: NDArray[Any], bins: int = _CALIBRATION_BINS) -> float:
    """Expected calibration error: the bins' mean distance between said and found, weighed by their patches."""
    curve = {name: np.array(values) for name, values in calibration_curve(labels, probabilities, bins).items()}
    return float(np.abs(curve["said"] - curve["found"]) @ curve["patches"] / curve["patches"].sum())


def fit_temperature(labels: Labels, probabilities: NDArray[Any]) -> float:
    """The number that the logits are divided by for the smallest log loss (Guo et al. 2017); above 1 it tones down."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, logit

    logits = logit(clip_probabilities(probabilities))
    signed = np.where(np.asarray(labels) == 1, logits, -logits)

    def loss(power: float) -> float:
        return float(-log_expit(signed * np.exp(-power)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))


def apply_temperature(probabilities: NDArray[Any], temperature: float) -> Probabilities:
    """The probabilities with their logits divided by the temperature, as float32: none pass or join each other."""
    from scipy.special import expit, logit

    values, places = np.unique(np.asarray(probabilities, dtype=np.float64), return_inverse=True)
    scaled = expit(logit(values) / temperature).astype(np.float32)
    return _separate_ties(scaled)[places.reshape(np.shape(probabilities))]


def _separate_ties(values: Probabilities) -> Probabilities:
    """Ascending values of 0..1, those that are equal moved to the next float32 that is free."""
    rows = np.arange(len(values))
    # Bits of floats that are not negative, read as whole numbers, stand in the order of the floats, without a gap.
    bits = np.maximum.accumulate(values.view(np.int32) - rows) + rows
    highest = np.float32(1).view(np.int32) - rows[::-1]
    return np.minimum(bits, highest).astype(np.int32).view(np.float32)


def nested_temperature(labels: Labels, probabilities: NDArray[Any], fold: NDArray[np.int64]) -> Probabilities:
    """Each fold scaled by the temperature of the others, so that what it is scored on is not what it was fitted on.

    Returns:
        float32 [N]; a fold's own order stays, folds may move past each other.
    """
    values = np.asarray(probabilities, dtype=np.float32)
    scaled = values.copy()
    for number in np.unique(fold) if len(np.unique(fold)) > 1 else []:
        inside = fold == number
        temperature = fit_temperature(np.asarray(labels)[~inside], values[~inside])
        scaled[inside] = apply_temperature(values[inside], temperature)
    return scaled
