"""Test weights of runs: on the simplex, fitted without the rows that score them, independent of the order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import DataError, RunError, UsageError
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.blending import (
    _BLEND_METHODS,
    _FITTED_METHODS,
    _Blend,
    _fit_blend,
    _nested_predictions,
    _to_space,
)
from claris_kaggle.ensembling.combine import _choose_trials, combine
from claris_kaggle.ensembling.runs import Run
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.predictions import Oof, TestPredictions

IDS = [f"{number:040x}" for number in range(600)]
TEST_IDS = [f"{number:040x}" for number in range(900, 980)]
FOLD = np.arange(600) % 5


def simulate_columns(seed: int, noises: tuple[float, ...] = (0.8, 1.0, 2.5)) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and probabilities of runs with independent noise."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(600) < 0.4).astype(np.int8)
    logits = [2 * labels - 1 + generator.normal(0, noise, 600) for noise in noises]
    return labels, (1 / (1 + np.exp(-np.stack(logits, axis=1)))).astype(np.float32).astype(np.float64)


def make_runs(seed: int, noises: tuple[float, ...] = (0.8, 1.0, 2.5)) -> list[Run]:
    labels, columns = simulate_columns(seed, noises)
    test = np.random.default_rng(seed + 1).random((80, len(noises))).astype(np.float32)
    return [
        Run(f"run{number}", Oof(IDS, labels, FOLD, columns[:, number].astype(np.float32)),
            TestPredictions(TEST_IDS, test[:, number]))
        for number in range(len(noises))
    ]  # fmt: skip


@given(st.integers(0, 10_000), st.sampled_from(_FITTED_METHODS))
@settings(max_examples=30, deadline=None)
def test_weights_lie_on_the_simplex_and_results_in_0_to_1(seed: int, method: str) -> None:
    labels, columns = simulate_columns(seed)
    space = _to_space(columns, _BLEND_METHODS[method].space)
    blend = _fit_blend(method, labels, space)
    if method != "stack":
        assert (blend.weights >= 0).all() and blend.weights.sum() == pytest.approx(1, abs=1e-9)
    result = blend.apply(space)
    assert result.min() >= 0 and result.max() <= 1


@given(st.sampled_from(list(_BLEND_METHODS)), st.integers(0, 10_000), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_a_nested_result_never_uses_a_rows_own_label_nor_those_of_its_fold(method: str, seed: int, fold: int) -> None:
    labels, columns = simulate_columns(seed)
    before = _nested_predictions(method, labels, columns, FOLD)
    others = np.random.default_rng(seed).permutation(np.flatnonzero(fold == FOLD))[:60]
    flipped = labels.copy()
    flipped[others] = 1 - flipped[others]
    after = _nested_predictions(method, flipped, columns, FOLD)
    assert np.array_equal(before[fold == FOLD], after[fold == FOLD])


@pytest.mark.parametrize("method", _FITTED_METHODS)
def test_weights_do_use_the_labels_of_the_other_folds(method: str) -> None:
    labels, columns = simulate_columns(1)
    after = _nested_predictions(method, np.where(FOLD == 3, 1 - labels, labels), columns, FOLD)
    assert not np.array_equal(_nested_predictions(method, labels, columns, FOLD), after)


@pytest.mark.parametrize("method", [*_BLEND_METHODS, "auto"])
def test_neither_the_order_of_runs_nor_a_copy_changes_a_byte(method: str) -> None:
    runs = make_runs(2)
    copy = Run("copy", runs[1].oof, runs[1].test)
    results = [combine(some, method) for some in (runs, runs[::-1], [*runs, copy], [copy, *runs])]
    assert len({one.oof.probabilities.tobytes() + one.test.probabilities.tobytes() for one in results}) == 1
    assert results[2].evidence.copies in ({"copy": "run1"}, {"run1": "copy"})


@pytest.mark.parametrize("method", _BLEND_METHODS)
def test_the_order_of_rows_is_no_matter(method: str) -> None:
    labels, columns = simulate_columns(3)
    order = np.random.default_rng(0).permutation(600)
    straight = _nested_predictions(method, labels, columns, FOLD)
    shuffled = _nested_predictions(method, labels[order], columns[order], FOLD[order])
    assert shuffled == pytest.approx(straight[order], abs=1e-6)


def test_ranks_do_not_change_under_a_monotone_map() -> None:
    labels, columns = simulate_columns(4)
    assert np.array_equal(
        _nested_predictions("rank", labels, columns, FOLD), _nested_predictions("rank", labels, columns**2, FOLD)
    )


def test_fitted_weights_prefer_the_better_run_and_gain_over_the_mean() -> None:
    labels, columns = simulate_columns(5, (0.8, 4.0, 4.0))
    mean = auc(labels, _nested_predictions("mean", labels, columns, FOLD))
    for method in _FITTED_METHODS:
        weights = _fit_blend(method, labels, _to_space(columns, _BLEND_METHODS[method].space)).weights
        assert weights[0] == max(weights), method
        assert auc(labels, _nested_predictions(method, labels, columns, FOLD)) > mean, method


def test_the_smallest_log_loss_is_that_of_a_fine_grid() -> None:
    labels, columns = simulate_columns(6, (0.8, 1.5))
    right = np.where(labels[:, None] == 1, columns, 1 - columns)
    grid = np.linspace(0, 1, 2001)
    losses = [-np.log(right @ [share, 1 - share]).mean() for share in grid]
    assert _fit_blend("logloss", labels, columns).weights[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)


def test_the_counted_auc_is_scikit_learns() -> None:
    labels, columns = simulate_columns(7)
    coarse = np.round(columns[:, 0] * (blending._ROUNDING_LEVELS - 1)).astype(np.int32)
    assert blending._count_auc(coarse[labels == 1], coarse[labels == 0]) == pytest.approx(
        auc(labels, coarse), abs=1e-12
    )


SPACES = {
    "probability": [[0.2, 0.75], [0.5, 1.0], [0.5, 0.25]],
    "logit": [[np.log(1 / 4), np.log(3)], [0, np.log(2**24 - 1)], [0, -np.log(3)]],
    "rank": [[0.5 / 3, 0.5], [2 / 3, 2.5 / 3], [2 / 3, 0.5 / 3]],
}


@pytest.mark.parametrize("space", SPACES)
def test_columns_of_three_rows_in_each_space(space: str) -> None:
    """0.2 is not a float32 value, so the logits of 0 and 1 are those of float64."""
    columns = np.array([[0.2, 0.75], [0.5, 1.0], [0.5, 0.25]])
    expected = np.array(SPACES[space])
    if space == "logit":
        assert _to_space(columns, space)[1, 1] == pytest.approx(np.log(2.0**53 - 1), abs=1e-9)
        columns[0, 0] = np.float32(0.2)
    assert _to_space(columns, space) == pytest.approx(expected, abs=1e-6)


MEANS = {  # odds of 1 and 3/2 have a geometric mean of sqrt(3/2)
    "mean": ([[0.2, 0.8], [0.4, 0.8]], [0.5, 0.6]),
    "logit": ([[0.2, 0.8], [0.5, 0.6]], [0.5, 1 / (1 + np.sqrt(2 / 3))]),
    "rank": ([[0.2, 0.8], [0.6, 0.5]], [0.5, 0.5]),
}


@pytest.mark.parametrize("method", MEANS)
def test_methods_without_weights_are_means_in_their_space(method: str) -> None:
    columns, expected = MEANS[method]
    found = _nested_predictions(method, np.array([0, 1]), np.array(columns), np.array([0, 1]))
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_blend_adds_its_intercept_and_stays_in_0_to_1() -> None:
    columns = np.array([[0.2, 0.6], [0.9, 0.9], [-0.9, 0.1]])
    weights = np.array([0.5, 0.25])
    assert _Blend("greedy", weights, 0.5).apply(columns).tolist() == pytest.approx([0.75, 1.0, 0.075])
    assert _Blend("greedy", weights).apply(columns - 0.5).tolist() == pytest.approx([0, 0.3, 0])
    assert _Blend("stack", weights, 0.5).apply(columns) == pytest.approx(1 / (1 + np.exp([-0.75, -1.175, -0.075])))


def test_weights_are_clipped_at_0_and_scaled_to_1_or_equal() -> None:
    assert blending._to_simplex(np.array([3.0, -1.0, 1.0])).tolist() == [0.75, 0.0, 0.25]
    assert blending._to_simplex(np.array([0.25, 0.25])).tolist() == [0.5, 0.5]
    assert blending._to_simplex(np.array([-1.0, 0.0])).tolist() == [0.5, 0.5]


def test_the_weights_for_the_auc_are_fishers_direction() -> None:
    """Su and Liu: the inverse of the sum of the covariances times the difference of the means, if all are positive."""
    labels, columns = simulate_columns(16, (1.0, 1.5, 2.0))
    logits = _to_space(columns, "logit")
    ups, downs = logits[labels == 1], logits[labels == 0]
    direction = np.linalg.solve(np.cov(ups.T) + np.cov(downs.T), ups.mean(axis=0) - downs.mean(axis=0))
    assert (direction > 0).all()
    blend = _fit_blend("auc", labels, logits)
    assert blend.weights == pytest.approx(direction / direction.sum(), abs=1e-5) and blend.intercept == 0
    twice = np.stack([logits[:, 0], logits[:, 0]], axis=1)
    assert _fit_blend("auc", labels, twice).weights == pytest.approx([0.5, 0.5], abs=1e-6)


def test_stacking_is_a_pipeline_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, columns = simulate_columns(17)
    logits = _to_space(columns, "logit")
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-8)).fit(logits, labels)
    assert _fit_blend("stack", labels, logits).apply(logits) == pytest.approx(
        plain.predict_proba(logits)[:, 1], abs=1e-9
    )


def test_the_weights_of_the_log_loss_are_those_of_its_flat_point() -> None:
    """All derivatives along the simplex are 0: for each run the mean of p / mixture of the true class is 1."""
    labels, columns = simulate_columns(18, (1.0, 1.1, 1.2))
    weights = _fit_blend("logloss", labels, columns).weights
    right = np.where(labels[:, None] == 1, columns, 1 - columns)
    assert (weights > 0.05).all() and (right / (right @ weights)[:, None]).mean(axis=0) == pytest.approx(1, abs=1e-7)


def test_a_single_run_has_the_weight_1_in_every_method() -> None:
    labels, columns = simulate_columns(19, (1.0,))
    for method in _BLEND_METHODS:
        blend = _fit_blend(method, labels, columns)
        assert (blend.method, blend.weights.tolist(), blend.intercept) == (method, [1.0], 0.0)


def auc_by_pairs(labels: np.ndarray, values: np.ndarray) -> float:
    """Return the share of pairs of patches that are ranked correctly. Ties count one half."""
    ups, downs = values[labels == 1][:, None], values[labels == 0]
    return ((ups > downs).sum() + (ups == downs).sum() / 2) / (len(ups) * len(downs))


def greedy_by_pairs(labels: np.ndarray, columns: np.ndarray, picks: int = 20) -> np.ndarray:
    """Return the counts of Caruana's greedy selection. Each step adds the run that improves the mean most."""
    counts, total, best = np.zeros(columns.shape[1]), np.zeros(len(labels)), -1.0
    for picked in range(1, picks + 1):
        scores = [auc_by_pairs(labels, (total + column) // picked) for column in columns.T]
        if max(scores) <= best:
            break
        best = max(scores)
        counts[int(np.argmax(scores))] += 1
        total = total + columns[:, int(np.argmax(scores))]
    return counts


@pytest.mark.parametrize("runs", [3, 6])
def test_greedy_selection_is_a_plain_loop_over_runs_and_pairs(runs: int) -> None:
    labels, columns = simulate_columns(20, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)[:runs])
    columns = 0.1 + 0.8 * columns
    low, high = columns.min(), columns.max()
    coarse = np.round((columns - low) / (high - low) * (2**14 - 1)).astype(np.int64)
    counts = greedy_by_pairs(labels, coarse)
    assert counts.sum() > 2
    assert _fit_blend("greedy", labels, columns).weights == pytest.approx(counts / counts.sum(), abs=1e-12)


@pytest.mark.parametrize(("runs", "size"), [(7, 6), (14, 7)])
def test_greedy_selection_of_many_runs_is_the_sum_over_twenty_bags_of_half_of_them(runs: int, size: int) -> None:
    labels, columns = simulate_columns(21, tuple(1 + 0.1 * number for number in range(runs)))
    labels, columns = labels[::6], columns[::6]
    low, high = columns.min(), columns.max()
    coarse = np.round((columns - low) / (high - low) * (2**14 - 1)).astype(np.int64)
    generator = np.random.default_rng(0)
    counts = np.zeros(runs)
    for _ in range(20):
        bag = np.sort(generator.permutation(runs)[:size])
        counts[bag] += greedy_by_pairs(labels, coarse[:, bag])
    assert _fit_blend("greedy", labels, columns).weights == pytest.approx(counts / counts.sum(), abs=1e-12)


def test_equal_columns_share_the_weight_of_a_greedy_selection_of_no_gain() -> None:
    labels = np.array([0, 1] * 10)
    assert _fit_blend("greedy", labels, np.full((20, 2), 0.3)).weights.tolist() == [1.0, 0.0]


def test_two_patches_of_each_class_outside_every_fold_are_enough() -> None:
    labels, fold = np.array([1, 0, 1, 0, 1, 0, 1, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert blending._explain_unfittable(labels, fold) == ""
    for few in (np.array([1, 0, 1, 0, 1, 0, 0, 0]), np.array([0, 1, 0, 1, 0, 1, 1, 1])):
        assert (
            blending._explain_unfittable(few, fold) == "fewer than two benign or two malignant patches outside fold 0"
        )
    assert blending._explain_unfittable(labels, fold * 0 + 3).endswith("without a slide map (claris fetch --slides)")
    blending._require_fittable("mean", labels, fold * 0)
    with pytest.raises(RunError) as caught:
        blending._require_fittable("stack", np.array([1, 0, 1, 0, 1, 0, 0, 0]), fold)
    assert str(caught.value) == (
        "fewer than two benign or two malignant patches outside fold 0; --method stack fits its weights on those "
        "patches. Use --method mean, or runs with all folds"
    )


def test_every_method_and_auto_may_be_named_and_no_other() -> None:
    assert [blending._require_method(name) for name in (*_BLEND_METHODS, "auto")] == [*_BLEND_METHODS, "auto"]
    words = "--method is 'magic'; it must be one of mean, logit, rank, logloss, auc, greedy, stack and auto"
    with pytest.raises(UsageError, match=f"^{words}$"):
        blending._require_method("magic")


def test_auto_takes_the_mean_unless_another_gains_for_sure() -> None:
    equal = make_runs(8, (1.0, 1.0, 1.0))
    assert combine(equal, "auto").evidence.method == "mean"
    found = combine(make_runs(9, (0.6, 6.0, 6.0, 6.0)), "auto").evidence
    tried = found.methods
    assert found.method != "mean" and tried[found.method].p_one_sided < 0.05 and set(tried) == set(_BLEND_METHODS)
    assert tried[found.method].auc == max(one.auc for one in tried.values() if one.p_one_sided < 0.05)


@given(st.integers(0, 10_000), st.sampled_from([*_BLEND_METHODS, "auto"]), st.sampled_from([1.0, 3.0]))
@settings(max_examples=25, deadline=None)
def test_what_is_handed_out_never_scores_less_than_the_mean(seed: int, method: str, noise: float) -> None:
    runs = make_runs(seed, (1.0, 1.2, noise))
    found, mean = combine(runs, method), combine(runs)
    labels = runs[0].oof.labels
    assert auc(labels, found.oof.probabilities) >= auc(labels, mean.oof.probabilities)
    if found.evidence.method == "mean":
        assert found.test.probabilities.tobytes() == mean.test.probabilities.tobytes()


def test_a_method_that_is_not_surely_better_is_replaced_by_the_mean_and_that_is_shown() -> None:
    evidence = combine(make_runs(8, (1.0, 1.0, 1.0)), "stack").evidence
    assert (evidence.requested_method, evidence.method) == ("stack", "mean")
    assert evidence.methods["stack"].p_one_sided >= 0.05


def test_each_run_is_held_against_the_best_one() -> None:
    runs = make_runs(14)
    evidence = combine(runs).evidence
    assert list(evidence.against_best) == ["run1", "run2"] and evidence.best == "run0"
    expected = runs[2].measured.compare(runs[0].measured)
    assert evidence.against_best["run2"] == expected and expected.p < 0.01
    gaps = evidence.to_json()["against_best"]
    assert list(gaps["run2"]) == ["best", "difference", "error", "interval", "p", "interval_by"]
    assert gaps["run1"]["best"] == gaps["run2"]["best"] == "run0"


def test_the_outcome_is_held_against_the_best_run_whatever_the_method() -> None:
    runs = make_runs(14)
    for method in ("mean", "auto"):
        found = combine(runs, method)
        assert found.evidence.over_best == found.measured.compare(runs[0].measured)
        assert found.evidence.to_json()["over_best"]["best"] == "run0"
    assert combine(runs[:1]).evidence.over_best is None and "over_best" not in combine(runs[:1]).evidence.to_json()


def test_what_a_run_adds_is_the_mean_with_it_against_the_mean_without_it() -> None:
    runs = make_runs(14)
    found = combine(runs, "stack").evidence
    assert [*found.members] == ["run0", "run1", "run2"]
    for place, run in enumerate(runs):
        others = combine([one for one in runs if one is not run])
        assert found.members[run.name] == combine(runs).measured.compare(others.measured), place
    assert combine(runs[:1]).evidence.members == {}


def test_one_run_or_one_fold_leaves_nothing_to_weigh() -> None:
    run = make_runs(10)[0]
    assert list(combine([run], "auto").evidence.methods) == ["mean"]
    one_fold = [
        Run(one.name, Oof(IDS, one.oof.labels, FOLD * 0, one.oof.probabilities), one.test) for one in make_runs(10)
    ]
    assert set(combine(one_fold, "auto").evidence.methods) == {"mean", "logit", "rank"}
    assert combine(one_fold, "rank").evidence.requested_method == "rank"
    with pytest.raises(RunError, match=r"one holdout or one fold, .*; --method stack fits its weights"):
        combine(one_fold, "stack")


def test_no_method_is_fitted_where_a_fold_holds_nearly_all_of_a_class() -> None:
    labels = (np.arange(600) % 3 == 0).astype(np.int8)
    fold = np.where(labels == 1, 0, FOLD)
    fold[np.flatnonzero(labels)[0]] = 1
    oof = Oof(IDS, labels, fold, simulate_columns(0)[1][:, 0].astype(np.float32))
    assert _choose_trials("auto", oof, 3, oof.fold) == ["mean", "logit", "rank"]
    assert _choose_trials("auto", Oof(IDS, labels, FOLD, oof.probabilities), 3, FOLD) == list(_BLEND_METHODS)
    with pytest.raises(RunError, match="fewer than two benign or two malignant patches outside fold 0"):
        _nested_predictions("auc", labels, simulate_columns(0)[1], fold)


def test_greedy_selection_sees_runs_whose_probabilities_are_all_small_or_close_together() -> None:
    labels, columns = simulate_columns(15, (4.0, 0.8, 1.0))
    weights = _fit_blend("greedy", labels, columns).weights
    assert (weights[1:] > 0.1).all(), "the first run alone is what is taken where all values are rounded to one"
    for narrow in (columns * 1e-6, columns * 1e-6 + 0.5):
        assert np.array_equal(_fit_blend("greedy", labels, narrow).weights, weights)


def test_wrong_names_are_refused() -> None:
    runs = make_runs(12)
    with pytest.raises(UsageError, match="--method is 'magic'"):
        combine(runs, "magic")
    with pytest.raises(UsageError, match="run0 is given more than once"):
        combine([runs[0], runs[0]])


def test_what_is_no_probability_is_refused_by_the_name_of_its_run() -> None:
    first, second = make_runs(12, (0.8, 1.0))
    logits, gap = second.oof.probabilities * 8 - 4, second.test.probabilities.copy()
    gap[3] = np.nan
    cases = {
        r"OOF values of run1 are not probabilities \(first .*; each must be from 0 to 1. Convert logits": replace(
            second, oof=replace(second.oof, probabilities=logits)
        ),
        r"^1 of 80 test values of run1 are not probabilities \(first nan\)": replace(
            second, test=replace(second.test, probabilities=gap)
        ),
        r"^run1: 600 OOF ids and probabilities of shape \(600, 1\); expected one probability for each id$": replace(
            second, oof=replace(second.oof, probabilities=second.oof.probabilities[:, None])
        ),
    }
    for words, wrong in cases.items():
        with pytest.raises(DataError, match=words):
            combine([first, wrong])
    with pytest.raises(UsageError, match="^no runs to combine; expected at least one$"):
        combine([])


@pytest.mark.parametrize("kind", [np.int64, np.bool_, np.float16])
def test_the_mean_of_classes_and_of_half_precision_is_exact(kind: type) -> None:
    runs = [
        replace(
            run,
            oof=replace(run.oof, probabilities=run.oof.probabilities.round(2 * (kind == np.float16)).astype(kind)),
            test=replace(run.test, probabilities=run.test.probabilities.round(2 * (kind == np.float16)).astype(kind)),
        )
        for run in make_runs(12, (0.8, 1.0))
    ]
    found = combine(runs)
    for part in ("oof", "test"):
        columns = [getattr(run, part).probabilities.astype(np.float64) for run in runs]
        expected = np.mean(columns, axis=0)
        assert len(np.unique(expected)) > 2
        assert np.array_equal(getattr(found, part).probabilities, expected.astype(np.float32))


def test_correlations_are_spearmans() -> None:
    from scipy.stats import spearmanr

    runs = make_runs(13)
    table = combine(runs).evidence.correlations
    expected = spearmanr(runs[0].oof.probabilities, runs[2].oof.probabilities).statistic
    assert table["run0"]["run2"] == pytest.approx(expected, abs=1e-12)
