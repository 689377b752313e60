"""Fit weights for the predictions of several runs, and compute their nested (leakage-free) predictions.

Nested predictions: the weights for a row are fitted on the other folds. Every method is a weighted sum of one column
per run. The columns are probabilities, logits or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, UsageError
from claris_kaggle.data.arrays import Columns, Labels
from claris_kaggle.evaluation.metrics import clip_probabilities, midranks

_Weights = NDArray[np.float64]
_BAG_COUNT, _BAG_FRACTION, _MAX_SELECTIONS = 20, 0.5, 20
# The smallest size of a bag. Smaller bags would often miss the only good run.
_MIN_BAG_SIZE = 6
# Greedy selection rounds values to this number of levels, so that the AUC needs counting instead of sorting.
_ROUNDING_LEVELS = 1 << 14


@dataclass(frozen=True)
class _Blend:
    """A fitted combination.

    Attributes:
        method: key of `_BLEND_METHODS`.
        weights: float64 [M], one weight per run.
        intercept: added to the weighted sum, before the sigmoid for methods that use logits.
    """

    method: str
    weights: _Weights
    intercept: float = 0.0

    def apply(self, columns: Columns) -> NDArray[np.float64]:
        """Return the combined predictions.

        Args:
            columns: float64 [N, M], the runs' predictions in the space of the method, as `_to_space` returns them.
        Returns:
            float64 [N] in 0..1.
        """
        # Sorting before the sum makes the result bit-identical for every order of the runs.
        combined = np.sort(columns * self.weights, axis=1).sum(axis=1) + self.intercept
        if _BLEND_METHODS[self.method].space != "logit":
            return np.asarray(np.clip(combined, 0.0, 1.0))
        from scipy.special import expit

        return np.asarray(expit(combined))


@dataclass(frozen=True)
class _Method:
    """A blending method.

    Attributes:
        space: `probability`, `logit` or `rank`.
        fit: returns weights, float64 [M], and the intercept, from labels and columns; None for equal weights.
        about: a short description.
    """

    space: str
    fit: Callable[[Labels, Columns], tuple[_Weights, float]] | None
    about: str


def _to_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each value in its column, scaled to 0..1. Ties get their mean rank."""
    return (midranks(values) - 0.5) / len(values)


def _to_space(columns: Columns, space: str) -> Columns:
    """Convert the runs' probabilities, float64 [N, M], to `probability`, `logit` or `rank` values."""
    if space == "logit":
        from scipy.special import logit

        single = bool((columns.astype(np.float32) == columns).all())
        return np.asarray(logit(clip_probabilities(columns, 2.0**-24 if single else 2.0**-53)))
    if space == "rank":
        return _to_ranks(columns)
    return columns


def _fit_log_loss(labels: Labels, columns: Columns) -> tuple[_Weights, float]:
    """Fit the convex combination of probabilities with the smallest log loss.

    The problem is convex, so every local minimum is a global one.
    """
    from scipy.optimize import minimize

    true_class = clip_probabilities(np.where(np.asarray(labels)[:, None] == 1, columns, 1 - columns))

    def loss(weights: _Weights) -> tuple[float, _Weights]:
        combined = true_class @ weights
        return float(-np.log(combined).mean()), -(true_class / combined[:, None]).mean(axis=0)

    runs = columns.shape[1]
    found = minimize(
        loss, np.full(runs, 1 / runs), jac=True, method="SLSQP", bounds=[(0, 1)] * runs,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones(runs)},
        options={"ftol": 1e-12, "maxiter": 200},
    )  # fmt: skip
    return _to_simplex(found.x), 0.0


def _fit_auc(labels: Labels, columns: Columns) -> tuple[_Weights, float]:
    """Fit the non-negative weighted mean of logits with the highest AUC, assuming normally distributed classes.

    Maximises (difference of the class means) / (standard deviation under the sum of both class covariances), after
    Su and Liu (1993). Solved as a non-negative least-squares problem, which is convex. The AUC itself is not.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    positive, negative = columns[np.asarray(labels) == 1], columns[np.asarray(labels) != 1]
    covariance = np.atleast_2d(np.cov(positive, rowvar=False) + np.cov(negative, rowvar=False))
    # A small ridge keeps the weights unique when runs are nearly identical.
    covariance = covariance + np.eye(len(covariance)) * (1e-6 * np.trace(covariance) / len(covariance) + 1e-12)
    factor = cholesky(covariance, lower=True)
    target = solve_triangular(factor, positive.mean(axis=0) - negative.mean(axis=0), lower=True)
    return _to_simplex(nnls(factor.T, target)[0]), 0.0


def _fit_greedy(labels: Labels, columns: Columns) -> tuple[_Weights, float]:
    """Fit weights by greedy selection with replacement, scored by AUC (Caruana et al. 2004).

    With more than `_MIN_BAG_SIZE` runs, the counts are summed over `_BAG_COUNT` random bags. A bag has half of them,
    but at least `_MIN_BAG_SIZE`.
    """
    runs = columns.shape[1]
    low, high = columns.min(), columns.max()
    levels = np.round((columns - low) / (high - low or 1.0) * (_ROUNDING_LEVELS - 1)).astype(np.int32)
    malignant = np.asarray(labels) == 1
    by_class = levels[malignant].T.copy(), levels[~malignant].T.copy()
    generator = np.random.default_rng(0)
    counts = np.zeros(runs)
    size = min(runs, max(_MIN_BAG_SIZE, math.ceil(runs * _BAG_FRACTION)))
    for _ in range(_BAG_COUNT if size < runs else 1):
        counts += _select_greedily(by_class, np.sort(generator.permutation(runs)[:size]))
    return _to_simplex(counts), 0.0


def _select_greedily(by_class: tuple[NDArray[np.int32], NDArray[np.int32]], bag: NDArray[np.int64]) -> _Weights:
    """Count how often each run is selected. Each step adds the run with the largest gain, until no run improves.

    Args:
        by_class: the runs' rounded values, int32 [M, P] of malignant and [M, N - P] of benign patches.
        bag: int64, the indices of the runs that may be selected.
    Returns:
        float64 [M], the number of selections of each run, at most `_MAX_SELECTIONS` in total.
    """
    positive, negative = by_class
    counts, best = np.zeros(len(positive)), -1.0
    positive_sum, negative_sum = np.zeros_like(positive[0]), np.zeros_like(negative[0])
    for size in range(1, _MAX_SELECTIONS + 1):
        scores = [
            _count_auc((positive_sum + positive[run]) // size, (negative_sum + negative[run]) // size) for run in bag
        ]
        if max(scores) <= best:
            break
        best = max(scores)
        run = bag[int(np.argmax(scores))]
        counts[run] += 1
        positive_sum, negative_sum = positive_sum + positive[run], negative_sum + negative[run]
    return counts


def _count_auc(positive: NDArray[np.int32], negative: NDArray[np.int32]) -> float:
    """Return the AUC of integers in 0.._ROUNDING_LEVELS-1, by counting instead of sorting. Ties count one half."""
    positive_counts, negative_counts = (
        np.bincount(positive, minlength=_ROUNDING_LEVELS),
        np.bincount(negative, minlength=_ROUNDING_LEVELS),
    )
    below = np.cumsum(negative_counts) - negative_counts / 2
    return float(positive_counts @ below / (len(positive) * len(negative)))


def _fit_stack(labels: Labels, columns: Columns) -> tuple[_Weights, float]:
    """Fit a logistic regression on the standardised logits of the runs, with scikit-learn's default L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = columns.mean(axis=0), columns.std(axis=0) + 1e-12
    model = LogisticRegression(max_iter=1000, tol=1e-8).fit((columns - mean) / deviation, np.asarray(labels))
    weights = model.coef_[0] / deviation
    return weights, float(model.intercept_[0] - weights @ mean)


def _to_simplex(weights: _Weights) -> _Weights:
    """Clip weights at 0 and scale them to sum 1. Return equal weights if all are 0."""
    clipped = np.clip(weights, 0.0, None)
    return clipped / clipped.sum() if clipped.sum() > 0 else np.full(len(clipped), 1 / len(clipped))


_BLEND_METHODS: dict[str, _Method] = {
    "mean": _Method("probability", None, "mean of the probabilities"),
    "logit": _Method("logit", None, "mean of the logits"),
    "rank": _Method("rank", None, "mean of the ranks"),
    "logloss": _Method("probability", _fit_log_loss, "weights that minimise the log loss"),
    "auc": _Method("logit", _fit_auc, "weights that maximise the AUC"),
    "greedy": _Method("probability", _fit_greedy, "greedy selection with replacement"),
    "stack": _Method("logit", _fit_stack, "logistic stacking"),
}
_FITTED_METHODS = tuple(name for name, method in _BLEND_METHODS.items() if method.fit)


def _require_method(name: str) -> str:
    """Return `name` if it is a method or `auto`.

    Raises:
        UsageError: there is no such method.
    """
    if name not in _BLEND_METHODS and name != "auto":
        raise UsageError(f"--method is {name!r}", f"it must be one of {', '.join(_BLEND_METHODS)} and auto")
    return name


def _fit_blend(name: str, labels: Labels, columns: Columns) -> _Blend:
    """Fit the method on these rows.

    Args:
        name: key of `_BLEND_METHODS`.
        labels: int [N] of 0 and 1.
        columns: float64 [N, M] in the space of the method.
    """
    method = _BLEND_METHODS[name]
    if method.fit is None or columns.shape[1] == 1:
        return _Blend(name, np.full(columns.shape[1], 1 / columns.shape[1]))
    return _Blend(name, *method.fit(labels, columns))


def _explain_unfittable(labels: Labels, fold: NDArray[np.int64], *, by_slide: bool = False) -> str:
    """Return why weights cannot be fitted without some fold, or an empty string if they can.

    At least two patches of each class must remain outside every fold. With `by_slide`, groups of slides of one holdout
    or one fold take the place of the folds.
    """
    malignant = np.asarray(labels) == 1
    if len(np.unique(fold)) == 1:
        lack = "with too few slides to form groups" if by_slide else "without a slide map (claris fetch --slides)"
        return f"all predictions are of one holdout or one fold, {lack}"
    for number in np.unique(fold).tolist():
        outside = malignant[fold != number]
        if min(outside.sum(), len(outside) - outside.sum()) < 2:
            group = "one group of slides" if by_slide else f"fold {number}"
            return f"fewer than two benign or two malignant patches outside {group}"
    return ""


def _require_fittable(name: str, labels: Labels, fold: NDArray[np.int64], *, by_slide: bool = False) -> None:
    """Reject a fitted method if its weights cannot be scored on held-out rows.

    Raises:
        RunError: there is only one fold, or one fold has nearly all patches of a class.
    """
    if _BLEND_METHODS[name].fit is not None and (found := _explain_unfittable(labels, fold, by_slide=by_slide)):
        hint = f"Use --method mean, or runs with {'more slides' if by_slide else 'all folds'}"
        raise RunError(found, f"--method {name} fits its weights on those patches", hint)


def _nested_predictions(
    name: str, labels: Labels, columns: Columns, fold: NDArray[np.int64], *, by_slide: bool = False
) -> NDArray[np.float64]:
    """Return the combined prediction of each row, with weights fitted on the other folds only.

    Args:
        name: key of `_BLEND_METHODS`.
        labels: int [N] of 0 and 1.
        columns: float64 [N, M] of probabilities.
        fold: int [N]. Slides are not split across folds, so the weights see no other patch of a row's slide either.
        by_slide: True if `fold` has groups of slides of one holdout or one fold; for messages.
    Returns:
        float64 [N] in 0..1.
    Raises:
        RunError: as in `_require_fittable`.
    """
    _require_fittable(name, labels, fold, by_slide=by_slide)
    space = _to_space(columns, _BLEND_METHODS[name].space)
    if _BLEND_METHODS[name].fit is None:
        return _fit_blend(name, labels, space).apply(space)
    combined = np.empty(len(labels))
    for number in np.unique(fold):
        in_fold = fold == number
        combined[in_fold] = _fit_blend(name, np.asarray(labels)[~in_fold], space[~in_fold]).apply(space[in_fold])
    return combined
