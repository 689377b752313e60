"""Whether a probability of 0.8 means eight in ten, and one temperature that mends it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.metrics import Labels, keep_off_ends

BINS = 15


def calibration_curve(labels: Labels, probabilities: NDArray[Any], bins: int = BINS) -> dict[str, list[float]]:
    """What was said and what was found in equally filled bins of patches.

    Returns:
        `said`: mean probability of each bin, `found`: share of malignant patches, `patches`: their number.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) == 1
    return {
        "said": [float(values[part].mean()) for part in parts],
        "found": [float(truth[part].mean()) for part in parts],
        "patches": [float(len(part)) for part in parts],
    }


def calibration_error(labels: Labels, probabilities: NDArray[Any], bins: int = BINS) -> float:
    """Expected calibration error: the bins' mean distance between said and found, weighed by their patches."""
    curve = {name: np.array(values) for name, values in calibration_curve(labels, probabilities, bins).items()}
    return float(np.abs(curve["said"] - curve["found"]) @ curve["patches"] / curve["patches"].sum())


def fit_temperature(labels: Labels, probabilities: NDArray[Any]) -> float:
    """The number that the logits are divided by for the smallest log loss (Guo et al. 2017); above 1 it tones down."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, logit

    logits = logit(keep_off_ends(probabilities))
    signed = np.where(np.asarray(labels) == 1, logits, -logits)

    def loss(power: float) -> float:
        return float(-log_expit(signed * np.exp(-power)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))


def apply_temperature(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """The probabilities with their logits divided by the temperature; their order stays."""
    from scipy.special import expit, logit

    return np.asarray(expit(logit(keep_off_ends(probabilities)) / temperature))


def nested_temperature(labels: Labels, probabilities: NDArray[Any], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each fold scaled by the temperature of the others, so that what it is scored on is not what it was fitted on."""
    values = np.asarray(probabilities, dtype=np.float64)
    scaled = values.copy()
    for number in np.unique(fold) if len(np.unique(fold)) > 1 else []:
        inside = fold == number
        temperature = fit_temperature(np.asarray(labels)[~inside], values[~inside])
        scaled[inside] = apply_temperature(values[inside], temperature)
    return scaled
