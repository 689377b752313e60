"""Metrics of labels and probabilities of label 1.

AUC and log loss are computed here: `sklearn.metrics` imports all of `scipy.stats`, which takes a second of CPU time in
every process that trains. The tests compare them with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError, name_few
from claris_kaggle.core.notebook import html_fields
from claris_kaggle.data.arrays import THRESHOLD, Labels, Probabilities


@dataclass(frozen=True, kw_only=True)
class _PartMetrics:
    """Metrics of any patches, also of a single class.

    Attributes:
        patches: number of patches.
        auc: area under the ROC curve, the competition's metric; None if all patches have the same label.
        accuracy: share of correct predictions at a threshold of 0.5.
        log_loss: mean negative log-likelihood in nats.
        brier: Brier score.
    """

    patches: int
    auc: float | None
    accuracy: float
    log_loss: float
    brier: float


@dataclass(frozen=True, kw_only=True)
class Metrics(_PartMetrics):
    """Metrics of patches of both classes.

    Attributes:
        patches: number of patches.
        auc: area under the ROC curve, the competition's metric.
        accuracy: share of correct predictions at a threshold of 0.5.
        log_loss: mean negative log-likelihood in nats.
        brier: Brier score.
    """

    auc: float

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        return html_fields(vars(self))


def summary(labels: Labels, probabilities: Probabilities) -> Metrics:
    """Return AUC (the competition's metric), accuracy at 0.5, log loss in nats, Brier score and number of patches.

    >>> summary(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])).auc
    0.75

    Args:
        labels: [N] of 0 and 1, both present.
        probabilities: float [N] in 0..1.
    Raises:
        DataError: the lengths differ, only one class is present, a label is not 0 or 1, or a value is not a
            probability, for example a logit.
    """
    labels, values = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 1 or values.ndim != 1:
        found = f"labels of shape {labels.shape} and probabilities of shape {values.shape}"
        hint = "Of two columns of probabilities, give the one of label 1"
        raise DataError(found, "expected one value for each patch", hint)
    require_probabilities(values, "values")
    _require_rankable(labels, values)
    return Metrics(**vars(_summary_of_part(labels, values)))


def require_probabilities(values: NDArray[np.floating], name: str) -> None:
    """Check that all values are in 0..1; `name` says what they are, in plural, for messages.

    Raises:
        DataError: a value is NaN or out of range.
    """
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        found = f"{int(wrong.sum()):,} of {len(values):,} {name} are not probabilities (first {values[wrong][0]:g})"
        raise DataError(found, "each must be from 0 to 1", "Convert logits to probabilities: 1 / (1 + exp(-logit))")


def _summary_of_part(labels: Labels, probabilities: Probabilities) -> _PartMetrics:
    """Return the same as `summary`, for any patches: the AUC is None if there is only one class."""
    return _PartMetrics(
        patches=len(labels),
        auc=auc(labels, probabilities) if len(np.unique(labels)) == 2 else None,
        accuracy=_accuracy(labels, probabilities),
        log_loss=log_loss(labels, probabilities),
        brier=_brier(labels, probabilities),
    )


def auc(labels: Labels, probabilities: Probabilities) -> float:
    """Return the area under the ROC curve: the share of correctly ranked malignant-benign pairs; ties count half.

    >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75

    Args:
        labels: [N] of 0 and 1, both present.
        probabilities: [N] scores; only their order matters.
    Raises:
        DataError: the lengths differ, only one class is present, a label is not 0 or 1, or a score is NaN.
    """
    _require_rankable(labels, probabilities)
    malignant, values = np.asarray(labels) == 1, np.asarray(probabilities)
    return float(_count_below(values[malignant], values[~malignant]).sum() / (malignant.sum() * (~malignant).sum()))


def _count_below(values: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return for each value how many of `others` are below it; equal ones count half. There must be no NaN.

    Args:
        values: [N].
        others: [M].
    Returns:
        float64 [N].
    """
    below, not_above = _search_ranks(values, np.sort(others))
    return (below + not_above) / 2


def _search_ranks(
    values: NDArray[np.floating], sorted_others: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each value how many of the sorted others are below it, and how many are not above it: int64 [N] each.

    The values are sorted first, because searchsorted is then many times as fast.
    """
    order = np.argsort(values)
    below, not_above = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    below[order] = np.searchsorted(sorted_others, values[order], "left")
    not_above[order] = np.searchsorted(sorted_others, values[order], "right")
    return below, not_above


def midranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each value in its column, from 1; equal values get the mean of their ranks, NaN gets NaN.

    >>> midranks(np.array([0.2, 0.9, 0.9, 0.1]))
    array([2. , 3.5, 3.5, 1. ])

    Args:
        values: [N] or [N, columns].
    Returns:
        float64 of the same shape.
    """
    return pd.DataFrame(values).rank().to_numpy(np.float64).reshape(np.shape(values))


def _accuracy(labels: Labels, probabilities: Probabilities, threshold: float = THRESHOLD) -> float:
    """Return the share of correctly classified patches; a probability at the threshold is malignant."""
    return float(np.mean((np.asarray(probabilities) >= threshold) == (np.asarray(labels) == 1)))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean negative log-likelihood in nats; probabilities are clipped as in `clip_probabilities`."""
    clipped = clip_probabilities(probabilities)
    return float(-np.log(np.where(np.asarray(labels) == 1, clipped, 1 - clipped)).mean())


def clip_probabilities(probabilities: NDArray[np.floating], smallest: float = 2.0**-24) -> NDArray[np.float64]:
    """Return the probabilities as float64, clipped to `smallest` .. 1 - `smallest`, so that logarithms are finite.

    The default is the distance of 1 to the next smaller float32; that of float64 is 2^-53.
    """
    return np.clip(np.asarray(probabilities, dtype=np.float64), smallest, 1 - smallest)


def _brier(labels: Labels, probabilities: Probabilities) -> float:
    """Return the Brier score, the mean squared difference of probability and label, 0..1."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - np.asarray(labels)) ** 2))


def _best_threshold(labels: Labels, probabilities: Probabilities) -> tuple[float, float]:
    """Return the threshold with the highest accuracy on these patches, and this accuracy, which is optimistic.

    A probability of 1 is malignant at every threshold.
    """
    order = np.argsort(probabilities)
    sorted_labels = np.asarray(labels, dtype=np.int64)[order]
    values = np.asarray(probabilities, dtype=np.float64)[order]
    # Cut before row i: earlier rows are classified as benign, row i and later as malignant.
    benign_below = np.concatenate([[0], np.cumsum(1 - sorted_labels)])
    malignant_above = sorted_labels.sum() - np.concatenate([[0], np.cumsum(sorted_labels)])
    correct = benign_below + malignant_above
    possible = np.concatenate([[True], values[1:] > values[:-1], values[-1:] < 1])
    best = int(np.argmax(np.where(possible, correct, -1)))
    low = values[best - 1] if best > 0 else 0.0
    high = values[best] if best < len(values) else 1.0
    return float((low + high) / 2), float(correct[best] / len(values))


def _nested_accuracy(labels: Labels, probabilities: Probabilities, fold: NDArray[np.int64]) -> float | None:
    """Return the accuracy with the best threshold of the other folds for each fold; None with a single fold."""
    if len(np.unique(fold)) < 2:
        return None
    correct = 0.0
    for number in np.unique(fold):
        in_fold = fold == number
        threshold, _ = _best_threshold(labels[~in_fold], probabilities[~in_fold])
        correct += _accuracy(labels[in_fold], probabilities[in_fold], threshold) * in_fold.sum()
    return correct / len(labels)


def _require_rankable(labels: Labels, probabilities: Probabilities) -> None:
    """Check that there are values of both classes, as the AUC needs.

    Raises:
        DataError: the lengths differ, only one class is present, a label is not 0 or 1, or a value is NaN.
    """
    if len(labels) != len(probabilities):
        raise DataError(
            f"{len(labels)} labels and {len(probabilities)} probabilities", "expected the same number of both"
        )
    classes = np.unique(labels).tolist()
    if not set(classes) <= {0, 1}:
        raise DataError(f"labels {name_few(map(repr, classes))}", "a label is 0 (benign) or 1 (malignant)")
    if len(classes) != 2:
        found = f"all of {len(labels)} patches have the same label"
        raise DataError(found, "the AUC needs both classes")
    if nans := int(np.isnan(probabilities).sum()):
        found = f"{nans:,} of {len(probabilities):,} values are NaN"
        raise DataError(found, "a patch without a value cannot be ranked")
