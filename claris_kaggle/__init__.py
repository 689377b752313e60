"""Histopathologic Cancer Detection on Kaggle: folds, DDP training, eight views, OOF, a checked submission.

The names below are the library's public ones. They are loaded when first used, so that
`import claris_kaggle` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Each public name and the module that holds it.
PUBLIC = {
    "ClarisError": "errors",
    "Classification": "classify",
    "ClassifyJob": "classify",
    "DataDir": "paths",
    "Evidence": "evidence",
    "Folds": "folds",
    "Oof": "predictions",
    "Pack": "pack",
    "PredictJob": "predict",
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
    "submit_runs": "submission",
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
