"""Histopathologic Cancer Detection on Kaggle: folds, DDP training, eight views, OOF, a checked submission.

The names below are the library's public ones. They are loaded when first used, so that
`import claris_kaggle` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# For those who check types; a test holds it against PUBLIC.
if TYPE_CHECKING:
    from claris_kaggle.check import Findings as Findings
    from claris_kaggle.check import check_data as check_data
    from claris_kaggle.classify import Classification as Classification
    from claris_kaggle.classify import ClassifyJob as ClassifyJob
    from claris_kaggle.classify import classify_files as classify_files
    from claris_kaggle.classify import classify_image as classify_image
    from claris_kaggle.config import TrainConfig as TrainConfig
    from claris_kaggle.demo import run_demo as run_demo
    from claris_kaggle.ensemble import Ensemble as Ensemble
    from claris_kaggle.ensemble import combine as combine
    from claris_kaggle.errors import ClarisError as ClarisError
    from claris_kaggle.evidence import Evidence as Evidence
    from claris_kaggle.evidence import centre_share as centre_share
    from claris_kaggle.evidence import explain as explain
    from claris_kaggle.export import export_run as export_run
    from claris_kaggle.folds import Folds as Folds
    from claris_kaggle.folds import check_folds as check_folds
    from claris_kaggle.folds import read_folds as read_folds
    from claris_kaggle.images import decode_image as decode_image
    from claris_kaggle.members import Run as Run
    from claris_kaggle.members import load_run as load_run
    from claris_kaggle.metrics import summary as summary
    from claris_kaggle.model import create_model as create_model
    from claris_kaggle.pack import Pack as Pack
    from claris_kaggle.pack import ensure_pack as ensure_pack
    from claris_kaggle.patches import read_patch as read_patch
    from claris_kaggle.paths import DataDir as DataDir
    from claris_kaggle.paths import RunDir as RunDir
    from claris_kaggle.predict import PredictJob as PredictJob
    from claris_kaggle.predict import predict_run as predict_run
    from claris_kaggle.predictions import Oof as Oof
    from claris_kaggle.predictions import TestPredictions as TestPredictions
    from claris_kaggle.predictions import read_oof as read_oof
    from claris_kaggle.predictions import read_test as read_test
    from claris_kaggle.prepare import make_fold_file as make_fold_file
    from claris_kaggle.report import write_report as write_report
    from claris_kaggle.run import TrainJob as TrainJob
    from claris_kaggle.split import make_folds as make_folds
    from claris_kaggle.submission import check_submission as check_submission
    from claris_kaggle.submission import ensemble_runs as ensemble_runs
    from claris_kaggle.submission import write_submission as write_submission
    from claris_kaggle.synthetic import generate as generate
    from claris_kaggle.tables import read_labels as read_labels
    from claris_kaggle.tables import read_sample as read_sample
    from claris_kaggle.train import train_run as train_run
    from claris_kaggle.trained import Trained as Trained
    from claris_kaggle.trained import load_trained as load_trained
    from claris_kaggle.tta import average_views as average_views
    from claris_kaggle.tta import view as view

# Each public name and the module that holds it.
PUBLIC = {
    "ClarisError": "errors",
    "Classification": "classify",
    "ClassifyJob": "classify",
    "DataDir": "paths",
    "Ensemble": "ensemble",
    "Evidence": "evidence",
    "Findings": "check",
    "Folds": "folds",
    "Oof": "predictions",
    "Pack": "pack",
    "PredictJob": "predict",
    "Run": "members",
    "RunDir": "paths",
    "TestPredictions": "predictions",
    "TrainConfig": "config",
    "TrainJob": "run",
    "Trained": "trained",
    "average_views": "tta",
    "centre_share": "evidence",
    "check_data": "check",
    "check_folds": "folds",
    "check_submission": "submission",
    "classify_files": "classify",
    "classify_image": "classify",
    "combine": "ensemble",
    "create_model": "model",
    "decode_image": "images",
    "ensemble_runs": "submission",
    "ensure_pack": "pack",
    "explain": "evidence",
    "export_run": "export",
    "generate": "synthetic",
    "load_run": "members",
    "load_trained": "trained",
    "make_fold_file": "prepare",
    "make_folds": "split",
    "predict_run": "predict",
    "read_folds": "folds",
    "read_labels": "tables",
    "read_oof": "predictions",
    "read_patch": "patches",
    "read_sample": "tables",
    "read_test": "predictions",
    "run_demo": "demo",
    "summary": "metrics",
    "train_run": "train",
    "view": "tta",
    "write_report": "report",
    "write_submission": "submission",
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
