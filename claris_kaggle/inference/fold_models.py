"""Load the networks of a finished run or of an export, one per fold."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from claris_kaggle.core.config import TrainConfig, is_generated
from claris_kaggle.core.console import format_command
from claris_kaggle.core.errors import DataError, RunError, TrainingError
from claris_kaggle.core.files import explain_disk_errors, read_json, sha256_file
from claris_kaggle.core.paths import ExportDir, RunDir
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.evaluation.resemblance import PatchStatistics
from claris_kaggle.inference.evidence import Float32Array, explain
from claris_kaggle.models.factory import fuse_every_batch_norm, trained_network
from claris_kaggle.models.weights import load_verified
from claris_kaggle.runtime.precision import usable_precision

EXPORT_FORMAT = 1
_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.-]+)")


@dataclass(frozen=True)
class FoldModels:
    """The networks of the folds of one run.

    Attributes:
        name: name of the folder of the run or the export.
        config: config of the run, with a precision that this device supports.
        models: the network of each fold number, ready for inference.
        metrics: out-of-fold metrics of the run, as `overall` in `metrics.json`; empty if there are none yet.
        fold_aucs: out-of-fold AUC of each fold that has one.
        statistics: colour and texture of the training patches; None if the run has none yet.
        generated: True if the training patches are synthetic.
    """

    name: str
    config: TrainConfig
    models: dict[int, nn.Module]
    metrics: Mapping[str, object]
    fold_aucs: Mapping[int, float] = field(default_factory=dict)
    statistics: PatchStatistics | None = None
    generated: bool = False

    def only_best_fold(self) -> FoldModels:
        """Return a copy with one fold: the highest out-of-fold AUC, or the first if the AUCs are unknown."""
        best = max(self.models, key=lambda fold: (self.fold_aucs.get(fold, -1.0), -fold))
        return dataclasses.replace(self, models={best: self.models[best]})

    def metric(self, name: str) -> float | None:
        """Return the metric of that name, such as `auc`, `best_threshold` or `temperature`; None if it is unknown."""
        value = self.metrics.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


Trained = FoldModels  # scripts may use this name


@dataclass(frozen=True)
class EnsemblePrediction:
    """Predictions of K folds for B patches. Probabilities are of label 1.

    Attributes:
        probabilities: float32 [B] in 0..1, the mean over folds and views.
        fold_probabilities: float32 [K, B] in 0..1, the mean over the views.
        view_probabilities: float32 [V, B] in 0..1, the mean over the folds.
        log_odds: float32 [B] in nats, the mean over folds and views.
        maps, bias: as in `Evidence`, the mean over the folds. They sum to the log-odds.
    """

    probabilities: Float32Array
    fold_probabilities: Float32Array
    view_probabilities: Float32Array
    log_odds: Float32Array
    maps: Float32Array | None
    bias: float


def predict_ensemble(trained: FoldModels, patches: Pixels, *, views: int = 8) -> EnsemblePrediction:
    """Predict the patches with the networks of all folds.

    Args:
        trained: the networks, from `load_trained`.
        patches: uint8 [B, 96, 96, 3], B at least 1.
        views: number of views of the test-time augmentation: 1, 4 or 8.
    Raises:
        UsageError: another number of views.
        DataError: another shape or dtype of `patches`.
        TrainingError: a probability is NaN, which a comparison with the threshold would treat as benign.
    """
    evidence = [explain(model, patches, trained.config, views=views) for model in trained.models.values()]
    if not all(np.isfinite(fold.probabilities).all() for fold in evidence):
        what = f"{trained.name}: a prediction is NaN or infinite in {trained.config.precision}"
        raise TrainingError(what, "expected a probability", "Train a run with --precision fp32")
    maps = [fold.maps for fold in evidence if fold.maps is not None]
    return EnsemblePrediction(
        probabilities=_mean_of_parts([fold.probabilities for fold in evidence]),
        fold_probabilities=np.stack([fold.probabilities for fold in evidence]),
        view_probabilities=_mean_of_parts([fold.view_probabilities for fold in evidence]),
        log_odds=_mean_of_parts([fold.log_odds for fold in evidence]),
        maps=_mean_of_parts(maps) if maps else None,
        bias=float(np.mean([fold.bias for fold in evidence])),
    )


def _mean_of_parts(parts: list[Float32Array]) -> Float32Array:
    """Return the mean of arrays of the same shape, computed in float64."""
    return np.asarray(np.mean(parts, axis=0, dtype=np.float64), dtype=np.float32)


def load_trained(folder: RunDir | Path | str, *, device: torch.device | None = None) -> FoldModels:
    """Load the networks of the finished folds of a run, or of an export, and verify their SHA-256.

    Args:
        folder: folder of a run with at least one finished fold, or of an export.
        device: device of the networks; None is the GPU if there is one, else the CPU.
    Raises:
        RunError: the folder is neither a run nor an export, no fold is finished, or a file has changed.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    export, run_dir = ExportDir.at(folder), RunDir.at(folder)
    if export.checksums.exists():
        config, (overall, aucs), weight_files = _read_export(export)
        hint = "Copy the export again"
    elif run_dir.config.exists():
        config, (overall, aucs), weight_files = _read_trained_run(run_dir)
        words = ("train", "--data", "DIR", "--folds", run_dir.folds, "--run", run_dir.root)
        hint = f"Train the fold again: {format_command(*words)}"
    else:
        expected = "expected the folder of a run, or of claris export"
        raise run_dir.missing_error("config.json", expected, "Train first: claris train")
    model = trained_network(config)
    models = {}
    for fold, (path, digest) in weight_files.items():
        load_verified(path, digest, model, hint)
        models[fold] = fuse_every_batch_norm(model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = dataclasses.replace(config, precision=usable_precision("", config.precision, device.type))
    # Run and export use the same file names for their config and statistics.
    path, generated = export.statistics, is_generated(read_json(export.config))
    statistics = PatchStatistics.from_json(read_json(path), path) if path.exists() else None
    return FoldModels(run_dir.root.absolute().name, config, models, overall, aucs, statistics, generated)


def _read_fold_aucs(folds: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the AUC of each fold that has one."""
    return {int(fold["fold"]): float(fold["auc"]) for fold in folds if fold.get("auc") is not None}


_OofMetrics = tuple[Mapping[str, object], Mapping[int, float]]
_VerifiedWeights = dict[int, tuple[Path, object]]


def _read_trained_run(run_dir: RunDir) -> tuple[TrainConfig, _OofMetrics, _VerifiedWeights]:
    """Return the config and metrics of a run, and the weight files of its finished folds with their SHA-256.

    Raises:
        RunError: no fold is finished.
    """
    config = TrainConfig.from_json(read_json(run_dir.config), run_dir.config)
    content = read_json(run_dir.metrics) if run_dir.metrics.exists() else {}
    metrics = content.get("overall") or {}, _read_fold_aucs(content.get("folds") or [])
    folds = run_dir.finished_folds()
    if not folds:
        raise RunError(f"{run_dir.root}: no finished fold", "", "Run claris train until a fold is finished")
    manifests = {fold: read_json(run_dir.fold(fold).weights_manifest).get("weights_sha256") for fold in folds}
    return config, metrics, {fold: (run_dir.fold(fold).weights, digest) for fold, digest in manifests.items()}


def _read_export(export: ExportDir) -> tuple[TrainConfig, _OofMetrics, _VerifiedWeights]:
    """Return the same as `_read_trained_run`, for an export. Verifies all files except the weights.

    Raises:
        RunError: a file is missing or has changed, or the export has another format.
        DataError: the list of checksums is damaged.
    """
    checksums = _read_checksums(export)
    names = {
        export.metadata.name,
        export.config.name,
        *(name for name in checksums if not name.endswith(".safetensors")),
    }
    for path in sorted(export.root / name for name in names):
        if not path.is_file() or sha256_file(path) != checksums.get(path.name):
            raise RunError(f"{path}: missing or changed since the export", "", "Copy the export again")
    metadata = read_json(export.metadata)
    if metadata.get("format") != EXPORT_FORMAT:
        raise RunError(
            f"{export.metadata}: of format {metadata.get('format')}", f"expected {EXPORT_FORMAT}", "Export it again"
        )
    paths = {int(fold): export.weights(int(fold)) for fold in metadata["folds"]}
    config = TrainConfig.from_json(read_json(export.config), export.config)
    metrics = metadata["oof"], _read_fold_aucs(metadata.get("oof_folds") or [])
    return config, metrics, {fold: (path, checksums.get(path.name)) for fold, path in paths.items()}


def sums_text(checksums: dict[str, str]) -> str:
    """Return the content of a checksum file for `sha256sum -c`.

    Args:
        checksums: SHA-256 in hexadecimal, by file name.
    """
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(checksums.items()))


def _read_checksums(export: ExportDir) -> dict[str, str]:
    """Return the SHA-256 of each file of an export by its name. Names with a folder are rejected.

    Raises:
        DataError: the list of checksums is damaged.
    """
    with explain_disk_errors(export.checksums):
        content = export.checksums.read_bytes()
    lines = [_CHECKSUM_LINE.fullmatch(line) for line in content.decode("ascii", "replace").splitlines()]
    checksums = {line[2]: line[1] for line in lines if line}
    if sums_text(checksums).encode() != content:
        raise DataError(f"{export.checksums}: damaged or cut off", "", "Copy the export again")
    return checksums
