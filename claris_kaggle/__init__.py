"""Histopathologic Cancer Detection on Kaggle: folds, DDP training, eight views, OOF, a checked submission.

The names below are the library's public ones. They are loaded when first used, so that
`import claris_kaggle` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from claris_kaggle.version import __version__ as __version__

# For those who check types; a test holds it against PUBLIC.
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
    from claris_kaggle.ensembling.combine import combine as combine
    from claris_kaggle.ensembling.ensemble_runs import ensemble_runs as ensemble_runs
    from claris_kaggle.ensembling.runs import Run as Run
    from claris_kaggle.ensembling.runs import load_run as load_run
    from claris_kaggle.ensembling.submission_file import check_submission as check_submission
    from claris_kaggle.ensembling.submission_file import write_submission as write_submission
    from claris_kaggle.evaluation.metrics import summary as summary
    from claris_kaggle.evaluation.predictions import Oof as Oof
    from claris_kaggle.evaluation.predictions import TestPredictions as TestPredictions
    from claris_kaggle.evaluation.predictions import read_oof as read_oof
    from claris_kaggle.evaluation.predictions import read_test as read_test
    from claris_kaggle.inference.evidence import Evidence as Evidence
    from claris_kaggle.inference.evidence import centre_share as centre_share
    from claris_kaggle.inference.evidence import explain as explain
    from claris_kaggle.inference.fold_models import FoldModels as FoldModels
    from claris_kaggle.inference.fold_models import Trained as Trained
    from claris_kaggle.inference.fold_models import load_trained as load_trained
    from claris_kaggle.inference.predict import PredictJob as PredictJob
    from claris_kaggle.inference.predict import predict_run as predict_run
    from claris_kaggle.inference.tta import average_views as average_views
    from claris_kaggle.models.factory import create_model as create_model
    from claris_kaggle.reporting.report import write_report as write_report
    from claris_kaggle.serving.classify import Classification as Classification
    from claris_kaggle.serving.classify import ClassifyJob as ClassifyJob
    from claris_kaggle.serving.classify import classify_files as classify_files
    from claris_kaggle.serving.classify import classify_image as classify_image
    from claris_kaggle.serving.export import export_run as export_run
    from claris_kaggle.serving.images import decode_image as decode_image
    from claris_kaggle.training.setup import TrainJob as TrainJob
    from claris_kaggle.training.train import train_run as train_run

# Each public name and the module that holds it.
PUBLIC = {
    "ClarisError": "core.errors",
    "Classification": "serving.classify",
    "ClassifyJob": "serving.classify",
    "DataDir": "core.paths",
    "Ensemble": "ensembling.combine",
    "Evidence": "inference.evidence",
    "Findings": "data.integrity",
    "FoldModels": "inference.fold_models",
    "Folds": "data.fold_file",
    "Oof": "evaluation.predictions",
    "Pack": "data.pack",
    "PredictJob": "inference.predict",
    "Run": "ensembling.runs",
    "RunDir": "core.paths",
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
    "explain": "inference.evidence",
    "export_run": "serving.export",
    "generate": "data.synthetic",
    "load_run": "ensembling.runs",
    "load_trained": "inference.fold_models",
    "make_fold_file": "data.prepare",
    "make_folds": "data.fold_split",
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
    """The public name, from its module; kept, so that the next look-up is a plain one."""
    if name in PUBLIC:
        globals()[name] = found = getattr(importlib.import_module(f"claris_kaggle.{PUBLIC[name]}"), name)
        return found
    raise AttributeError(f"module 'claris_kaggle' has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return __all__
