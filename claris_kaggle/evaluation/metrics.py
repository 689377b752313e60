"""The figures that a run is judged by, from labels and probabilities of label 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import THRESHOLD, Labels, Probabilities


def summary(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    """AUC (the competition's metric), accuracy at 0.5, log loss in nats, Brier score, and the number of patches.

    Args:
        labels: [N] of 0 and 1, both present.
        probabilities: float [N] in 0..1.
    Raises:
        DataError: the lengths differ, only one class is there, or a value is no probability, as a logit is not.
    """
    _require_both_classes(labels, probabilities)
    values = np.asarray(probabilities, dtype=np.float64)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        found = f"{int(wrong.sum()):,} of {len(values):,} values are no probabilities (first {values[wrong][0]:g})"
        raise DataError(found, "each must be from 0 to 1", "Give probabilities: of a logit, 1 / (1 + exp(-logit))")
    return _summary_of_any(labels, probabilities)


def _summary_of_any(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    """As `summary`, of any patches: the AUC is None where they are all of one class."""
    return {
        "patches": len(labels),
        "auc": auc(labels, probabilities) if len(np.unique(labels)) == 2 else None,
        "accuracy": _accuracy(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "brier": _brier(labels, probabilities),
    }


def auc(labels: Labels, probabilities: Probabilities) -> float:
    """Area under the ROC curve: how often a malignant patch stands above a benign one, ties by half.

    >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, probabilities))


def _accuracy(labels: Labels, probabilities: Probabilities, threshold: float = THRESHOLD) -> float:
    """The share of patches on their own side of the threshold; at it counts as malignant."""
    return float(np.mean((np.asarray(probabilities) >= threshold) == (np.asarray(labels) == 1)))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Mean negative log-likelihood in nats; probabilities are kept off 0 and 1 by a float32's precision."""
    from sklearn.metrics import log_loss as mean_log_loss

    return float(mean_log_loss(labels, clip_probabilities(probabilities), labels=[0, 1]))


def clip_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """The probabilities as float64, kept off 0 and 1 by a float32's precision, so that their logarithm exists."""
    return np.clip(np.asarray(probabilities, dtype=np.float64), 2.0**-24, 1 - 2.0**-24)


def _brier(labels: Labels, probabilities: Probabilities) -> float:
    """Mean squared distance between probability and label, 0..1."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - np.asarray(labels)) ** 2))


def _best_threshold(labels: Labels, probabilities: Probabilities) -> tuple[float, float]:
    """The threshold of the highest accuracy on these very patches, and that accuracy: an optimistic figure.

    A probability of 1 is called malignant by any threshold.
    """
    order = np.argsort(probabilities, kind="stable")
    sorted_labels = np.asarray(labels, dtype=np.int64)[order]
    values = np.asarray(probabilities, dtype=np.float64)[order]
    # Cut before row i: rows below are called benign, those from i on malignant.
    benign_below = np.concatenate([[0], np.cumsum(1 - sorted_labels)])
    malignant_above = sorted_labels.sum() - np.concatenate([[0], np.cumsum(sorted_labels)])
    right = benign_below + malignant_above
    possible = np.concatenate([[True], values[1:] > values[:-1], values[-1:] < 1])
    cut = int(np.argmax(np.where(possible, right, -1)))
    low = values[cut - 1] if cut > 0 else 0.0
    high = values[cut] if cut < len(values) else 1.0
    return float((low + high) / 2), float(right[cut] / len(values))


def _nested_accuracy(labels: Labels, probabilities: Probabilities, fold: NDArray[np.int64]) -> float | None:
    """Accuracy where each fold is cut at the best threshold of the others; None with one fold alone."""
    if len(np.unique(fold)) < 2:
        return None
    right = 0.0
    for number in np.unique(fold):
        inside = fold == number
        threshold, _ = _best_threshold(labels[~inside], probabilities[~inside])
        right += _accuracy(labels[inside], probabilities[inside], threshold) * inside.sum()
    return right / len(labels)


def _require_both_classes(labels: Labels, probabilities: Probabilities) -> None:
    """Refuse what has no AUC.

    Raises:
        DataError: the lengths differ, or only one class is there.
    """
    if len(labels) != len(probabilities):
        raise DataError(f"{len(labels)} labels and {len(probabilities)} probabilities", "one of each a patch is needed")
    if len(np.unique(labels)) != 2:
        found = f"all of {len(labels)} patches have the same label"
        raise DataError(found, "an AUC needs benign and malignant ones")
