"""Several runs as one: their OOF and test probabilities joined by id and combined, by weights scored honestly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, name_few
from claris_kaggle.data.arrays import Labels, Probabilities
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

# A gain is sure, and its method handed out, where chance alone would show as much less often than this.
_MOST_DOUBT = 0.05
_RunColumns = NDArray[np.float64]


@dataclass(frozen=True)
class Ensemble:
    """What comes of several runs.

    Attributes:
        oof: each patch combined by weights that were fitted without its fold.
        test: combined by weights fitted on all folds.
        slides: as in `Run`.
        evidence: the method, its weights, what each method scored, what was noticed; plain values.
    """

    oof: Oof
    test: TestPredictions
    slides: list[str] | None
    evidence: dict[str, Any]


@dataclass(frozen=True)
class _Trial:
    """What a method came to.

    Attributes:
        values: float32 [N], each patch combined by weights fitted without its fold.
        auc: theirs.
        gain: over the plain mean.
    """

    values: Probabilities
    auc: float
    gain: Comparison

    @property
    def doubt(self) -> float:
        """The one-sided p-value of a gain where there is none."""
        return self.gain.p / 2 if self.gain.difference > 0 else 1 - self.gain.p / 2

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {"auc": self.auc, "gain": self.gain.to_json(), "doubt": self.doubt}


def combine(runs: Sequence[Run], method: str = "mean", *, only_sound: bool = False) -> Ensemble:
    """The runs as one; neither their order nor a copy among them makes a difference.

    Args:
        method: a name of `blending.METHODS`, or `auto`: the one of the highest nested AUC. What is not surely
            better than the plain mean, nested, is not handed out: the mean is.
        only_sound: leave out runs that `_examine_runs` has something against.
    Raises:
        UsageError: an unknown method.
        RunError: the runs are over different folds, labels or test patches, or none is left, or there is nothing
            to fit the method's weights on.
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


def _stack_columns(columns: Sequence[NDArray[np.float32]]) -> _RunColumns:
    """The columns side by side, float64 [N, M]."""
    return np.stack(columns, axis=1).astype(np.float64)


def _choose_trials(method: str, oof: Oof, runs: int) -> list[str]:
    """The mean, and what is held against it: the method, or for `auto` all that can be fitted here."""
    if runs == 1:
        return ["mean"]
    if method != "auto":
        return sorted({"mean", method}, key=list(blending._BLEND_METHODS).index)
    fittable = not blending._explain_unfittable(oof.labels, oof.fold)
    return [name for name in blending._BLEND_METHODS if fittable or name not in blending._FITTED_METHODS]


def _try_methods(oof: Oof, columns: _RunColumns, slides: list[str] | None, names: Sequence[str]) -> dict[str, _Trial]:
    """Each method's nested result beside that of the plain mean.

    Args:
        names: of methods, the mean first.
    """
    nested = [blending._nested_predictions(name, oof.labels, columns, oof.fold).astype(np.float32) for name in names]
    measured = measure(oof.labels, np.stack(nested, axis=1), slides)
    return {
        name: _Trial(nested[place], metrics.auc(oof.labels, nested[place]), measured.compare(place, 0))
        for place, name in enumerate(names)
    }


def _choose_method(trials: Mapping[str, _Trial]) -> str:
    """The method of the highest nested AUC among those that surely gain over the mean, else the mean."""
    better = [name for name, trial in trials.items() if trial.doubt < _MOST_DOUBT]
    return max(better, key=lambda name: trials[name].auc, default="mean")


def _compare_with_best_run(
    runs: Sequence[Run], columns: _RunColumns, slides: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Each run's OOF AUC against that of the best run, paired; the best is not in it."""
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
    """Spearman's correlation of each pair of runs' OOF probabilities, by name."""
    if len(runs) < 2:
        return {}
    runs = sorted(runs, key=lambda run: run.name)
    table = _correlate_columns([run.oof.probabilities for run in runs])
    return {
        one.name: {other.name: float(table[row, column]) for column, other in enumerate(runs) if column != row}
        for row, one in enumerate(runs)
    }


def _calibrate_ensemble(together: Ensemble) -> Ensemble:
    """The ensemble with its probabilities scaled by one temperature, fitted on its OOF predictions.

    The OOF of each fold is scaled by the temperature of the other folds, the test by that of all. Where that does
    not lower the OOF log loss the probabilities stay as they are.
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
    """Log loss and expected calibration error."""
    return {"log_loss": metrics.log_loss(labels, values), "calibration_error": calibration_error(labels, values)}
