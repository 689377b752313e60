"""Metrics of a run, from the predictions of all its folds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from claris_kaggle.core.config import is_generated
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import DataError, DiskError, name_few
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.paths import FoldDir, RunDir
from claris_kaggle.data.fold_file import Folds
from claris_kaggle.data.tables import number_texts
from claris_kaggle.evaluation import metrics
from claris_kaggle.evaluation.auc_intervals import MeasuredAuc, measure
from claris_kaggle.evaluation.calibration import CalibrationCurve, calibration_curve, fit_temperature
from claris_kaggle.evaluation.metrics import Metrics, _PartMetrics
from claris_kaggle.evaluation.predictions import Oof, _collect_oof, _collect_test, write_run_oof, write_test

# Smallest difference of the pooled AUC and the mean AUC of the folds for which a message explains it.
_EXPLAINED_POOLING_LOSS = 0.001


@dataclass(frozen=True, kw_only=True)
class OverallMetrics(Metrics):
    """Metrics of all folds of a run, pooled.

    Attributes:
        patches, auc, accuracy, log_loss, brier: as in `Metrics`.
        auc_interval: the 95 % interval of the AUC.
        auc_interval_by: what varies in the interval: `slide` resamples slides, `patch` assumes independent patches
            (DeLong).
        best_threshold: the threshold with the highest accuracy on these patches.
        accuracy_nested: accuracy with the best threshold of the other folds for each fold; None with a single fold.
        calibration_error: expected calibration error.
        temperature: the best divisor of the logits.
        fold_auc_mean: mean of the AUCs of the folds with both classes; None if there is no such fold.
        fold_auc_std: standard deviation of these AUCs; None if there are fewer than two.
    """

    auc_interval: tuple[float, float]
    auc_interval_by: str
    best_threshold: float
    accuracy_nested: float | None
    calibration_error: float
    temperature: float
    fold_auc_mean: float | None
    fold_auc_std: float | None

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        return {**asdict(self), "auc_interval": list(self.auc_interval)}

    @property
    def pooling_remark(self) -> str:
        """The sentence of `explain_pooling` about these metrics, or an empty text."""
        return explain_pooling(self.auc, self.fold_auc_mean)


@dataclass(frozen=True, kw_only=True)
class FoldMetrics(_PartMetrics):
    """Metrics of one fold; the AUC is None if the fold has one class."""

    fold: int

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values, the fold first."""
        return {"fold": self.fold, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class SlideMetrics(_PartMetrics):
    """Metrics of one slide; the AUC is None if the slide has one class.

    Attributes:
        slide: id of the slide.
        fold: the fold of the slide.
        malignant: number of malignant patches.
    """

    slide: str
    fold: int
    malignant: int

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values, the slide first."""
        return {"slide": self.slide, "fold": self.fold, "malignant": self.malignant, **asdict(self)}


@dataclass(frozen=True)
class _RunMetrics:
    """Metrics of a run.

    Attributes:
        overall: metrics of all folds pooled.
        folds: metrics of each fold.
        calibration: the calibration curve of all folds pooled.
    """

    overall: OverallMetrics
    folds: list[FoldMetrics]
    calibration: CalibrationCurve

    def to_json(self, slides: Sequence[SlideMetrics]) -> dict[str, object]:
        """Return the content of `metrics.json`, with the metrics of `slides`."""
        return {
            "overall": self.overall.to_json(),
            "folds": [one.to_json() for one in self.folds],
            "calibration": asdict(self.calibration),
            "slides": [one.to_json() for one in slides],
        }


def run_metrics(oof: Oof, slides: Sequence[str] | None = None, measured: MeasuredAuc | None = None) -> _RunMetrics:
    """Return the metrics of all folds pooled, and of each fold.

    Args:
        oof: the OOF predictions of all folds.
        slides: the slide of each patch; None if unknown.
        measured: the result of `measure` for these predictions and slides; None to compute it here.
    """
    labels, values = oof.labels, oof.probabilities
    folds = []
    for number in np.unique(oof.fold).tolist():
        rows = oof.fold == number
        folds.append(FoldMetrics(fold=number, **vars(metrics._summary_of_part(labels[rows], values[rows]))))
    aucs = [fold.auc for fold in folds if fold.auc is not None]
    estimate = (measured or measure(labels, values, slides)).estimate
    curve = calibration_curve(labels, values)
    overall = OverallMetrics(
        **vars(metrics.summary(labels, values)),
        auc_interval=estimate.interval,
        auc_interval_by=estimate.interval_by,
        best_threshold=metrics._best_threshold(labels, values)[0],
        accuracy_nested=metrics._nested_accuracy(labels, values, oof.fold),
        calibration_error=curve.error,
        temperature=fit_temperature(labels, values),
        fold_auc_mean=float(np.mean(aucs)) if aucs else None,
        fold_auc_std=float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None,
    )
    return _RunMetrics(overall, folds, curve)


def explain_pooling(pooled: float, fold_mean: float | None) -> str:
    """Return a sentence if the pooled AUC is at least 0.001 below the mean AUC of the folds, else an empty text."""
    if fold_mean is None or fold_mean - pooled < _EXPLAINED_POOLING_LOSS:
        return ""
    return (
        f"the pooled AUC, {pooled:.4f}, is below the mean AUC of the folds, {fold_mean:.4f}: each fold has its own "
        "network, and one network may give higher probabilities than another to similar patches. The pooled AUC "
        "compares patches of different folds, so it is lower. Test predictions are not affected, because each is the "
        "mean of all networks"
    )


def is_generated_run(run_dir: RunDir) -> bool:
    """Return True if the config or the metrics of the run say that its patches are synthetic."""
    return any(is_generated(read_json(path)) for path in (run_dir.config, run_dir.metrics) if path.exists())


def slide_metrics(oof: Oof, slides: Sequence[str] | None) -> list[SlideMetrics]:
    """Return the metrics of each slide, with the highest log loss first; an empty list if the slides are unknown."""
    if slides is None:
        return []
    rows = []
    slide_index = number_texts(slides)
    order = np.argsort(slide_index, kind="stable")
    for slide_rows in np.split(order, np.cumsum(np.bincount(slide_index))[:-1]):
        first, labels = slide_rows[0], oof.labels[slide_rows]
        part = metrics._summary_of_part(labels, oof.probabilities[slide_rows])
        rows.append(
            SlideMetrics(slide=slides[first], fold=int(oof.fold[first]), malignant=int(labels.sum()), **vars(part))
        )
    return sorted(rows, key=lambda row: (-row.log_loss, row.slide))


def _report_mixed_folds(fold_dirs: Mapping[int, FoldDir]) -> None:
    """Log if the folds were predicted with different views, precision or input settings."""
    manifests: dict[int, dict[str, Any]] = {}
    for number, fold_dir in fold_dirs.items():
        with contextlib.suppress(DataError, DiskError):
            manifests[number] = read_json(fold_dir.predictions_manifest)
    default_input: dict[str, object] = next(
        (manifest["input"] for manifest in manifests.values() if manifest.get("input")), {}
    )  # older files do not name it
    folds_by_settings: dict[str, list[int]] = {}
    for number, manifest in manifests.items():
        settings = ", ".join(f"{name} {value}" for name, value in manifest.get("input", default_input).items())
        folds_by_settings.setdefault(
            f"{manifest.get('views')} views in {manifest.get('precision')}, {settings}", []
        ).append(number)
    if len(folds_by_settings) > 1:
        named = "; ".join(
            f"fold {name_few(numbers)} with {settings}" for settings, numbers in folds_by_settings.items()
        )
        log_info(f"the folds were predicted in different ways ({named}); predict again to make them comparable")


def gather_run(
    run_dir: RunDir, folds: Folds, test_ids: Sequence[str], about: Mapping[str, object]
) -> dict[str, object]:
    """Write a run's `oof.csv`, `test.csv` and `metrics.json` from the files of all its folds.

    Args:
        run_dir: the run.
        folds: the folds of the run.
        test_ids: ids of the test patches.
        about: more content for `metrics.json`, such as the number of views.
    Returns:
        The content of `metrics.json`.
    Raises:
        RunError: a fold has no predictions.
        TableError: a file has an error, or belongs to another fold file.
    """
    fold_dirs = {number: run_dir.fold(number) for number in range(folds.k)}
    _report_mixed_folds(fold_dirs)
    oof = _collect_oof({number: one.oof for number, one in fold_dirs.items()}, folds)
    test = _collect_test({number: one.test for number, one in fold_dirs.items()}, test_ids)
    write_run_oof(run_dir.oof, oof)
    write_test(run_dir.test, test.ids, test.probabilities)
    content = {**about, **run_metrics(oof, folds.slides).to_json(slide_metrics(oof, folds.slides))}
    write_json(run_dir.metrics, content)
    return content
