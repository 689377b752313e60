"""Weights for several runs' predictions, and their honest score: fitted without the rows that they are scored on.

Every method is a weighted sum of the runs' columns, taken as probabilities, as logits or as ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, UsageError
from claris_kaggle.data.arrays import Labels
from claris_kaggle.evaluation.metrics import clip_probabilities

_SpaceColumns = NDArray[np.float64]
_Weights = NDArray[np.float64]
_BAGS, _BAG_SHARE, _PICKS = 20, 0.5, 20
# Of fewer runs than this no bags are made: many of them would lack the one good run.
_LEAST_BAG = 6
# The levels to which values are rounded while greedy selection looks for the next run.
_LEVELS = 1 << 14


@dataclass(frozen=True)
class _Blend:
    """A fitted combination.

    Attributes:
        method: its name.
        weights: float64 [M], a weight for each run.
        intercept: added before the result is brought back to 0..1.
    """

    method: str
    weights: _Weights
    intercept: float = 0.0

    def apply(self, columns: _SpaceColumns) -> NDArray[np.float64]:
        """The combined prediction in 0..1, float64 [N], from columns in the method's own space."""
        # The weighted values are summed in the order of their size, so that the order of runs is no matter.
        mixed = np.sort(columns * self.weights, axis=1).sum(axis=1) + self.intercept
        if _BLEND_METHODS[self.method].space != "logit":
            return np.asarray(np.clip(mixed, 0.0, 1.0))
        from scipy.special import expit

        return np.asarray(expit(mixed))


@dataclass(frozen=True)
class _Method:
    """How a method works: the space of its columns, and what fits its weights (None: all equal)."""

    space: str
    fit: Callable[[Labels, _SpaceColumns], tuple[_Weights, float]] | None
    about: str


def _to_space(columns: _SpaceColumns, space: str) -> _SpaceColumns:
    """The runs' probabilities, float64 [N, M], as the space's values."""
    if space == "logit":
        from scipy.special import logit

        return np.asarray(logit(clip_probabilities(columns)))
    if space == "rank":
        from scipy.stats import rankdata

        return np.asarray((rankdata(columns, axis=0) - 0.5) / len(columns))
    return columns


def _fit_log_loss(labels: Labels, columns: _SpaceColumns) -> tuple[_Weights, float]:
    """The mean of probabilities with the smallest log loss: convex, so the one best."""
    from scipy.optimize import minimize

    right = clip_probabilities(np.where(np.asarray(labels)[:, None] == 1, columns, 1 - columns))

    def loss(weights: _Weights) -> tuple[float, _Weights]:
        mixed = right @ weights
        return float(-np.log(mixed).mean()), -(right / mixed[:, None]).mean(axis=0)

    runs = columns.shape[1]
    found = minimize(
        loss, np.full(runs, 1 / runs), jac=True, method="SLSQP", bounds=[(0, 1)] * runs,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones(runs)},
        options={"ftol": 1e-12, "maxiter": 200},
    )  # fmt: skip
    return _to_simplex(found.x), 0.0


def _fit_auc(labels: Labels, columns: _SpaceColumns) -> tuple[_Weights, float]:
    """The non-negative mean of logits of the highest AUC, where both classes are about normal.

    Maximises (difference of the means) / (spread of the sum of both classes): Su and Liu 1993. As a
    least-squares problem it is convex, which the AUC itself is not.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    ups, downs = columns[np.asarray(labels) == 1], columns[np.asarray(labels) != 1]
    spread = np.atleast_2d(np.cov(ups, rowvar=False) + np.cov(downs, rowvar=False))
    # A trace of ridge: runs that are nearly copies would otherwise have no unique weights.
    spread = spread + np.eye(len(spread)) * (1e-6 * np.trace(spread) / len(spread) + 1e-12)
    factor = cholesky(spread, lower=True)
    aim = solve_triangular(factor, ups.mean(axis=0) - downs.mean(axis=0), lower=True)
    return _to_simplex(nnls(factor.T, aim)[0]), 0.0


def _fit_greedy(labels: Labels, columns: _SpaceColumns) -> tuple[_Weights, float]:
    """Greedy selection with replacement by AUC, in bags of half of many runs (Caruana et al. 2004)."""
    runs = columns.shape[1]
    low, high = columns.min(), columns.max()
    coarse = np.round((columns - low) / (high - low or 1.0) * (_LEVELS - 1)).astype(np.int32)
    malignant = np.asarray(labels) == 1
    halves = coarse[malignant].T.copy(), coarse[~malignant].T.copy()
    generator = np.random.default_rng(0)
    counts = np.zeros(runs)
    size = min(runs, max(_LEAST_BAG, math.ceil(runs * _BAG_SHARE)))
    for _ in range(_BAGS if size < runs else 1):
        counts += _select_greedily(halves, np.sort(generator.permutation(runs)[:size]))
    return _to_simplex(counts), 0.0


def _select_greedily(halves: tuple[NDArray[np.int32], NDArray[np.int32]], bag: NDArray[np.int64]) -> _Weights:
    """How often each run is picked: the next is always the one that helps the most, until none does.

    Args:
        halves: the runs' rounded values, [M, P] of malignant and [M, N - P] of benign patches.
        bag: the runs that may be picked.
    """
    ups, downs = halves
    counts, best = np.zeros(len(ups)), -1.0
    up, down = np.zeros_like(ups[0]), np.zeros_like(downs[0])
    for picked in range(1, _PICKS + 1):
        scores = [_count_auc((up + ups[run]) // picked, (down + downs[run]) // picked) for run in bag]
        if max(scores) <= best:
            break
        best = max(scores)
        run = bag[int(np.argmax(scores))]
        counts[run] += 1
        up, down = up + ups[run], down + downs[run]
    return counts


def _count_auc(ups: NDArray[np.int32], downs: NDArray[np.int32]) -> float:
    """AUC of whole numbers below `_LEVELS`, ties by half, by counting instead of sorting."""
    above, under = np.bincount(ups, minlength=_LEVELS), np.bincount(downs, minlength=_LEVELS)
    below = np.cumsum(under) - under / 2
    return float(above @ below / (len(ups) * len(downs)))


def _fit_stack(labels: Labels, columns: _SpaceColumns) -> tuple[_Weights, float]:
    """Logistic regression on the runs' logits, with a ridge of scikit-learn's strength on standardised columns."""
    from sklearn.linear_model import LogisticRegression

    middle, spread = columns.mean(axis=0), columns.std(axis=0) + 1e-12
    model = LogisticRegression(max_iter=1000, tol=1e-8).fit((columns - middle) / spread, np.asarray(labels))
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - weights @ middle)


def _to_simplex(weights: _Weights) -> _Weights:
    """Non-negative and of sum 1; all equal where nothing is left."""
    kept = np.clip(weights, 0.0, None)
    return kept / kept.sum() if kept.sum() > 0 else np.full(len(kept), 1 / len(kept))


_BLEND_METHODS: dict[str, _Method] = {
    "mean": _Method("probability", None, "mean of the probabilities"),
    "logit": _Method("logit", None, "mean of the logits"),
    "rank": _Method("rank", None, "mean of the ranks"),
    "logloss": _Method("probability", _fit_log_loss, "weights of the smallest log loss"),
    "auc": _Method("logit", _fit_auc, "weights of the highest AUC"),
    "greedy": _Method("probability", _fit_greedy, "greedy selection with replacement"),
    "stack": _Method("logit", _fit_stack, "logistic stacking"),
}
_FITTED_METHODS = tuple(name for name, method in _BLEND_METHODS.items() if method.fit)


def _require_method(name: str) -> str:
    """The name itself.

    Raises:
        UsageError: there is no such method.
    """
    if name not in _BLEND_METHODS and name != "auto":
        raise UsageError(f"--method is {name!r}", f"it must be one of {', '.join(_BLEND_METHODS)} and auto")
    return name


def _fit_blend(name: str, labels: Labels, columns: _SpaceColumns) -> _Blend:
    """The method fitted on these rows; its columns must be in its own space."""
    method = _BLEND_METHODS[name]
    if method.fit is None or columns.shape[1] == 1:
        return _Blend(name, np.full(columns.shape[1], 1 / columns.shape[1]))
    return _Blend(name, *method.fit(labels, columns))


def _explain_unfittable(labels: Labels, fold: NDArray[np.int64]) -> str:
    """What keeps weights from being fitted without a fold; nothing where two patches of each class are always left."""
    malignant = np.asarray(labels) == 1
    for number in np.unique(fold).tolist():
        outside = malignant[fold != number]
        if min(outside.sum(), len(outside) - outside.sum()) < 2:
            return f"no two benign and two malignant patches outside fold {number}"
    return ""


def _require_fittable(name: str, labels: Labels, fold: NDArray[np.int64]) -> None:
    """Refuse a fitted method where its weights cannot be scored on rows that they have not seen.

    Raises:
        RunError: there is one fold alone, or one that holds nearly all patches of a class.
    """
    if _BLEND_METHODS[name].fit is not None and (found := _explain_unfittable(labels, fold)):
        raise RunError(found, f"--method {name} fits its weights there", "Take --method mean, or runs with all folds")


def _nested_predictions(
    name: str, labels: Labels, columns: _SpaceColumns, fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Every row's combined prediction, by weights fitted on the other folds, so never on its own label.

    Args:
        labels: int [N] of 0 and 1.
        columns: float64 [N, M] of probabilities.
        fold: int [N]; groups stand whole in a fold, so the weights see no patch of a row's slide either.
    Returns:
        float64 [N] in 0..1.
    Raises:
        RunError: as in `_require_fittable`.
    """
    _require_fittable(name, labels, fold)
    space = _to_space(columns, _BLEND_METHODS[name].space)
    if _BLEND_METHODS[name].fit is None:
        return _fit_blend(name, labels, space).apply(space)
    combined = np.empty(len(labels))
    for number in np.unique(fold):
        inside = fold == number
        combined[inside] = _fit_blend(name, np.asarray(labels)[~inside], space[~inside]).apply(space[inside])
    return combined


def _describe_blend(blend: _Blend, names: list[str]) -> dict[str, Any]:
    """The combination as plain values, a weight for each run's name, in their order."""
    weights = sorted(zip(names, map(float, blend.weights), strict=True))
    return {"method": blend.method, "weights": dict(weights), "intercept": blend.intercept}
