"""Histopathologic Cancer Detection on Kaggle: folds, DDP training, test-time augmentation, OOF, checked submissions.

The names below are the public names of the library. Each is imported on first use, so `import claris_kaggle` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from claris_kaggle.version import __version__ as __version__

# For type checkers. A test compares these imports with PUBLIC.
if TYPE_CHECKING:
    from claris_kaggle.core.config import TrainConfig as TrainConfig
    from claris_kaggle.core.errors import ClarisError as ClarisError
    from claris_kaggle.core.paths import DataDir as DataDir
    from claris_kaggle.core.paths import RunDir as RunDir
    from claris_kaggle.data.d4 import view as view
    from claris_kaggle.data.fold_file import Folds as Folds
    from claris_kaggle.data.fold_file import check_folds as check_folds
    from claris_kaggle.data.fold_file import read_folds as read_folds
    from claris_kaggle.data.fold_split import make_folds as make_folds
    from claris_kaggle.data.integrity import Findings as Findings
    from claris_kaggle.data.integrity import check_data as check_data
    from claris_kaggle.data.pack import Pack as Pack
    from claris_kaggle.data.pack import ensure_pack as ensure_pack
    from claris_kaggle.data.patches import read_patch as read_patch
    from claris_kaggle.data.prepare import make_fold_file as make_fold_file
    from claris_kaggle.data.synthetic import generate as generate
    from claris_kaggle.data.tables import read_labels as read_labels
    from claris_kaggle.data.tables import read_sample as read_sample
    from claris_kaggle.demo import run_demo as run_demo
    from claris_kaggle.ensembling.combine import Ensemble as Ensemble
    from claris_kaggle.ensembling.combine import EnsembleEvidence as EnsembleEvidence
    from claris_kaggle.ensembling.combine import combine as combine
    from claris_kaggle.ensembling.ensemble_runs import EnsembleResult as EnsembleResult
    from claris_kaggle.ensembling.ensemble_runs import ensemble_runs as ensemble_runs
    from claris_kaggle.ensembling.pseudo_labels import PseudoSummary as PseudoSummary
    from claris_kaggle.ensembling.pseudo_labels import make_pseudo_labels as make_pseudo_labels
    from claris_kaggle.ensembling.runs import Run as Run
    from claris_kaggle.ensembling.runs import load_run as load_run
    from claris_kaggle.ensembling.submission_file import SubmissionSummary as SubmissionSummary
    from claris_kaggle.ensembling.submission_file import check_submission as check_submission
    from claris_kaggle.ensembling.submission_file import write_submission as write_submission
    from claris_kaggle.evaluation.metrics import Metrics as Metrics
    from claris_kaggle.evaluation.metrics import summary as summary
    from claris_kaggle.evaluation.predictions import Oof as Oof
    from claris_kaggle.evaluation.predictions import TestPredictions as TestPredictions
    from claris_kaggle.evaluation.predictions import read_oof as read_oof
    from claris_kaggle.evaluation.predictions import read_test as read_test
    from claris_kaggle.evaluation.run_metrics import OverallMetrics as OverallMetrics
    from claris_kaggle.inference.evidence import Evidence as Evidence
    from claris_kaggle.inference.evidence import centre_share as centre_share
    from claris_kaggle.inference.evidence import explain as explain
    from claris_kaggle.inference.fold_models import FoldModels as FoldModels
    from claris_kaggle.inference.fold_models import Trained as Trained
    from claris_kaggle.inference.fold_models import load_trained as load_trained
    from claris_kaggle.inference.predict import PredictJob as PredictJob
    from claris_kaggle.inference.predict import predict_run as predict_run
    from claris_kaggle.inference.tta import average_views as average_views
    from claris_kaggle.kaggle.session_inputs import find_data as find_data
    from claris_kaggle.models.cost import NetworkCost as NetworkCost
    from claris_kaggle.models.cost import estimate_hours as estimate_hours
    from claris_kaggle.models.cost import forward_gflop as forward_gflop
    from claris_kaggle.models.cost import network_cost as network_cost
    from claris_kaggle.models.factory import create_model as create_model
    from claris_kaggle.reporting.plots import plot_calibration as plot_calibration
    from claris_kaggle.reporting.plots import plot_roc as plot_roc
    from claris_kaggle.reporting.plots import plot_top_losses as plot_top_losses
    from claris_kaggle.reporting.report import write_report as write_report
    from claris_kaggle.serving.classify import Classification as Classification
    from claris_kaggle.serving.classify import ClassifyJob as ClassifyJob
    from claris_kaggle.serving.classify import classify_files as classify_files
    from claris_kaggle.serving.classify import classify_image as classify_image
    from claris_kaggle.serving.export import export_run as export_run
    from claris_kaggle.serving.images import decode_image as decode_image
    from claris_kaggle.training.setup import TrainJob as TrainJob
    from claris_kaggle.training.train import train_run as train_run

# Each public name with the module that defines it.
PUBLIC = {
    "ClarisError": "core.errors",
    "Classification": "serving.classify",
    "ClassifyJob": "serving.classify",
    "DataDir": "core.paths",
    "Ensemble": "ensembling.combine",
    "EnsembleEvidence": "ensembling.combine",
    "EnsembleResult": "ensembling.ensemble_runs",
    "Evidence": "inference.evidence",
    "Findings": "data.integrity",
    "FoldModels": "inference.fold_models",
    "Folds": "data.fold_file",
    "Metrics": "evaluation.metrics",
    "NetworkCost": "models.cost",
    "Oof": "evaluation.predictions",
    "OverallMetrics": "evaluation.run_metrics",
    "Pack": "data.pack",
    "PredictJob": "inference.predict",
    "PseudoSummary": "ensembling.pseudo_labels",
    "Run": "ensembling.runs",
    "RunDir": "core.paths",
    "SubmissionSummary": "ensembling.submission_file",
    "TestPredictions": "evaluation.predictions",
    "TrainConfig": "core.config",
    "TrainJob": "training.setup",
    "Trained": "inference.fold_models",
    "average_views": "inference.tta",
    "centre_share": "inference.evidence",
    "check_data": "data.integrity",
    "check_folds": "data.fold_file",
    "check_submission": "ensembling.submission_file",
    "classify_files": "serving.classify",
    "classify_image": "serving.classify",
    "combine": "ensembling.combine",
    "create_model": "models.factory",
    "decode_image": "serving.images",
    "ensemble_runs": "ensembling.ensemble_runs",
    "ensure_pack": "data.pack",
    "find_data": "kaggle.session_inputs",
    "estimate_hours": "models.cost",
    "explain": "inference.evidence",
    "export_run": "serving.export",
    "forward_gflop": "models.cost",
    "generate": "data.synthetic",
    "load_run": "ensembling.runs",
    "load_trained": "inference.fold_models",
    "make_fold_file": "data.prepare",
    "make_folds": "data.fold_split",
    "make_pseudo_labels": "ensembling.pseudo_labels",
    "network_cost": "models.cost",
    "plot_calibration": "reporting.plots",
    "plot_roc": "reporting.plots",
    "plot_top_losses": "reporting.plots",
    "predict_run": "inference.predict",
    "read_folds": "data.fold_file",
    "read_labels": "data.tables",
    "read_oof": "evaluation.predictions",
    "read_patch": "data.patches",
    "read_sample": "data.tables",
    "read_test": "evaluation.predictions",
    "run_demo": "demo",
    "summary": "evaluation.metrics",
    "train_run": "training.train",
    "view": "data.d4",
    "write_report": "reporting.report",
    "write_submission": "ensembling.submission_file",
}
__all__ = sorted([*PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use, and cache it.

    Raises:
        AttributeError: there is no public name `name`.
    """
    if name in PUBLIC:
        globals()[name] = found = getattr(importlib.import_module(f"claris_kaggle.{PUBLIC[name]}"), name)
        return found
    raise AttributeError(f"module 'claris_kaggle' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all public names, including those that are not imported yet."""
    return __all__
