"""Test standard errors and intervals of AUCs against their definitions and other libraries."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.calibration import calibration_curve as plain_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from claris_kaggle.core.errors import DataError
from claris_kaggle.data.tables import number_texts
from claris_kaggle.evaluation import auc_intervals, calibration, metrics
from claris_kaggle.evaluation.auc_intervals import (
    Comparison,
    MeasuredAuc,
    _cluster_bootstrap,
    _count_correct_pairs,
    _degrees_of_freedom,
    _resample_weights,
    _slide_components,
    measure,
)


def simulate(seed: int, rows: int = 300, runs: int = 3, slides: int = 15) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return labels, probabilities of runs with ties, and slides with random effects."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.4).astype(np.int8)
    slide = generator.integers(0, slides, rows)
    shared = labels + generator.normal(0, 0.7, rows) + generator.normal(0, 0.6, slides)[slide]
    columns = [1 / (1 + np.exp(-(shared + generator.normal(0, 0.5, rows)))) for _ in range(runs)]
    return labels, np.stack(columns, axis=1).round(2), [f"s{number}" for number in slide]


def measure_each(labels: np.ndarray, columns: np.ndarray, slides: list[str] | None = None) -> list[MeasuredAuc]:
    return [measure(labels, column, slides) for column in columns.T]


def compute_covariance(measured: list[MeasuredAuc]) -> np.ndarray:
    """Return the covariance of AUCs on the same patches."""
    deviations = np.stack([one.deviations for one in measured])
    return deviations @ deviations.T


def compare(labels: np.ndarray, a: np.ndarray, b: np.ndarray, slides: list[str] | None = None) -> Comparison:
    return measure(labels, a, slides).compare(measure(labels, b, slides))


def delong_by_pairs(labels: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return AUCs and their covariance by DeLong's definition, over all pairs of patches."""
    ups, downs = columns[labels == 1], columns[labels == 0]
    wins = (ups[:, None] > downs[None]) + 0.5 * (ups[:, None] == downs[None])
    covariance = np.cov(wins.mean(axis=1), rowvar=False) / len(ups) + np.cov(wins.mean(axis=0), rowvar=False) / len(
        downs
    )
    return wins.mean(axis=(0, 1)), covariance


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_delong_is_its_definition(seed: int) -> None:
    labels, columns, _ = simulate(seed)
    measured = measure_each(labels, columns)
    aucs, covariance = [one.value for one in measured], compute_covariance(measured)
    plain_aucs, plain_covariance = delong_by_pairs(labels, columns)
    assert aucs == pytest.approx(plain_aucs, abs=1e-12) and covariance == pytest.approx(plain_covariance, abs=1e-12)
    assert aucs == pytest.approx([roc_auc_score(labels, column) for column in columns.T], abs=1e-12)
    wins = stats.mannwhitneyu(columns[labels == 1, 0], columns[labels == 0, 0]).statistic
    assert aucs[0] == pytest.approx(wins / (labels.sum() * (1 - labels).sum()), abs=1e-12)


def test_delong_of_a_small_case_done_by_hand() -> None:
    """Malignant 3, 5; benign 1, 4. Placements 1/2, 1 and 1, 1/2; each variance 1/8, over two patches."""
    measured = measure(np.array([1, 1, 0, 0]), np.array([3.0, 5.0, 1.0, 4.0]))
    assert measured.value == 0.75 and measured.estimate.error**2 == pytest.approx(0.125, abs=1e-15)


def test_delong_is_close_to_the_jackknife() -> None:
    labels, columns, _ = simulate(1)
    left_out = np.array([roc_auc_score(np.delete(labels, row), np.delete(columns[:, 0], row)) for row in range(300)])
    jackknife = (299 / 300) * ((left_out - left_out.mean()) ** 2).sum()
    assert measure(labels, columns[:, 0]).estimate.error ** 2 == pytest.approx(jackknife, rel=0.02)


def test_the_bootstrap_of_slides_is_a_plain_loop_over_scikit_learn() -> None:
    labels, columns, slides = simulate(2)
    numbers = np.unique(slides, return_inverse=True)[1]
    samples = [_cluster_bootstrap(labels, column, numbers, resamples=40, seed=5) for column in columns.T]
    weights = _resample_weights(numbers, labels == 1, 40, np.random.default_rng(5))
    for sample, weight in zip(np.transpose(samples), weights, strict=True):
        plain = [roc_auc_score(labels, column, sample_weight=weight[numbers]) for column in columns.T]
        assert sample == pytest.approx(plain, abs=1e-12)


def test_slides_of_one_class_each_are_resampled_with_both_classes_present() -> None:
    labels = np.array([1, 1, 0, 0], np.int8)
    samples = _cluster_bootstrap(labels, np.array([0.9, 0.4, 0.5, 0.1]), np.array([0, 0, 1, 1]), resamples=50)
    assert samples == pytest.approx(np.full(50, 0.75))


def test_the_bootstrap_agrees_with_the_formula_for_slides() -> None:
    labels, columns, slides = simulate(3, rows=3000, slides=60)
    numbers = number_texts(slides)
    samples = [_cluster_bootstrap(labels, column, numbers, resamples=4000) for column in columns.T]
    shares = np.stack([_slide_components(labels, column, numbers)[1] for column in columns.T])
    assert np.cov(samples) == pytest.approx(shares @ shares.T, rel=0.15)


def test_slides_of_one_patch_each_are_delong() -> None:
    labels, columns, _ = simulate(4)
    shares = np.stack([_slide_components(labels, column, np.arange(300))[1] for column in columns.T])
    assert shares @ shares.T == pytest.approx(compute_covariance(measure_each(labels, columns)), rel=0.02)


def test_slides_make_an_interval_wider_where_they_matter() -> None:
    labels, columns, slides = simulate(5, rows=3000)
    by_patch, by_slide = (measure(labels, columns[:, 0], known).estimate for known in (None, slides))
    assert by_patch.value == by_slide.value and by_slide.error > 1.2 * by_patch.error
    low, high = by_patch.interval
    assert low < by_patch.value < high and (by_patch.interval_by, by_slide.interval_by) == ("patch", "slide")


def test_a_comparison_is_signed_paired_and_symmetric() -> None:
    labels, columns, slides = simulate(6, rows=2000)
    worse = columns[:, 0] + np.random.default_rng(0).normal(0, 0.3, 2000)
    for known in (None, slides):
        one, other = (
            compare(labels, columns[:, 0], worse, known),
            compare(labels, worse, columns[:, 0], known),
        )
        assert one.interval[0] > 0 and one.p < 0.01 and one.difference == pytest.approx(-other.difference)
        assert one.p == pytest.approx(other.p)
    same = compare(labels, columns[:, 0], columns[:, 0])
    assert (same.difference, same.error, same.p) == (0, 0, 1)


def test_a_comparison_by_slides_pairs_the_resamples() -> None:
    labels, columns, slides = simulate(9)
    samples = [_cluster_bootstrap(labels, columns[:, run], number_texts(slides)) for run in (2, 0)]
    found = compare(labels, columns[:, 2], columns[:, 0], slides)
    assert found.error == pytest.approx(np.std(samples[0] - samples[1], ddof=1), abs=1e-12)
    aucs = [metrics.auc(labels, columns[:, run]) for run in (2, 0)]
    assert found.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-12)


def test_an_auc_of_one_is_as_sure_as_its_independent_pairs_make_it() -> None:
    """Clopper and Pearson's lower bound for four of four is 0.025 ** (1 / 4). For slides, disjoint pairs count."""
    labels, values = np.array([0, 1] * 4), np.array([0.1, 0.9] * 4)
    bound = stats.binomtest(4, 4).proportion_ci(method="exact").low
    found = measure(labels, values).estimate
    assert (found.value, *found.interval) == (1, pytest.approx(bound, abs=1e-12), 1)
    turned = measure(labels, 1 - values).estimate
    assert (turned.value, *turned.interval) == (0, 0, pytest.approx(1 - bound, abs=1e-12))
    slides = ["a", "a", "b", "b", "c", "c", "d", "d"]
    two = stats.binomtest(2, 2).proportion_ci(method="exact").low
    assert measure(labels, values, slides).estimate.interval[0] == pytest.approx(two, abs=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_no_figure_depends_on_the_order_of_rows_or_on_the_scale(seed: int) -> None:
    labels, columns, slides = simulate(seed)
    order = np.random.default_rng(seed).permutation(300)
    for known in (None, slides):
        here = measure(labels, columns[:, 0], known).estimate
        moved = known and [slides[row] for row in order]
        there = measure(labels[order], columns[order, 0] ** 3, moved).estimate
        assert (there.value, there.error) == pytest.approx((here.value, here.error), abs=1e-12)
        assert there.interval == pytest.approx(here.interval, abs=1e-9)


def test_p_values_are_those_of_a_paired_z_test() -> None:
    labels, columns, _ = simulate(10)
    aucs, covariance = delong_by_pairs(labels, columns)
    z = (aucs[0] - aucs[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = compare(labels, columns[:, 0], columns[:, 1])
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-12)
    ends = (aucs[0] - aucs[1]) * (1 + np.array([-1, 1]) * stats.norm.ppf(0.975) / z)
    assert found.interval == pytest.approx(sorted(ends), abs=1e-12)


def test_the_parts_of_a_small_measurement_done_by_hand() -> None:
    """Placements of the malignant 3, 5: 1/2, 1; of the benign 1, 4: 1, 1/2. Minus 3/4, divided by 2, times root 2."""
    labels, values = np.array([1, 1, 0, 0]), np.array([3.0, 5.0, 1.0, 4.0])
    found = measure(labels, values)
    step = np.sqrt(2) / 8
    assert found.deviations.tolist() == pytest.approx([-step, step, step, -step])
    assert (found.components, found.pairs, found.interval_by) == (
        None,
        2,
        "patch",
    ) and found.without_resamples() is found
    slides = ["b", "a", "a", "b"]
    by_slide = measure(labels, values, slides, resample=False)
    assert by_slide.value == 0.75 and by_slide.interval_by == "slide" and by_slide.pairs == 1
    assert (
        by_slide.components.tolist() == by_slide.deviations.tolist() == pytest.approx([0.25 * 2**0.5, -0.25 * 2**0.5])
    )


def test_resamples_give_the_error_of_slides_and_can_be_left_out() -> None:
    labels, columns, slides = simulate(11)
    found, quick = (measure(labels, columns[:, 0], slides, resample=one) for one in (True, False))
    numbers = np.unique(slides, return_inverse=True)[1]
    samples = _cluster_bootstrap(labels, columns[:, 0], numbers)
    assert np.array_equal(samples, _cluster_bootstrap(labels, columns[:, 0], numbers, resamples=1000, seed=0))
    assert len(samples) == 1000 and found.estimate.error == pytest.approx(np.std(samples, ddof=1), abs=1e-12)
    assert quick.estimate.error == pytest.approx(np.sqrt((quick.components**2).sum()), abs=1e-12)
    assert np.array_equal(found.without_resamples().deviations, quick.deviations)
    assert found.without_resamples().estimate == quick.estimate and quick.estimate.interval_by == "slide"


@pytest.mark.parametrize("slides", [2000, 2001])
def test_above_two_thousand_slides_nothing_is_resampled(slides: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(auc_intervals, "_cluster_bootstrap", lambda *_: asked.append(1) or np.array([0.5, 0.7]))
    labels, values = np.arange(slides) % 2, np.arange(slides) * 0.618 % 1
    found = measure(labels, values, [str(number) for number in range(slides)])
    assert len(asked) == (slides == 2000) and len(found.deviations) == (2 if asked else slides)
    assert found.pairs == 1000


def test_independent_pairs_share_no_slide() -> None:
    """The minimum of: slides with malignant patches, slides with benign ones, and half of all slides."""
    assert measure(np.array([1, 1, 1, 0, 0]), np.arange(5.0)).pairs == 2
    labels, values = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0]), np.arange(9.0)
    for slides, pairs in (("aaabcdefg", 2), ("abcdddded", 1), ("abcdefghi", 4), ("aabbccdde", 2)):
        assert measure(labels, values, [*slides], resample=False).pairs == pairs


def test_the_freedom_of_an_error_is_satterthwaites() -> None:
    """Twice the squared sum over the spread of the squares: [3, 1, 1, 1] gives 2 * 144 / (4 * 16) = 4.5, at most 3."""
    assert _degrees_of_freedom(None) == np.inf
    assert _degrees_of_freedom(np.array([3.0, 1.0, -1.0, 1.0])) == 3
    assert _degrees_of_freedom(np.array([2.0, -2.0, 2.0])) == 2
    ten = np.array([5.0, *[1.0] * 9])
    assert _degrees_of_freedom(ten) == pytest.approx(2 * 34**2 / (10 * (24**2 / 10)))
    assert _degrees_of_freedom(np.array([1.0, *[0.0] * 9])) == pytest.approx(2)


def test_intervals_are_students_on_the_logit_scale() -> None:
    labels, columns, slides = simulate(12)
    for known in (None, slides):
        found = measure(labels, columns[:, 0], known, resample=False)
        freedom = np.inf if known is None else _degrees_of_freedom(found.components)
        value, error = found.estimate.value, found.estimate.error
        middle, reach = np.log(value / (1 - value)), stats.t.ppf(0.975, freedom) * error / (value * (1 - value))
        expected = [1 / (1 + np.exp(-(middle + sign * reach))) for sign in (-1, 1)]
        assert found.estimate.interval == pytest.approx(expected, abs=1e-12)
        other = measure(labels, columns[:, 1], known, resample=False)
        gap = found.compare(other)
        freedom = np.inf if known is None else _degrees_of_freedom(found.components - other.components)
        width = stats.t.ppf(0.975, freedom) * gap.error
        assert gap.error == pytest.approx(np.sqrt(((found.deviations - other.deviations) ** 2).sum()), abs=1e-15)
        assert gap.interval == pytest.approx([gap.difference - width, gap.difference + width], abs=1e-12)
        assert gap.p == pytest.approx(2 * stats.t.sf(abs(gap.difference) / gap.error, freedom), abs=1e-12)
        assert gap.interval_by == found.interval_by


def test_doubt_is_one_sided() -> None:
    better = Comparison(0.1, 0.05, (0, 0.2), 0.04, "patch")
    worse = Comparison(-0.1, 0.05, (-0.2, 0), 0.04, "patch")
    same = Comparison(0.0, 0.0, (0, 0), 1.0, "patch")
    assert [one.p_one_sided for one in (better, worse, same)] == [0.02, 0.98, 0.5]


def test_columns_without_an_error_differ_surely_or_not_at_all() -> None:
    one = MeasuredAuc(0.75, np.array([0.1, -0.1]), None, 2)
    other = MeasuredAuc(0.5, np.array([0.1, -0.1]), None, 2)
    nearly = MeasuredAuc(0.75 + 1e-13, np.array([0.1, -0.1 + 1e-13]), None, 2)
    assert one.compare(other) == Comparison(0.25, 0.0, (0.25, 0.25), 0.0, "patch")
    assert one.compare(nearly) == Comparison(0.0, 0.0, (0.0, 0.0), 1.0, "patch")


def test_each_resample_has_as_many_slides_as_there_are_and_both_classes() -> None:
    numbers, malignant = np.array([0, 0, 1, 2, 3]), np.array([True, False, False, False, True])
    weights = _resample_weights(numbers, malignant, 300, np.random.default_rng(1))
    assert weights.shape == (300, 4) and (weights.sum(axis=1) == 4).all()
    assert (weights[:, [0, 3]].sum(axis=1) > 0).all() and (weights[:, :3].sum(axis=1) > 0).all()
    assert weights.mean(axis=0) == pytest.approx([1.1, 0.9, 0.9, 1.1], abs=0.2) and weights.max() >= 3


def test_resamples_without_a_class_are_drawn_again_one_by_one() -> None:
    """Of 27 samples of three slides, 18 have slide 0 and another: six have all three, and four kinds occur 3 times."""
    numbers, malignant = np.array([0, 1, 2]), np.array([True, False, False])
    weights = _resample_weights(numbers, malignant, 3000, np.random.default_rng(2))
    kinds, counts = np.unique(weights, axis=0, return_counts=True)
    assert kinds.tolist() == [[1, 0, 2], [1, 1, 1], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    assert counts / 3000 == pytest.approx([1 / 6, 1 / 3, 1 / 6, 1 / 6, 1 / 6], abs=0.04)


def test_wins_of_each_pair_of_slides_are_counted_one_by_one() -> None:
    generator = np.random.default_rng(13)
    ups, downs = generator.integers(0, 9, 40) / 8, generator.integers(0, 9, 50) / 8
    of_up, of_down = np.arange(40) * 7 % 5, np.arange(50) * 3 % 4
    plain = np.zeros((5, 4))
    for up, row in zip(ups, of_up, strict=True):
        for down, column in zip(downs, of_down, strict=True):
            plain[row, column] += 1.0 if up > down else 0.5 if up == down else 0.0
    assert np.array_equal(_count_correct_pairs(ups, of_up, downs, of_down), plain)


def test_a_measurement_of_one_class_or_another_length_is_refused() -> None:
    for slides in (None, ["a", "b", "c"]):
        with pytest.raises(DataError, match="the AUC needs both classes"):
            measure(np.ones(3, np.int8), np.array([0.1, 0.2, 0.3]), slides)
        with pytest.raises(DataError, match="2 labels and 3 probabilities"):
            measure(np.array([0, 1]), np.array([0.1, 0.2, 0.3]), slides)
    with pytest.raises(DataError, match="one class|both classes"):
        _cluster_bootstrap(np.ones(3, np.int8), np.array([0.1, 0.2, 0.3]), np.arange(3), resamples=2)
    with pytest.raises(
        DataError, match="^a single malignant patch; an interval needs at least two patches of each class$"
    ):
        measure(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3]))


def test_what_has_no_error_is_refused() -> None:
    with pytest.raises(DataError, match="a single benign patch; an interval needs at least two"):
        measure(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3]))


def test_a_single_slide_has_the_interval_of_its_patches() -> None:
    labels, values = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.4, 0.3, 0.8, 0.9])
    found = measure(labels, values, ["a"] * 5)
    assert found.estimate == measure(labels, values).estimate and found.estimate.interval_by == "patch"
    assert found.compare(measure(labels, -values, ["a"] * 5)).interval_by == "patch"


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0.0, 0.7])
def test_intervals_hold_the_truth_as_often_as_they_say(effect: float) -> None:
    """A rough check; `benchmarks/ensembling.py` measures many settings."""
    from benchmarks.simulation import measure_coverage

    held = measure_coverage(slides=80, patches=40, effect=effect, auc=0.93, trials=600, seed=2)
    print(f"effect {effect}: {held}")
    assert 0.91 <= held["interval"] <= 0.985 and 0.91 <= held["comparison"] <= 0.985


def test_calibration_figures_equal_scikit_learns() -> None:
    labels, columns, _ = simulate(7, rows=1500)
    values = columns[:, 0]
    figures = metrics.summary(labels, values)
    assert figures.brier == pytest.approx(brier_score_loss(labels, values), abs=1e-12)
    smooth = np.random.default_rng(0).permutation(1500) / 1500  # no ties: bins of equal size are then the same
    found, said = plain_curve(labels, smooth, n_bins=15, strategy="quantile")
    curve = calibration.calibration_curve(labels, smooth)
    assert curve.predicted == pytest.approx(said, abs=1e-9) and curve.observed == pytest.approx(found, abs=1e-9)
    distance = np.abs(said - found).mean()
    assert curve.error == pytest.approx(distance, abs=1e-9)


@given(st.floats(0.2, 5))
@settings(max_examples=15, deadline=None)
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, 20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    skewed = 1 / (1 + np.exp(-logits * temperature))
    found = calibration.fit_temperature(labels, skewed)
    assert found == pytest.approx(temperature, rel=0.08)
    mended = calibration.apply_temperature(skewed, found)
    assert (np.diff(mended[np.argsort(skewed)]) >= 0).all()
    assert metrics.log_loss(labels, mended) <= metrics.log_loss(labels, skewed) + 1e-12


@given(
    st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1, width=32), st.floats(0.999999, 1)), min_size=1, max_size=60),
    st.floats(-4, 4).map(np.exp),
)
@settings(max_examples=100, deadline=None)
def test_a_temperature_neither_swaps_nor_merges_ranks(values: list[float], temperature: float) -> None:
    for kind in (np.float32, np.float64):
        column = np.array(values, dtype=kind)
        found = calibration.apply_temperature(column, temperature)
        assert found.dtype == kind and 0 <= found.min() <= found.max() <= 1
        assert np.array_equal(stats.rankdata(found), stats.rankdata(column))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60))
def test_equal_probabilities_share_a_bin_so_that_the_order_of_rows_is_no_matter(values: list[float]) -> None:
    probabilities = np.repeat(np.array(values, dtype=np.float64), 7)
    labels = np.arange(len(probabilities)) % 3 % 2
    curve, turned = (calibration.calibration_curve(labels[::step], probabilities[::step]) for step in (1, -1))
    assert sum(curve.patches) == len(probabilities)
    assert astuple(curve) == tuple(pytest.approx(column, abs=1e-12) for column in astuple(turned))


def test_a_forecast_of_two_values_that_come_true_has_no_calibration_error() -> None:
    labels = np.repeat([0, 1, 0, 1], [40, 10, 10, 40])
    values = np.repeat([0.2, 0.8], 50)
    curve = calibration.calibration_curve(labels, values)
    assert curve.error == pytest.approx(0, abs=1e-12) and curve.patches == [50, 50]


def test_a_nested_temperature_and_threshold_do_not_see_their_own_fold() -> None:
    labels, columns, _ = simulate(8)
    fold = np.arange(300) % 5
    before = calibration.nested_temperature(labels, columns[:, 0], fold)
    flipped = np.where(fold == 2, 1 - labels, labels)
    after = calibration.nested_temperature(flipped, columns[:, 0], fold)
    assert np.array_equal(before[fold == 2], after[fold == 2])
    assert not np.array_equal(before[fold != 2], after[fold != 2])
    assert metrics._nested_accuracy(labels, columns[:, 0], np.zeros(300, dtype=np.int64)) is None
    best = metrics._best_threshold(labels, columns[:, 0])[1]
    assert metrics._nested_accuracy(labels, columns[:, 0], fold) <= best
