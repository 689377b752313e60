"""Test metrics with small cases computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from claris_kaggle.core.errors import DataError
from claris_kaggle.evaluation import metrics

LABELS = np.array([0, 0, 1, 1], np.int8)
VALUES = np.array([0.1, 0.4, 0.35, 0.8])


def test_all_figures_of_four_patches() -> None:
    """Ranked correctly: 3 of 4 pairs. Correct at 0.5: 3 of 4. Log loss: mean of -log 0.9, 0.6, 0.35 and 0.8."""
    found = metrics.summary(LABELS, VALUES)
    assert (found.patches, found.auc, found.accuracy) == (4, 0.75, 0.75)
    assert found.log_loss == pytest.approx(-np.log(0.9 * 0.6 * 0.35 * 0.8) / 4, abs=1e-15)
    assert found.brier == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4, abs=1e-15)
    assert "<th>log loss</th><td>0.4723</td>" in found._repr_html_()


def test_figures_of_float32_are_those_of_its_numbers_in_float64() -> None:
    single = VALUES.astype(np.float32)
    assert metrics.summary(LABELS, single) == metrics.summary(LABELS, single.astype(np.float64))
    for seed in range(8):
        single, labels = np.random.default_rng(seed).random(50).astype(np.float32), np.arange(50) % 2
        assert metrics._best_threshold(labels, single) == metrics._best_threshold(labels, single.astype(np.float64))


def test_0_and_1_are_probabilities() -> None:
    assert metrics.summary(LABELS, np.array([0.0, 0.5, 0.5, 1.0])).auc == 0.875


@pytest.mark.parametrize(("label", "loss", "brier"), [(1, np.log(2 * 4), 0.8125), (0, np.log(2 * 4 / 3), 0.3125)])
def test_a_part_of_one_class_has_every_figure_but_the_auc(label: int, loss: float, brier: float) -> None:
    found = metrics._summary_of_part(np.array([label, label], np.int8), np.array([0.5, 0.25]))
    assert (found.patches, found.auc, found.accuracy) == (2, None, 0.5)
    assert found.log_loss == pytest.approx(loss / 2) and found.brier == brier / 2


def test_midranks_are_scipys_in_each_column_and_nan_has_none() -> None:
    values = np.random.default_rng(0).integers(0, 9, (60, 2)) / 8
    assert np.array_equal(metrics.midranks(values), stats.rankdata(values, axis=0))
    assert np.array_equal(metrics.midranks(values[:, 0].astype(np.float32)), stats.rankdata(values[:, 0]))
    assert metrics.midranks(values).dtype == np.float64
    assert np.array_equal(metrics.midranks(np.array([0.5, np.nan, 0.25])), [2, np.nan, 1], equal_nan=True)


def test_an_auc_of_unequal_classes_is_scikit_learns_and_one_of_nan_is_refused() -> None:
    labels, values = (np.arange(90) % 5 == 0).astype(np.int8), np.random.default_rng(1).integers(0, 9, 90) / 8
    assert metrics.auc(labels, values) == pytest.approx(roc_auc_score(labels, values), abs=1e-15)
    values[3:5] = np.nan
    with pytest.raises(DataError, match="^2 of 90 values are NaN; a patch without a value cannot be ranked$"):
        metrics.auc(labels, values)
    one_nan = np.array([0.5, np.nan, 0.25])
    with pytest.raises(DataError, match="^1 of 3 values are NaN"):
        metrics.auc(np.array([0, 1, 1]), one_nan)
    with pytest.raises(DataError, match="2 labels and 3 probabilities"):
        metrics.auc(np.array([0, 1]), one_nan)
    with pytest.raises(DataError, match="the same label"):
        metrics.auc(np.ones(3), np.array([0.1, 0.2, 0.3]))


def test_a_probability_at_the_threshold_is_malignant() -> None:
    labels, values = np.array([1, 0]), np.array([0.5, 0.25])
    assert metrics._accuracy(labels, values) == 1.0
    assert metrics._accuracy(labels, values, 0.25) == 0.5 and metrics._accuracy(labels, values, 0.75) == 0.5


def test_clipped_probabilities_are_a_step_of_float32_or_as_asked_from_both_ends() -> None:
    ends = np.array([0.0, 0.5, 1.0], np.float32)
    assert metrics.clip_probabilities(ends).tolist() == [2.0**-24, 0.5, 1 - 2.0**-24]
    assert metrics.clip_probabilities(ends, 2.0**-53).tolist() == [2.0**-53, 0.5, 1 - 2.0**-53]
    assert metrics.clip_probabilities(ends).dtype == np.float64


THRESHOLDS = {
    "between the classes": ([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.7], (0.4, 1.0)),
    "the lowest of the best": ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], (0.225, 0.75)),
    "all malignant": ([1, 1], [0.2, 0.4], (0.1, 1.0)),
    "all benign": ([0, 0], [0.2, 0.4], (0.7, 1.0)),
    "equal values are not parted": ([0, 1, 0, 1, 1], [0.2, 0.3, 0.3, 0.3, 0.9], (0.25, 0.8)),
    "in any order": ([1, 0, 1, 0], [0.7, 0.2, 0.6, 0.1], (0.4, 1.0)),
    "benign patches of probability 1": ([0, 0], [1.0, 1.0], (0.5, 0.0)),
    "1 is malignant at every threshold": ([0, 0, 1], [1.0, 1.0, 0.5], (0.25, 1 / 3)),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_best_threshold_lies_halfway_between_two_values(name: str) -> None:
    labels, values, expected = THRESHOLDS[name]
    assert metrics._best_threshold(np.array(labels, np.int8), np.array(values)) == pytest.approx(expected, abs=1e-15)


def test_a_nested_accuracy_takes_the_threshold_of_the_other_fold() -> None:
    """With the thresholds 0.4 of fold 0 and 0.7 of fold 1, 1 of 2 is correct in fold 0, and 2 of 3 in fold 1."""
    labels, values = np.array([0, 1, 0, 1, 1]), np.array([0.2, 0.6, 0.5, 0.9, 0.95])
    fold = np.array([0, 0, 1, 1, 1])
    assert metrics._nested_accuracy(labels, values, fold) == pytest.approx(3 / 5)
    assert metrics._nested_accuracy(labels, np.array([0.2, 0.65, 0.3, 0.9, 0.95]), fold) == 1
    assert metrics._nested_accuracy(labels, values, fold * 0) is None


def test_a_fault_is_said_with_what_was_found_and_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        metrics.summary(np.tile([0, 1], 1000), np.array([0.5, -2.5, *[7.0] * 1098, *[0.5] * 900]))
    assert str(caught.value) == (
        "1,099 of 2,000 values are not probabilities (first -2.5); each must be from 0 to 1. "
        "Convert logits to probabilities: 1 / (1 + exp(-logit))"
    )
    with pytest.raises(DataError, match="^2 labels and 3 probabilities; expected the same number of both$"):
        metrics.summary(np.array([0, 1]), np.array([0.1, 0.2, 0.3]))
    with pytest.raises(DataError, match="^all of 3 patches have the same label; the AUC needs both classes$"):
        metrics.summary(np.ones(3, np.int8), np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS + 1, "^labels 1, 2; a label is 0"),
        (2 * LABELS - 1, "^labels -1, 1; a label is 0"),
        (LABELS.astype(str), "^labels '0', '1'; a label is 0"),
        (np.where(LABELS, 1, np.nan), "^labels 1.0, nan; a label is 0"),
    ],
)
def test_other_labels_than_0_and_1_are_refused(labels: np.ndarray, words: str) -> None:
    for figure in (metrics.summary, metrics.auc):
        with pytest.raises(DataError, match=words):
            figure(labels, VALUES)


def test_labels_and_probabilities_of_any_kind_of_column_give_the_same_figures() -> None:
    known = metrics.summary(LABELS, VALUES)
    columns = [LABELS.tolist(), LABELS > 0, LABELS / 1.0, pd.Series(LABELS, [5, 6, 7, 8])]
    for labels in columns:
        for values in (VALUES.tolist(), VALUES.astype(object), pd.Series(VALUES, [3, 2, 1, 0])):
            assert metrics.summary(labels, values) == known  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), ()])
def test_columns_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape)
    with pytest.raises(DataError) as caught:
        metrics.summary(LABELS, values)
    assert str(caught.value) == (
        f"labels of shape (4,) and probabilities of shape {shape}; expected one value for each patch. "
        "Of two columns of probabilities, give the one of label 1"
    )
    with pytest.raises(DataError, match="expected one value for each patch"):
        metrics.summary(LABELS[:, None], VALUES)
