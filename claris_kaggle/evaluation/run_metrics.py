"""Metrics of a run, from the predictions of all its folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from claris_kaggle.core.files import write_json
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data.fold_file import Folds
from claris_kaggle.evaluation import metrics
from claris_kaggle.evaluation.auc_intervals import estimate_auc
from claris_kaggle.evaluation.calibration import calibration_curve, calibration_error, fit_temperature
from claris_kaggle.evaluation.predictions import Oof, _collect_oof, _collect_test, write_run_oof, write_test


def run_metrics(oof: Oof, slides: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the metrics of all folds pooled, and of each fold.

    `accuracy` is at 0.5. `accuracy_nested` uses the best threshold of the other folds for each fold; `best_threshold`
    is that of all folds. `auc_interval` resamples slides if they are known, otherwise it assumes independent patches
    (`auc_way` says which). `temperature` is the best divisor of the logits. A fold with one class has the AUC None and
    is not part of the mean. `fold_auc_std` is None if there is only one AUC.

    Args:
        oof: the OOF predictions of all folds.
        slides: the slide of each patch; None if unknown.
    Returns:
        `overall`, a dict of metrics, and `folds`, a list with one dict per fold.
    """
    labels, values = oof.labels, oof.probabilities
    rows = []
    for number in np.unique(oof.fold).tolist():
        where = oof.fold == number
        rows.append({"fold": number, **metrics._summary_of_any(labels[where], values[where])})
    aucs = [row["auc"] for row in rows if row["auc"] is not None]
    estimate = estimate_auc(labels, values, slides)
    overall = {
        **metrics.summary(labels, values),
        "auc_interval": [estimate.low, estimate.high],
        "auc_way": estimate.way,
        "best_threshold": metrics._best_threshold(labels, values)[0],
        "accuracy_nested": metrics._nested_accuracy(labels, values, oof.fold),
        "calibration_error": calibration_error(labels, values),
        "temperature": fit_temperature(labels, values),
        "fold_auc_mean": float(np.mean(aucs)) if aucs else None,
        "fold_auc_std": float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None,
    }
    return {"overall": overall, "folds": rows}


def run_tables(oof: Oof, slides: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the content of `metrics.json`: `run_metrics`, the calibration curve, and metrics of slides if known."""
    return {
        **run_metrics(oof, slides),
        "calibration": calibration_curve(oof.labels, oof.probabilities),
        "slides": slide_metrics(oof, slides) if slides else [],
    }


def slide_metrics(oof: Oof, slides: Sequence[str]) -> list[dict[str, Any]]:
    """Return the metrics of each slide, with the highest log loss first.

    Returns:
        Slide, fold, number of malignant patches, and the metrics of `metrics.summary`; the AUC is None if the slide has
        one class.
    """
    rows = []
    names, numbers = np.unique(np.asarray(slides), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    for name, where in zip(names.tolist(), np.split(order, np.cumsum(np.bincount(numbers))[:-1]), strict=True):
        labels, values = oof.labels[where], oof.probabilities[where]
        about = {"slide": name, "fold": int(oof.fold[where[0]]), "malignant": int(labels.sum())}
        rows.append({**about, **metrics._summary_of_any(labels, values)})
    return sorted(rows, key=lambda row: (-row["log_loss"], row["slide"]))


def gather_run(run_dir: RunDir, folds: Folds, test_ids: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
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
    oof = _collect_oof({number: one.oof for number, one in fold_dirs.items()}, folds)
    test = _collect_test({number: one.test for number, one in fold_dirs.items()}, test_ids)
    write_run_oof(run_dir.oof, oof)
    write_test(run_dir.test, test.ids, test.probabilities)
    metrics_of_run = {**about, **run_tables(oof, folds.slides)}
    write_json(run_dir.metrics, metrics_of_run)
    return metrics_of_run
