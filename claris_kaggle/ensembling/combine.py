"""Join the OOF and test probabilities of several runs by id and combine them, with leakage-free scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, name_few
from claris_kaggle.data.arrays import Columns, Labels, Probabilities
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.runs import Run, _correlate_columns, _drop_copies, _examine_runs, _require_comparable
from claris_kaggle.evaluation import metrics
from claris_kaggle.evaluation.auc_intervals import Comparison, measure
from claris_kaggle.evaluation.calibration import (
    apply_temperature,
    calibration_error,
    fit_temperature,
    nested_temperature,
)
from claris_kaggle.evaluation.predictions import Oof, TestPredictions

# One-sided significance level: a method is used only if the p-value of its gain over the mean is below this.
_MOST_DOUBT = 0.05


@dataclass(frozen=True)
class Ensemble:
    """The combined predictions of several runs.

    Attributes:
        oof: OOF predictions. The weights for a patch were fitted without its fold.
        test: test predictions, with weights fitted on all folds.
        slides: as in `Run`.
        evidence: JSON values: the method, its weights, the score of each method, correlations and warnings.
    """

    oof: Oof
    test: TestPredictions
    slides: list[str] | None
    evidence: dict[str, Any]


@dataclass(frozen=True)
class _Trial:
    """The nested result of one method.

    Attributes:
        values: float32 [N], combined OOF probabilities, with weights fitted without the patch's fold.
        auc: AUC of `values`.
        gain: paired comparison of `auc` with that of the plain mean.
    """

    values: Probabilities
    auc: float
    gain: Comparison

    @property
    def doubt(self) -> float:
        """The one-sided p-value of the gain over the plain mean."""
        return self.gain.p / 2 if self.gain.difference > 0 else 1 - self.gain.p / 2

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as JSON values."""
        return {"auc": self.auc, "gain": self.gain.to_json(), "doubt": self.doubt}


def combine(runs: Sequence[Run], method: str = "mean", *, only_sound: bool = False) -> Ensemble:
    """Combine runs into one and return the result. The order of the runs and duplicates do not change it.

    A method is used only if its nested AUC is significantly higher than that of the plain mean (one-sided p < 0.05).
    Otherwise the plain mean is used.

    Args:
        runs: one or more runs with the same ids, labels, folds and test ids.
        method: `mean`, `logit`, `rank`, `logloss`, `auc`, `greedy` or `stack`; or `auto`, the method with the highest
            nested AUC.
        only_sound: exclude runs that get a warning, for example a run that is no better than chance.
    Raises:
        UsageError: unknown method, or two runs have the same name.
        RunError: the runs have different folds, labels or test patches, every run is excluded, or the weights of the
            method cannot be fitted on held-out rows.
    """
    blending._require_method(method)
    _require_comparable(runs)
    remarks = _examine_runs(runs)
    kept, copies = _drop_copies([run for run in runs if not (only_sound and run.name in remarks)])
    if not kept:
        raise RunError(f"{name_few(remarks)}: nothing sound among the runs", "", "Look at their reports")
    oof, slides = kept[0].oof, next((run.slides for run in kept if run.slides), None)
    columns = _stack_columns([run.oof.probabilities for run in kept])
    trials = _try_methods(oof, columns, slides, _choose_trials(method, oof, len(kept)))
    taken = _choose_method(trials)
    space = blending._BLEND_METHODS[taken].space
    blend = blending._fit_blend(taken, oof.labels, blending._to_space(columns, space))
    test = blend.apply(blending._to_space(_stack_columns([run.test.probabilities for run in kept]), space))
    evidence = {
        **blending._describe_blend(blend, [run.name for run in kept]),
        "asked": method,
        "methods": {name: trial.to_json() for name, trial in trials.items()},
        "against_best": _compare_with_best_run(kept, columns, slides),
        "correlations": _describe_correlations(kept),
        "remarks": remarks,
        "copies": copies,
        "left_out": sorted(remarks) if only_sound else [],
    }
    return Ensemble(
        replace(oof, probabilities=trials[taken].values),
        TestPredictions(kept[0].test.ids, test.astype(np.float32)),
        slides,
        evidence,
    )


def _stack_columns(columns: Sequence[NDArray[np.float32]]) -> Columns:
    """Stack M columns of N values to float64 [N, M]."""
    return np.stack(columns, axis=1).astype(np.float64)


def _choose_trials(method: str, oof: Oof, runs: int) -> list[str]:
    """Return the methods to try: the mean and `method`, or for `auto` every method that can be fitted."""
    if runs == 1:
        return ["mean"]
    if method != "auto":
        return sorted({"mean", method}, key=list(blending._BLEND_METHODS).index)
    fittable = not blending._explain_unfittable(oof.labels, oof.fold)
    return [name for name in blending._BLEND_METHODS if fittable or name not in blending._FITTED_METHODS]


def _try_methods(oof: Oof, columns: Columns, slides: list[str] | None, names: Sequence[str]) -> dict[str, _Trial]:
    """Return the nested result of each method, compared with the plain mean.

    Args:
        oof: ids, labels and folds of the runs.
        columns: float64 [N, M] of probabilities.
        slides: the slide of each patch, or None.
        names: the methods, the mean first.
    """
    nested = [blending._nested_predictions(name, oof.labels, columns, oof.fold).astype(np.float32) for name in names]
    measured = measure(oof.labels, np.stack(nested, axis=1), slides)
    return {
        name: _Trial(nested[place], metrics.auc(oof.labels, nested[place]), measured.compare(place, 0))
        for place, name in enumerate(names)
    }


def _choose_method(trials: Mapping[str, _Trial]) -> str:
    """Return the method with the highest nested AUC among those significantly better than the mean, else `mean`."""
    better = [name for name, trial in trials.items() if trial.doubt < _MOST_DOUBT]
    return max(better, key=lambda name: trials[name].auc, default="mean")


def _compare_with_best_run(
    runs: Sequence[Run], columns: Columns, slides: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Compare the OOF AUC of each other run with that of the best run, paired by patch. Return one entry per run."""
    if len(runs) < 2:
        return {}
    measured = measure(runs[0].oof.labels, columns, slides)
    best = int(np.argmax(measured.aucs))
    found = {
        run.name: {"best": runs[best].name, **measured.compare(place, best).to_json()}
        for place, run in enumerate(runs)
        if place != best
    }
    return dict(sorted(found.items()))


def _describe_correlations(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return Spearman's correlation of the OOF probabilities for each pair of runs, by name."""
    if len(runs) < 2:
        return {}
    runs = sorted(runs, key=lambda run: run.name)
    table = _correlate_columns([run.oof.probabilities for run in runs])
    return {
        one.name: {other.name: float(table[row, column]) for column, other in enumerate(runs) if column != row}
        for row, one in enumerate(runs)
    }


def _calibrate_ensemble(together: Ensemble) -> Ensemble:
    """Return the ensemble with probabilities scaled by a temperature that was fitted on its OOF predictions.

    OOF predictions of a fold are scaled by the temperature of the other folds, test predictions by that of all folds.
    The probabilities stay unchanged if scaling does not lower the OOF log loss.
    """
    oof, test = together.oof, together.test
    temperature = fit_temperature(oof.labels, oof.probabilities)
    scaled = nested_temperature(oof.labels, oof.probabilities, oof.fold)
    before, after = (_calibration_figures(oof.labels, values) for values in (oof.probabilities, scaled))
    applied = after["log_loss"] < before["log_loss"]
    if applied:
        oof = replace(oof, probabilities=scaled)
        test = replace(test, probabilities=apply_temperature(test.probabilities, temperature))
    found = {"temperature": temperature, "before": before, "after": after, "applied": applied}
    return replace(together, oof=oof, test=test, evidence={**together.evidence, "calibration": found})


def _calibration_figures(labels: Labels, values: Probabilities) -> dict[str, float]:
    """Return log loss and expected calibration error."""
    return {"log_loss": metrics.log_loss(labels, values), "calibration_error": calibration_error(labels, values)}
