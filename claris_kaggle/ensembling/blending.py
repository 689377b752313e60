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
from claris_kaggle.evaluation.metrics import keep_off_ends

Columns = NDArray[np.float64]
Weights = NDArray[np.float64]
BAGS, BAG_SHARE, PICKS = 20, 0.5, 20
# Of fewer runs than this no bags are made: many of them would lack the one good run.
LEAST_BAG = 6
# The levels to which values are rounded while greedy selection looks for the next run.
LEVELS = 1 << 14


@dataclass(frozen=True)
class Blend:
    """A fitted combination.

    Attributes:
        method: its name.
        weights: float64 [M], a weight for each run.
        intercept: added before the result is brought back to 0..1.
    """

    method: str
    weights: Weights
    intercept: float = 0.0

    def apply(self, columns: Columns) -> NDArray[np.float64]:
        """The combined prediction in 0..1, float64 [N], from columns in the method's own space."""
        # The weighted values are summed in the order of their size, so that the order of runs is no matter.
        mixed = np.sort(columns * self.weights, axis=1).sum(axis=1) + self.intercept
        if METHODS[self.method].space != "logit":
            return np.asarray(np.clip(mixed, 0.0, 1.0))
        from scipy.special import expit

        return np.asarray(expit(mixed))


@dataclass(frozen=True)
class Method:
    """How a method works: the space of its columns, and what fits its weights (None: all equal)."""

    space: str
    fit: Callable[[Labels, Columns], tuple[Weights, float]] | None
    about: str


def to_space(columns: Columns, space: str) -> Columns:
    """The runs' probabilities, float64 [N, M], as the space's values."""
    if space == "logit":
        from scipy.special import logit

        return np.asarray(logit(keep_off_ends(columns)))
    if space == "rank":
        from scipy.stats import rankdata

        return np.asarray((rankdata(columns, axis=0) - 0.5) / len(columns))
    return columns


def fit_log_loss(labels: Labels, columns: Columns) -> tuple[Weights, float]:
    """The mean of probabilities with the smallest log loss: convex, so the one best."""
    from scipy.optimize import minimize

    right = keep_off_ends(np.where(np.asarray(labels)[:, None] == 1, columns, 1 - columns))

    def loss(weights: Weights) -> tuple[float, Weights]:
        mixed = right @ weights
        return float(-np.log(mixed).mean()), -(right / mixed[:, None]).mean(axis=0)

    runs = columns.shape[1]
    found = minimize(
        loss, np.full(runs, 1 / runs), jac=True, method="SLSQP", bounds=[(0, 1)] * runs,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones(runs)},
        options={"ftol": 1e-12, "maxiter": 200},
    )  # fmt: skip
    return to_simplex(found.x), 0.0


def fit_auc(labels: Labels, columns: Columns) -> tuple[Weights, float]:
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
    return to_simplex(nnls(factor.T, aim)[0]), 0.0


def fit_greedy(labels: Labels, columns: Columns) -> tuple[Weights, float]:
    """Greedy selection with replacement by AUC, in bags of half of many runs (Caruana et al. 2004)."""
    runs = columns.shape[1]
    low, high = columns.min(), columns.max()
    coarse = np.round((columns - low) / (high - low or 1.0) * (LEVELS - 1)).astype(np.int32)
    malignant = np.asarray(labels) == 1
    halves = coarse[malignant].T.copy(), coarse[~malignant].T.copy()
    generator = np.random.default_rng(0)
    counts = np.zeros(runs)
    size = min(runs, max(LEAST_BAG, math.ceil(runs * BAG_SHARE)))
    for _ in range(BAGS if size < runs else 1):
        counts += select_greedily(halves, np.sort(generator.permutation(runs)[:size]))
    return to_simplex(counts), 0.0


def select_greedily(halves: tuple[NDArray[np.int32], NDArray[np.int32]], bag: NDArray[np.int64]) -> Weights:
    """How often each run is picked: the next is always the one that helps the most, until none does.

    Args:
        halves: the runs' rounded values, [M, P] of malignant and [M, N - P] of benign patches.
        bag: the runs that may be picked.
    """
    ups, downs = halves
    counts, best = np.zeros(len(ups)), -1.0
    up, down = np.zeros_like(ups[0]), np.zeros_like(downs[0])
    for picked in range(1, PICKS + 1):
        scores = [counted_auc((up + ups[run]) // picked, (down + downs[run]) // picked) for run in bag]
        if max(scores) <= best:
            break
        best = max(scores)
        run = bag[int(np.argmax(scores))]
        counts[run] += 1
        up, down = up + ups[run], down + downs[run]
    return counts


def counted_auc(ups: NDArray[np.int32], downs: NDArray[np.int32]) -> float:
    """AUC of whole numbers below `LEVELS`, ties by half, by counting instead of sorting."""
    above, under = np.bincount(ups, minlength=LEVELS), np.bincount(downs, minlength=LEVELS)
    below = np.cumsum(under) - under / 2
    return float(above @ below / (len(ups) * len(downs)))


def fit_stack(labels: Labels, columns: Columns) -> tuple[Weights, float]:
    """Logistic regression on the runs' logits, with a ridge of scikit-learn's strength on standardised columns."""
    from sklearn.linear_model import LogisticRegression

    middle, spread = columns.mean(axis=0), columns.std(axis=0) + 1e-12
    model = LogisticRegression(max_iter=1000, tol=1e-8).fit((columns - middle) / spread, np.asarray(labels))
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - weights @ middle)


def to_simplex(weights: Weights) -> Weights:
    """Non-negative and of sum 1; all equal where nothing is left."""
    kept = np.clip(weights, 0.0, None)
    return kept / kept.sum() if kept.sum() > 0 else np.full(len(kept), 1 / len(kept))


METHODS: dict[str, Method] = {
    "mean": Method("probability", None, "mean of the probabilities"),
    "logit": Method("logit", None, "mean of the logits"),
    "rank": Method("rank", None, "mean of the ranks"),
    "logloss": Method("probability", fit_log_loss, "weights of the smallest log loss"),
    "auc": Method("logit", fit_auc, "weights of the highest AUC"),
    "greedy": Method("probability", fit_greedy, "greedy selection with replacement"),
    "stack": Method("logit", fit_stack, "logistic stacking"),
}
FITTED = tuple(name for name, method in METHODS.items() if method.fit)


def require_method(name: str) -> str:
    """The name itself.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS and name != "auto":
        raise UsageError(f"--method is {name!r}", f"it must be one of {', '.join(METHODS)} and auto")
    return name


def fit(name: str, labels: Labels, columns: Columns) -> Blend:
    """The method fitted on these rows; its columns must be in its own space."""
    method = METHODS[name]
    if method.fit is None or columns.shape[1] == 1:
        return Blend(name, np.full(columns.shape[1], 1 / columns.shape[1]))
    return Blend(name, *method.fit(labels, columns))


def why_unfittable(labels: Labels, fold: NDArray[np.int64]) -> str:
    """What keeps weights from being fitted without a fold; nothing where two patches of each class are always left."""
    malignant = np.asarray(labels) == 1
    for number in np.unique(fold).tolist():
        outside = malignant[fold != number]
        if min(outside.sum(), len(outside) - outside.sum()) < 2:
            return f"no two benign and two malignant patches outside fold {number}"
    return ""


def require_fittable(name: str, labels: Labels, fold: NDArray[np.int64]) -> None:
    """Refuse a fitted method where its weights cannot be scored on rows that they have not seen.

    Raises:
        RunError: there is one fold alone, or one that holds nearly all patches of a class.
    """
    if METHODS[name].fit is not None and (found := why_unfittable(labels, fold)):
        raise RunError(found, f"--method {name} fits its weights there", "Take --method mean, or runs with all folds")


def nested(name: str, labels: Labels, columns: Columns, fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Every row's combined prediction, by weights fitted on the other folds, so never on its own label.

    Args:
        labels: int [N] of 0 and 1.
        columns: float64 [N, M] of probabilities.
        fold: int [N]; groups stand whole in a fold, so the weights see no patch of a row's slide either.
    Returns:
        float64 [N] in 0..1.
    Raises:
        RunError: as in `require_fittable`.
    """
    require_fittable(name, labels, fold)
    space = to_space(columns, METHODS[name].space)
    if METHODS[name].fit is None:
        return fit(name, labels, space).apply(space)
    combined = np.empty(len(labels))
    for number in np.unique(fold):
        inside = fold == number
        combined[inside] = fit(name, np.asarray(labels)[~inside], space[~inside]).apply(space[inside])
    return combined


def describe(blend: Blend, names: list[str]) -> dict[str, Any]:
    """The combination as plain values, a weight for each run's name, in their order."""
    weights = sorted(zip(names, map(float, blend.weights), strict=True))
    return {"method": blend.method, "weights": dict(weights), "intercept": blend.intercept}
