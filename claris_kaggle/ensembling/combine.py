"""Join the OOF and test probabilities of several runs by id and combine them, with leakage-free scores."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError, RunError, UsageError, name_few
from claris_kaggle.data.arrays import Columns, Labels, Probabilities
from claris_kaggle.data.fold_split import make_folds
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.runs import (
    Run,
    _correlate_columns,
    _drop_copies,
    _examine_runs,
    _require_comparable,
    _share_folds,
    _share_slides,
)
from claris_kaggle.evaluation import metrics
from claris_kaggle.evaluation.auc_intervals import Comparison, MeasuredAuc, measure
from claris_kaggle.evaluation.calibration import (
    apply_temperature,
    calibration_curve,
    fit_temperature,
    nested_temperature,
)
from claris_kaggle.evaluation.predictions import Oof, TestPredictions

_HOLDOUT_GROUPS = 5  # number of groups of slides that take the place of folds for a holdout
# One-sided significance level: a method is used only if the p-value of its gain over the mean is below this.
_SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class _MethodScore:
    """The nested score of one method.

    Attributes:
        auc: AUC of the OOF probabilities, with weights fitted without the patch's fold.
        gain: paired comparison of `auc` with that of the plain mean.
        p_one_sided: the one-sided p-value of the gain.
    """

    auc: float
    gain: Comparison
    p_one_sided: float


@dataclass(frozen=True)
class _CalibrationFigures:
    """Log loss and expected calibration error."""

    log_loss: float
    calibration_error: float


@dataclass(frozen=True)
class CalibrationEvidence:
    """The effect of temperature scaling on held-out folds.

    Attributes:
        temperature: the divisor of the logits, fitted on all folds.
        before: metrics of the OOF predictions without a temperature.
        after: their metrics with the temperature of the other folds; None without other folds or groups of slides.
        auc: AUC of the OOF predictions. One temperature scales all of them, so their order and the AUC do not change.
        applied: True if the probabilities were scaled, because that lowers the log loss.
    """

    temperature: float
    before: _CalibrationFigures
    after: _CalibrationFigures | None
    auc: float
    applied: bool


@dataclass(frozen=True, kw_only=True)
class EnsembleEvidence:
    """Why an ensemble was combined in this way.

    Attributes:
        method: the method that was used.
        weights: the weight of each run, by name.
        intercept: added to the weighted sum.
        requested_method: the method that was asked for.
        methods: the nested score of each method that was tried.
        best: name of the run with the highest OOF AUC; empty for a single run.
        against_best: paired comparison of each other run with the best one, by name.
        over_best: paired comparison of the ensemble with the best run; None for a single run. The best run is selected
            on the same patches, so its AUC is slightly optimistic.
        members: what each run adds to the plain mean: paired comparison of the mean of all runs with the mean of the
            other runs, by name. Empty for a single run. With slides, the variance is computed without resamples.
        correlations: Spearman's correlation of the OOF probabilities of each pair of runs, by name.
        remarks: a warning for each suspicious run, by name.
        copies: runs with the same predictions as another run, with the name of that run.
        left_out: names of the runs that were excluded.
        calibration: the temperature and its effect; None if it was not asked for.
    """

    method: str
    weights: dict[str, float]
    intercept: float
    requested_method: str
    methods: dict[str, _MethodScore]
    best: str
    against_best: dict[str, Comparison]
    over_best: Comparison | None
    members: dict[str, Comparison]
    correlations: dict[str, dict[str, float]]
    remarks: dict[str, str]
    copies: dict[str, str]
    left_out: list[str]
    calibration: CalibrationEvidence | None = None

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values. `best` is in each entry of `against_best`, and in `over_best`."""
        content = asdict(self)
        best = content.pop("best")
        content["against_best"] = {name: {"best": best, **gap} for name, gap in content["against_best"].items()}
        if self.over_best is not None:
            content["over_best"] = {"best": best, **content["over_best"]}
        return {name: value for name, value in content.items() if value is not None}


@dataclass(frozen=True)
class Ensemble:
    """The combined predictions of several runs.

    Attributes:
        oof: OOF predictions. The weights for a patch were fitted without its fold.
        test: test predictions, with weights fitted on all folds.
        slides: as in `Run`.
        groups: int64 [N], folds or groups of slides. Weights and temperature are scored on groups outside their fit.
        measured: the AUC of `oof` with the data for intervals and comparisons.
        evidence: the method, its weights, the score of each method, correlations and warnings.
    """

    oof: Oof
    test: TestPredictions
    slides: list[str] | None
    measured: MeasuredAuc
    evidence: EnsembleEvidence
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class _Trial:
    """The nested result of one method.

    Attributes:
        values: float [N], combined OOF probabilities, with weights fitted without the patch's fold.
        measured: the AUC of `values` with the data for intervals and comparisons.
        score: the AUC of `values`, compared with that of the plain mean.
    """

    values: Probabilities
    measured: MeasuredAuc
    score: _MethodScore


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
        UsageError: unknown method, no runs, or two runs have the same name.
        DataError: a run has values that are not probabilities, or another number of them than ids.
        RunError: the runs have different folds, labels or test patches, every run is excluded, or the weights of the
            method cannot be fitted on held-out rows.
    """
    blending._require_method(method)
    runs = _align_runs(runs)
    remarks = _examine_runs(runs)
    used, copies = _drop_copies([run for run in runs if not (only_sound and run.name in remarks)])
    if not used:
        raise RunError(
            f"{name_few(remarks)}: every run was excluded by --only-sound",
            "",
            "See their reports, or run it without --only-sound",
        )
    oof = used[0].oof
    columns = _stack_columns([run.oof.probabilities for run in used])
    groups = _scoring_groups(used[0])
    trials = _try_methods(used, columns, _choose_trials(method, oof, len(used), groups), groups)
    chosen = _choose_method(trials)
    space = blending._BLEND_METHODS[chosen].space
    blend = blending._fit_blend(chosen, oof.labels, blending._to_space(columns, space))
    test = blend.apply(blending._to_space(_stack_columns([run.test.probabilities for run in used]), space))
    best, against_best = _compare_with_best_run(used)
    evidence = EnsembleEvidence(
        method=chosen,
        weights=dict(sorted(zip([run.name for run in used], map(float, blend.weights), strict=True))),
        intercept=blend.intercept,
        requested_method=method,
        methods={name: trial.score for name, trial in trials.items()},
        best=best,
        against_best=against_best,
        over_best=_compare_outcome(used, best, trials[chosen].measured),
        members=_compare_without_each(used, columns, trials["mean"].measured),
        correlations=_describe_correlations(used),
        remarks=remarks,
        copies=copies,
        left_out=sorted(remarks) if only_sound else [],
    )
    has_folds = all(run.oof.has_folds for run in used)
    oof_result = replace(oof, probabilities=trials[chosen].values, has_folds=has_folds)
    predictions = TestPredictions(used[0].test.ids, test.astype(_common_type([run.test.probabilities for run in used])))
    return Ensemble(oof_result, predictions, used[0].slides, trials[chosen].measured, evidence, groups)


def _align_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the same fold numbers and slides, if each has one probability for each id.

    Raises:
        UsageError: there are no runs, or two have the same name.
        DataError: names the first run with other values.
        RunError: the runs have different folds, labels or test patches.
    """
    if not runs:
        raise UsageError("no runs to combine", "expected at least one")
    for run in runs:
        for kind, part in (("OOF", run.oof), ("test", run.test)):
            shape = part.probabilities.shape
            if shape != (len(part.ids),):
                found = f"{run.name}: {len(part.ids):,} {kind} ids and probabilities of shape {shape}"
                raise DataError(found, "expected one probability for each id")
            metrics.require_probabilities(part.probabilities, f"{kind} values of {run.name}")
    _require_comparable(runs)
    return _share_folds(_share_slides(runs))


def _stack_columns(columns: Sequence[Probabilities]) -> Columns:
    """Stack M columns of N values to float64 [N, M]."""
    return np.stack(columns, axis=1).astype(np.float64)


def _common_type(columns: Sequence[Probabilities]) -> np.dtype[np.floating]:
    """Return float32 if all columns fit in it, else float64. Means of integers are floating point, too."""
    return np.result_type(np.float32, *(column.dtype for column in columns))


def _scoring_groups(run: Run) -> NDArray[np.int64]:
    """Return the group of each patch, int64 [N]. The weights for a patch are fitted on the other groups.

    The groups are the folds. For a holdout or a single fold they are groups of slides, or one group of all patches if
    the slides are unknown or too few.
    """
    if run.has_one_group and run.slides is not None:
        oof, slides = run.oof, run.slides
        with contextlib.suppress(UsageError, DataError):
            return make_folds(oof.ids, oof.labels, k=min(_HOLDOUT_GROUPS, len(set(slides))), slides=slides).fold
    return run.oof.fold


def _choose_trials(method: str, oof: Oof, runs: int, groups: NDArray[np.int64]) -> list[str]:
    """Return the methods to try: the mean and `method`, or for `auto` every method that can be fitted."""
    if runs == 1:
        return ["mean"]
    if method != "auto":
        return sorted({"mean", method}, key=list(blending._BLEND_METHODS).index)
    fittable = not blending._explain_unfittable(oof.labels, groups)
    return [name for name in blending._BLEND_METHODS if fittable or name not in blending._FITTED_METHODS]


def _try_methods(
    runs: Sequence[Run], columns: Columns, names: Sequence[str], groups: NDArray[np.int64]
) -> dict[str, _Trial]:
    """Return the nested result of each method, compared with the plain mean.

    Args:
        runs: the runs, all with the same slides or without.
        columns: float64 [N, M], the OOF probabilities of the runs.
        names: the methods, the mean first.
        groups: int64 [N], as `_scoring_groups` returns them.
    """
    trials: dict[str, _Trial] = {}
    first, oof = runs[0], runs[0].oof
    by_slide = first.has_one_group and first.slides is not None
    dtype = _common_type([run.oof.probabilities for run in runs])
    for name in names:
        values = blending._nested_predictions(name, oof.labels, columns, groups, by_slide=by_slide).astype(dtype)
        measured = first.measured if len(runs) == 1 else measure(oof.labels, values, first.slides)
        gain = measured.compare(trials["mean"].measured if trials else measured)
        trials[name] = _Trial(values, measured, _MethodScore(metrics.auc(oof.labels, values), gain, gain.p_one_sided))
    return trials


def _choose_method(trials: Mapping[str, _Trial]) -> str:
    """Return the method with the highest nested AUC among those significantly better than the mean, else `mean`."""
    better = [name for name, trial in trials.items() if trial.score.p_one_sided < _SIGNIFICANCE_LEVEL]
    return max(better, key=lambda name: trials[name].score.auc, default="mean")


def _compare_with_best_run(runs: Sequence[Run]) -> tuple[str, dict[str, Comparison]]:
    """Return the name of the best run, and the paired comparison of each other run's OOF AUC with that of the best."""
    if len(runs) < 2:
        return "", {}
    best = max(runs, key=lambda run: run.measured.value)
    return best.name, {
        run.name: run.measured.compare(best.measured)
        for run in sorted(runs, key=lambda run: run.name)
        if run is not best
    }


def _compare_outcome(runs: Sequence[Run], best: str, outcome: MeasuredAuc) -> Comparison | None:
    """Return the paired comparison of the ensemble with the run named `best`, or None for a single run."""
    return next((outcome.compare(run.measured) for run in runs if run.name == best), None)


def _compare_without_each(runs: Sequence[Run], columns: Columns, mean: MeasuredAuc) -> dict[str, Comparison]:
    """Return the comparison of the mean of all runs with the mean of the other runs, for each run, by name.

    Args:
        runs: the runs.
        columns: float64 [N, M], the OOF probabilities of the runs.
        mean: the AUC of the mean of all runs.
    """
    found, mean_of_all = {}, mean.without_resamples()
    for column, run in enumerate(runs if len(runs) > 1 else []):
        others = np.delete(columns, column, axis=1)
        values = blending._fit_blend("mean", run.oof.labels, others).apply(others)
        mean_of_others = measure(run.oof.labels, values.astype(np.float32), run.slides, resample=False)
        found[run.name] = mean_of_all.compare(mean_of_others)
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


def _calibrate_ensemble(ensemble: Ensemble) -> Ensemble:
    """Return the ensemble with probabilities scaled by one temperature that was fitted on its OOF predictions.

    OOF and test predictions are scaled by the same temperature, so the order of both, and the AUC, do not change.
    Whether scaling lowers the log loss is measured on each fold with the temperature of the other folds. The
    probabilities stay unchanged if it does not, and if there is only one fold, or a holdout without groups of slides.
    """
    oof, test = ensemble.oof, ensemble.test
    temperature = fit_temperature(oof.labels, oof.probabilities)
    before, after = _calibration_figures(oof.labels, oof.probabilities), None
    if len(np.unique(ensemble.groups)) > 1:
        scaled = nested_temperature(oof.labels, oof.probabilities, ensemble.groups)
        after = _calibration_figures(oof.labels, scaled)
    applied = after is not None and after.log_loss < before.log_loss
    calibration = CalibrationEvidence(temperature, before, after, metrics.auc(oof.labels, oof.probabilities), applied)
    evidence = replace(ensemble.evidence, calibration=calibration)
    if not applied:
        return replace(ensemble, evidence=evidence)
    return replace(
        ensemble,
        oof=replace(oof, probabilities=apply_temperature(oof.probabilities, temperature)),
        test=replace(test, probabilities=apply_temperature(test.probabilities, temperature)),
        evidence=evidence,
    )


def _calibration_figures(labels: Labels, values: Probabilities) -> _CalibrationFigures:
    """Return log loss and expected calibration error."""
    return _CalibrationFigures(metrics.log_loss(labels, values), calibration_curve(labels, values).error)
