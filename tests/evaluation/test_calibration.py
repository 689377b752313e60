"""Test calibration curves and temperatures with small cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from claris_kaggle.evaluation import calibration, metrics
from claris_kaggle.evaluation.calibration import CalibrationCurve


def test_a_curve_of_two_bins_done_by_hand() -> None:
    labels, values = np.array([1, 0, 1, 1, 0]), np.array([0.7, 0.1, 0.9, 0.8, 0.3])
    curve = calibration.calibration_curve(labels, values, bins=2)
    assert curve.patches == [2.0, 3.0] and curve.observed == [0.0, 1.0]
    assert curve.predicted == pytest.approx([0.2, 0.8], abs=1e-15)
    assert curve.error == pytest.approx((2 * 0.2 + 3 * 0.2) / 5, abs=1e-15)
    uneven = CalibrationCurve(predicted=[0.1, 0.9], observed=[0.3, 0.5], patches=[3.0, 1.0])
    assert uneven.error == pytest.approx((3 * 0.2 + 0.4) / 4, abs=1e-15)


def test_a_curve_has_fifteen_bins_unless_another_number_is_asked_for() -> None:
    values = np.random.default_rng(0).permutation(150) / 150
    labels = (np.arange(150) % 2).astype(np.int8)
    assert calibration.calibration_curve(labels, values).patches == [10.0] * 15
    assert calibration.calibration_curve(labels, values, bins=4).patches == [37.0, 38.0, 37.0, 38.0]


def test_fewer_rows_than_bins_have_a_bin_each() -> None:
    curve = calibration.calibration_curve(np.array([0, 1, 1]), np.array([0.2, 0.4, 0.6]))
    assert (curve.predicted, curve.observed, curve.patches) == ([0.2, 0.4, 0.6], [0.0, 1.0, 1.0], [1.0] * 3)


def test_equal_values_across_an_edge_are_a_bin_of_their_own() -> None:
    values = np.array([0.1, 0.2, 0.5, 0.5, 0.5, 0.5, 0.8, 0.9])
    assert calibration._bin_edges(values, 2).tolist() == [2, 6]
    assert calibration._bin_edges(np.array([0.1, 0.2, 0.3, 0.4]), 2).tolist() == [2]
    assert calibration._bin_edges(np.array([0.5, 0.5]), 2).tolist() == [0, 2]


def test_a_float32_curve_is_that_of_its_numbers_in_float64() -> None:
    values = np.random.default_rng(1).random(200).astype(np.float32)
    labels = np.arange(200) % 2
    assert calibration.calibration_curve(labels, values) == calibration.calibration_curve(labels, values.astype(float))


def test_no_temperature_near_the_fitted_one_has_a_smaller_log_loss() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 300)
    values = 1 / (1 + np.exp(-(labels - 0.5 + generator.normal(0, 2, 300))))
    found = calibration.fit_temperature(labels, values)
    losses = [
        metrics.log_loss(labels, calibration.apply_temperature(values, found * factor)) for factor in (0.98, 1, 1.02)
    ]
    assert losses[1] == min(losses) and 1 < found < 10
    assert calibration.fit_temperature(labels, values.astype(np.float32)) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(("turned", "power"), [(False, -4), (True, 4)])
def test_the_temperature_of_a_forecast_that_is_always_right_or_wrong_is_bounded(turned: bool, power: float) -> None:
    labels = np.array([0, 1] * 10)
    values = np.abs(labels - (0.6 if turned else 0.4))
    assert np.log(calibration.fit_temperature(labels, values)) == pytest.approx(power, abs=1e-3)


def test_a_temperature_divides_the_logits() -> None:
    """Odds of 9 become odds of 3 with a temperature of 2, and odds of 81 with a temperature of 1/2."""
    values = np.array([[0.9, 0.5], [0.1, 0.9]])
    assert calibration.apply_temperature(values, 2) == pytest.approx(np.array([[0.75, 0.5], [0.25, 0.75]]))
    assert calibration.apply_temperature(values, 0.5) == pytest.approx(np.array([[81, 41], [1, 81]]) / 82)
    for kind, expected in ((np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)):
        assert calibration.apply_temperature(values.astype(kind), 2).dtype == expected
    assert calibration.apply_temperature([0.9], 2) == pytest.approx([0.75])  # type: ignore[arg-type]


def test_scaled_float32_values_are_rounded_once() -> None:
    values = np.random.default_rng(5).random(500).astype(np.float32)
    exact = calibration.apply_temperature(values.astype(np.float64), 1.7)
    assert np.array_equal(calibration.apply_temperature(values, 1.7), exact.astype(np.float32))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_equal_neighbours_are_moved_to_the_next_numbers(kind: type) -> None:
    half, one = kind(0.5), kind(1)
    up = np.nextafter(half, one)
    given = np.array([0, 0, half, half, up, 0.75, one, one], dtype=kind)
    tiny = np.nextafter(kind(0), one)
    below = np.nextafter(one, half)
    expected = [kind(0), tiny, half, up, np.nextafter(up, one), kind(0.75), below, one]
    found = calibration._separate_ties(given)
    assert found.dtype == kind and found.tolist() == np.array(expected).tolist()


def test_a_nested_temperature_is_that_of_the_other_folds() -> None:
    generator = np.random.default_rng(4)
    labels, fold = generator.integers(0, 2, 90), np.arange(90) % 3
    values = 1 / (1 + np.exp(-(labels - 0.5 + generator.normal(0, 1.5, 90))))
    found = calibration.nested_temperature(labels, values, fold)
    for number in range(3):
        inside = fold == number
        others = calibration.fit_temperature(labels[~inside], values[~inside])
        assert np.array_equal(found[inside], calibration.apply_temperature(values[inside], others))
    two = calibration.nested_temperature(labels, values, fold // 2)
    others = calibration.fit_temperature(labels[fold == 2], values[fold == 2])
    assert np.array_equal(two[fold < 2], calibration.apply_temperature(values[fold < 2], others))
    alone = calibration.nested_temperature(labels, values, fold * 0)
    assert np.array_equal(alone, values) and alone is not values
