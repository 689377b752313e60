"""Weights over runs: on the simplex, fitted without the rows that they are scored on, the same in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import RunError, UsageError
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.blending import (
    _BLEND_METHODS,
    _FITTED_METHODS,
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


def columns_of(seed: int, noises: tuple[float, ...] = (0.8, 1.0, 2.5)) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of runs of which each has noise of its own."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(600) < 0.4).astype(np.int8)
    logits = [2 * labels - 1 + generator.normal(0, noise, 600) for noise in noises]
    return labels, (1 / (1 + np.exp(-np.stack(logits, axis=1)))).astype(np.float32).astype(np.float64)


def make_runs(seed: int, noises: tuple[float, ...] = (0.8, 1.0, 2.5)) -> list[Run]:
    labels, columns = columns_of(seed, noises)
    test = np.random.default_rng(seed + 1).random((80, len(noises))).astype(np.float32)
    return [
        Run(f"run{number}", Oof(IDS, labels, FOLD, columns[:, number].astype(np.float32)),
            TestPredictions(TEST_IDS, test[:, number]))
        for number in range(len(noises))
    ]  # fmt: skip


@given(st.integers(0, 10_000), st.sampled_from(_FITTED_METHODS))
@settings(max_examples=30, deadline=None)
def test_weights_lie_on_the_simplex_and_results_in_0_to_1(seed: int, method: str) -> None:
    labels, columns = columns_of(seed)
    space = _to_space(columns, _BLEND_METHODS[method].space)
    blend = _fit_blend(method, labels, space)
    if method != "stack":
        assert (blend.weights >= 0).all() and blend.weights.sum() == pytest.approx(1, abs=1e-9)
    result = blend.apply(space)
    assert result.min() >= 0 and result.max() <= 1


@given(st.sampled_from(list(_BLEND_METHODS)), st.integers(0, 10_000), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_a_nested_result_never_uses_a_rows_own_label_nor_those_of_its_fold(method: str, seed: int, fold: int) -> None:
    labels, columns = columns_of(seed)
    before = _nested_predictions(method, labels, columns, FOLD)
    others = np.random.default_rng(seed).permutation(np.flatnonzero(fold == FOLD))[:60]
    flipped = labels.copy()
    flipped[others] = 1 - flipped[others]
    after = _nested_predictions(method, flipped, columns, FOLD)
    assert np.array_equal(before[fold == FOLD], after[fold == FOLD])


@pytest.mark.parametrize("method", _FITTED_METHODS)
def test_weights_do_use_the_labels_of_the_other_folds(method: str) -> None:
    labels, columns = columns_of(1)
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
    labels, columns = columns_of(3)
    order = np.random.default_rng(0).permutation(600)
    straight = _nested_predictions(method, labels, columns, FOLD)
    shuffled = _nested_predictions(method, labels[order], columns[order], FOLD[order])
    assert shuffled == pytest.approx(straight[order], abs=1e-6)


def test_ranks_do_not_change_under_a_monotone_map() -> None:
    labels, columns = columns_of(4)
    assert np.array_equal(
        _nested_predictions("rank", labels, columns, FOLD), _nested_predictions("rank", labels, columns**2, FOLD)
    )


def test_fitted_weights_prefer_the_better_run_and_gain_over_the_mean() -> None:
    labels, columns = columns_of(5, (0.8, 4.0, 4.0))
    mean = auc(labels, _nested_predictions("mean", labels, columns, FOLD))
    for method in _FITTED_METHODS:
        weights = _fit_blend(method, labels, _to_space(columns, _BLEND_METHODS[method].space)).weights
        assert weights[0] == max(weights), method
        assert auc(labels, _nested_predictions(method, labels, columns, FOLD)) > mean, method


def test_the_smallest_log_loss_is_that_of_a_fine_grid() -> None:
    labels, columns = columns_of(6, (0.8, 1.5))
    right = np.where(labels[:, None] == 1, columns, 1 - columns)
    grid = np.linspace(0, 1, 2001)
    losses = [-np.log(right @ [share, 1 - share]).mean() for share in grid]
    assert _fit_blend("logloss", labels, columns).weights[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)


def test_the_counted_auc_is_scikit_learns() -> None:
    labels, columns = columns_of(7)
    coarse = np.round(columns[:, 0] * (blending._LEVELS - 1)).astype(np.int32)
    assert blending._count_auc(coarse[labels == 1], coarse[labels == 0]) == pytest.approx(
        auc(labels, coarse), abs=1e-12
    )


def test_auto_takes_the_mean_unless_another_gains_for_sure() -> None:
    equal = make_runs(8, (1.0, 1.0, 1.0))
    assert combine(equal, "auto").evidence.method == "mean"
    found = combine(make_runs(9, (0.6, 6.0, 6.0, 6.0)), "auto").evidence
    tried = found.methods
    assert found.method != "mean" and tried[found.method].doubt < 0.05 and set(tried) == set(_BLEND_METHODS)
    assert tried[found.method].auc == max(one.auc for one in tried.values() if one.doubt < 0.05)


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
    assert (evidence.asked, evidence.method) == ("stack", "mean")
    assert evidence.methods["stack"].doubt >= 0.05


def test_each_run_is_held_against_the_best_one() -> None:
    runs = make_runs(14)
    evidence = combine(runs).evidence
    assert list(evidence.against_best) == ["run1", "run2"] and evidence.best == "run0"
    expected = runs[2].measured.compare(runs[0].measured)
    assert evidence.against_best["run2"] == expected and expected.p < 0.01
    gaps = evidence.to_json()["against_best"]
    assert list(gaps["run2"]) == ["best", "difference", "error", "interval", "p", "way"]
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
    assert combine(one_fold, "rank").evidence.asked == "rank"
    with pytest.raises(RunError, match=r"one holdout or one fold, .*; --method stack fits its weights"):
        combine(one_fold, "stack")


def test_no_method_is_fitted_where_a_fold_holds_nearly_all_of_a_class() -> None:
    labels = (np.arange(600) % 3 == 0).astype(np.int8)
    fold = np.where(labels == 1, 0, FOLD)
    fold[np.flatnonzero(labels)[0]] = 1
    oof = Oof(IDS, labels, fold, columns_of(0)[1][:, 0].astype(np.float32))
    assert _choose_trials("auto", oof, 3, oof.fold) == ["mean", "logit", "rank"]
    assert _choose_trials("auto", Oof(IDS, labels, FOLD, oof.probabilities), 3, FOLD) == list(_BLEND_METHODS)
    with pytest.raises(RunError, match="fewer than two benign or two malignant patches outside fold 0"):
        _nested_predictions("auc", labels, columns_of(0)[1], fold)


def test_greedy_selection_sees_runs_whose_probabilities_are_all_small() -> None:
    labels, columns = columns_of(15, (0.8, 4.0, 4.0))
    assert np.array_equal(
        _fit_blend("greedy", labels, columns * 1e-6).weights, _fit_blend("greedy", labels, columns).weights
    )


def test_wrong_names_are_refused() -> None:
    runs = make_runs(12)
    with pytest.raises(UsageError, match="--method is 'magic'"):
        combine(runs, "magic")
    with pytest.raises(UsageError, match="run0 is given more than once"):
        combine([runs[0], runs[0]])


def test_correlations_are_spearmans() -> None:
    from scipy.stats import spearmanr

    runs = make_runs(13)
    table = combine(runs).evidence.correlations
    expected = spearmanr(runs[0].oof.probabilities, runs[2].oof.probabilities).statistic
    assert table["run0"]["run2"] == pytest.approx(expected, abs=1e-12)
