"""Combine runs into one checked submission, and optionally write the result as a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from claris_kaggle.core.config import generated_mark
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import DataError, DiskError, RunError, UsageError, name_few
from claris_kaggle.core.files import read_json, sha256_file, write_json
from claris_kaggle.core.notebook import html_table
from claris_kaggle.core.paths import DataDir, RunDir, recognise_fold, require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import Folds, write_folds
from claris_kaggle.ensembling import combine
from claris_kaggle.ensembling import runs as runs_module
from claris_kaggle.ensembling.blending import _require_method
from claris_kaggle.ensembling.submission_file import _SUBMISSION_COLUMNS, write_submission
from claris_kaggle.evaluation.predictions import write_run_oof, write_test
from claris_kaggle.evaluation.run_metrics import OverallMetrics, is_generated_run, run_metrics, slide_metrics

_PREDICT_HINT = "Run claris predict with this --data folder"


@dataclass(frozen=True, kw_only=True)
class _RunOrigin:
    """The origin of a run: digests of its predictions and weights, and its config.

    Attributes:
        oof_sha256, test_sha256: SHA-256 of the predictions.
        config: the training config; None if it is unknown.
        weights_sha256: SHA-256 of the weights of each finished fold.
    """

    oof_sha256: str
    test_sha256: str
    config: Mapping[str, object] | None
    weights_sha256: dict[str, object]

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values, without `config` if it is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class EnsembleResult:
    """A submission, and the metrics of the runs that it was made from.

    Attributes:
        submission: path of the submission.
        method: the method that was used.
        runs: OOF metrics of each run, by name.
        oof: OOF metrics of the ensemble, with weights fitted on other folds.
        ensemble: why the runs were combined in this way.
        holdouts: names of the runs whose predictions are of one holdout, without folds.
    """

    submission: Path
    method: str
    runs: dict[str, OverallMetrics]
    oof: OverallMetrics
    ensemble: combine.EnsembleEvidence
    holdouts: list[str] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """Return the OOF metrics of the runs and of the ensemble as a table for notebooks."""
        columns = ("AUC", "interval of 95 %", "accuracy", "log loss")
        named = {**self.runs, f"ensemble ({self.method})": self.oof}
        rows = {
            name: [metrics.auc, "{:.4f} to {:.4f}".format(*metrics.auc_interval), metrics.accuracy, metrics.log_loss]
            for name, metrics in named.items()
        }
        return html_table(rows, columns)

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        return {
            "submission": str(self.submission),
            "method": self.method,
            "runs": {name: metrics.to_json() for name, metrics in self.runs.items()},
            "oof": self.oof.to_json(),
            "ensemble": self.ensemble.to_json(),
            "holdouts": self.holdouts,
        }


def ensemble_runs(
    run_dirs: Sequence[RunDir | Path | str],
    data: DataDir | Path | str,
    out: Path | str,
    *,
    method: str = "mean",
    only_sound: bool = False,
    calibrate: bool = False,
    common_ids: bool = False,
    columns: Mapping[str, str] | None = None,
    keep: RunDir | Path | str | None = None,
) -> EnsembleResult:
    """Combine runs and write a checked submission.

    Args:
        run_dirs: one or more runs with the same folds, each predicted; or the folders of one fold of each run.
        data: the competition's folder. Its sample submission gives the ids and their order.
        out: the CSV to write.
        method: `mean`, `logit`, `rank`, `logloss`, `auc`, `greedy`, `stack` or `auto`, as in `combine`.
        only_sound: exclude runs that get a warning, as in `combine`.
        calibrate: scale the probabilities by one temperature that is fitted on the OOF predictions. Ranks, and so the
            AUC, do not change.
        common_ids: use only the OOF patches that all runs have.
        columns: columns of other tools' predictions, as from `parse_columns`.
        keep: folder for the combined `oof.csv`, `test.csv` and `metrics.json`. It can be used like any other run.
    Returns:
        The path of the submission, and the metrics and weights of the runs.
    Raises:
        ClarisError: the runs do not match each other or the data, are not finished, or their combination is constant;
            or `keep` holds other files.
    """
    _require_method(method)
    folders, data, out = [recognise_fold(run_dir) for run_dir in run_dirs], DataDir.at(data), Path(out)
    kept = None if keep is None else RunDir.at(keep)
    _require_replaceable_outputs(folders, out, kept)
    sample_ids = tables.read_sample(data.sample)
    runs = runs_module.add_slides(runs_module._load_runs(folders, common_ids=common_ids, columns=columns), data.slides)
    tables.require_equal_ids(runs[0].test.ids, sample_ids, folders[0].predicted_test, data.sample.name, _PREDICT_HINT)
    _report_unchecked(runs, folders, data)
    combined = combine.combine(runs, method, only_sound=only_sound)
    ensemble = combine._calibrate_ensemble(combined) if calibrate else combined
    _require_varied_predictions(ensemble)
    metrics = run_metrics(ensemble.oof, ensemble.slides, ensemble.measured)
    evidence = {"ensemble": ensemble.evidence.to_json()}
    origin = {run.name: describe_run(run_dir).to_json() for run, run_dir in zip(runs, folders, strict=True)}
    about = {"method": ensemble.evidence.method, "oof": metrics.overall.to_json(), "runs": origin, **evidence}
    write_submission(out, ensemble.test, sample_ids, about)
    if kept:
        synthetic_mark = generated_mark(data.generated.exists() or any(map(is_generated_run, folders)))
        content = {**synthetic_mark, **evidence, **metrics.to_json(slide_metrics(ensemble.oof, ensemble.slides))}
        _write_ensemble_run(kept, ensemble, content, next((run.folds for run in runs if run.folds), None))
    return EnsembleResult(
        submission=out,
        method=ensemble.evidence.method,
        runs={run.name: run_metrics(run.oof, run.slides, run.measured).overall for run in runs},
        oof=metrics.overall,
        ensemble=ensemble.evidence,
        holdouts=[run.name for run in runs if run.is_holdout],
    )


def _require_replaceable_outputs(run_dirs: Sequence[RunDir], out: Path, keep: RunDir | None) -> None:
    """Reject outputs that would replace files of another kind.

    Raises:
        UsageError: as in `require_replaceable` and `_require_free`.
    """
    require_replaceable(out, _SUBMISSION_COLUMNS)
    if keep:
        _require_free(keep, run_dirs)


def _require_varied_predictions(ensemble: combine.Ensemble) -> None:
    """Reject a constant ensemble of suspicious runs, such as a run and its inverse.

    Raises:
        RunError: the test predictions are constant; the message names a suspicious run.
    """
    values, remarks = ensemble.test.probabilities, ensemble.evidence.remarks
    warnings = [f"{name}: {text}" for name, text in remarks.items() if name not in ensemble.evidence.left_out]
    if len(ensemble.evidence.weights) > 1 and warnings and np.ptp(values) == 0:
        found = f"the ensemble predicts the same value ({values[0]:g}) for every patch; {warnings[0]}"
        raise RunError(found, "", "Remove it, or use --only-sound")


def _report_unchecked(runs: Sequence[runs_module.Run], run_dirs: Sequence[RunDir], data: DataDir) -> None:
    """Check the runs against the training labels, if there are any, and log what cannot be verified.

    Raises:
        RunError: the OOF patches of a run are not training patches, or have different labels.
    """
    for text in runs_module.explain_split(runs):
        log_info(text)
    without_folds = [run.name for run, run_dir in zip(runs, run_dirs, strict=True) if not run_dir.folds.exists()]
    if without_folds:
        own = "its own" if len(without_folds) == 1 else "their own"
        log_info(
            f"{name_few(without_folds)}: no fold file of {own}; cannot verify that the predictions are out-of-fold"
        )
    _report_single_groups([run for run in runs if run.has_one_group])
    if runs[0].slides is None:
        log_info("no slide ids: intervals assume independent patches and may be too narrow")
    elif len(set(runs[0].slides)) == 1:
        log_info("all patches are of one slide: intervals assume independent patches and are too narrow")
    if not data.labels.exists():
        return
    ids, labels = tables.read_labels(data.labels)
    runs_module._require_labels(runs[0], ids, labels)
    if len(runs[0].oof.ids) < len(ids):
        log_info(
            f"predictions of {len(runs[0].oof.ids):,} of {len(ids):,} training patches; metrics are for those only"
        )
    elif any(run.is_holdout for run in runs):
        log_info("the holdout has all training patches: if several folds predicted them, add a column fold to oof.csv")


def _report_single_groups(runs: Sequence[runs_module.Run]) -> None:
    """Log what each run is scored on, for runs with the patches of one holdout or one fold."""
    holdout = next((run.name for run in runs if run.is_holdout), None)
    for run in runs:
        count = f"{len(run.oof.ids):,} patches"
        kind = f"fold {run.oof.fold[0]} only, {count}"
        if run.is_holdout:
            kind = f"a holdout of {count}, without folds"
        elif holdout:
            kind = f"the {count} that it shares with the holdout {holdout}"
        log_info(f"{run.name}: {kind}; the score is for those only")


def _require_free(run_dir: RunDir, run_dirs: Sequence[RunDir]) -> None:
    """Reject an output folder where the ensemble would replace anything but an older ensemble.

    Raises:
        UsageError: the folder is a file, a trained run or one of the runs to combine, or holds files of another origin.
    """
    files = (run_dir.folds, run_dir.folds.with_suffix(".json"), run_dir.oof, run_dir.test, run_dir.metrics)
    existing = [path.name for path in files if path.exists()]
    if run_dir.root.resolve() in [other.root.resolve() for other in run_dirs]:
        what = "it is one of the runs to combine"
    elif run_dir.config.exists():
        what = "a trained run"
    elif run_dir.root.is_file():
        what = "a file"
    elif existing and not _is_ensemble(run_dir):
        what = f"it has {name_few(existing)} from another source"
    else:
        return
    raise UsageError(f"{run_dir.root}: {what}", "expected a folder of its own", "Give another --save-run")


def _is_ensemble(run_dir: RunDir) -> bool:
    """Return True if the metrics.json of the folder is that of an ensemble."""
    try:
        return isinstance(read_json(run_dir.metrics).get("ensemble"), dict)
    except (DataError, DiskError):
        return False


def _write_ensemble_run(
    run_dir: RunDir, ensemble: combine.Ensemble, content: Mapping[str, object], folds: Folds | None
) -> None:
    """Write the ensemble as a run. Reports and further ensembles can use it.

    `metrics.json` is written first. It marks the folder as an ensemble, so that the same command may replace an
    incomplete one.

    Args:
        run_dir: the folder to write to.
        ensemble: the combined predictions.
        content: the content of `metrics.json`.
        folds: the fold file of the runs; None if no run has one.
    """
    write_json(run_dir.metrics, content)
    if folds:
        write_folds(run_dir.folds, folds, {"copied_from": run_dir.folds.name}, overwrite=True)
    else:
        for path in (run_dir.folds, run_dir.folds.with_suffix(".json")):
            path.unlink(missing_ok=True)
    write_run_oof(run_dir.oof, ensemble.oof)
    write_test(run_dir.test, ensemble.test.ids, ensemble.test.probabilities)


def describe_run(run_dir: RunDir) -> _RunOrigin:
    """Return the config of a run and the SHA-256 of its predictions and weights."""
    weights = {
        f"fold{fold}": read_json(run_dir.fold(fold).weights_manifest).get("weights_sha256")
        for fold in run_dir.finished_folds()
    }
    return _RunOrigin(
        oof_sha256=sha256_file(run_dir.oof),
        test_sha256=sha256_file(run_dir.predicted_test),
        config=read_json(run_dir.config) if run_dir.config.exists() else None,
        weights_sha256=weights,
    )
