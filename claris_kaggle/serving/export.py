"""Export a finished run to a single folder: weights, config, metrics, model card, checksums, optional ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from claris_kaggle.core.config import TrainConfig, is_generated
from claris_kaggle.core.errors import DiskError, RunError, name_few
from claris_kaggle.core.files import (
    create_folder,
    read_json,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)
from claris_kaggle.core.paths import ExportDir, RunDir
from claris_kaggle.data.arrays import THRESHOLD
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.ensembling.runs import load_run
from claris_kaggle.evaluation.run_metrics import run_metrics
from claris_kaggle.inference.fold_models import EXPORT_FORMAT, load_trained, sums_text
from claris_kaggle.inference.tta import require_views
from claris_kaggle.models.sources import portable_name
from claris_kaggle.models.weights import finished_sha256
from claris_kaggle.reporting.templates import render_template
from claris_kaggle.serving.classify import NOTICE
from claris_kaggle.serving.onnx_export import _require_onnx, _write_onnx
from claris_kaggle.version import __version__

_CARD_TEMPLATE = "card.md.jinja"


def export_run(
    run_dir: RunDir | Path | str, out: Path | str, *, onnx: bool = False, views: int = 8
) -> dict[str, object]:
    """Export a run to the folder `out`. The folder is written completely or not at all.

    Args:
        run_dir: a run with all folds trained and predicted.
        out: the folder to create. It may exist if it is empty.
        onnx: write `model.onnx` as well.
        views: number of test-time augmentation views in `model.onnx`: 1, 4 or 8.
    Returns:
        The content of `export.json`.
    Raises:
        UsageError: invalid number of views, or a package for ONNX is missing.
        RunError: a fold is not finished, or was not predicted with its present weights.
        DiskError: `out` exists and is not an empty folder, or cannot be written.
    """
    run_dir, out = RunDir.at(run_dir), Path(out)
    require_views(views)
    if onnx:
        _require_onnx()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DiskError(f"{out}: already exists", "nothing was changed", "Give a new folder")
    digests = _require_finished(run_dir)
    content = read_json(run_dir.config)
    config, generated = _make_portable(TrainConfig.from_json(content, run_dir.config)), is_generated(content)
    facts = _export_facts(run_dir, list(digests), views if onnx else None)
    with create_folder(out) as aside:
        export = ExportDir(aside)
        for fold, digest in digests.items():
            _copy_verified(run_dir.fold(fold).weights, export.weights(fold), digest)
        write_json(export.config, config.to_stored_json(generated=generated))
        write_json(export.metadata, facts)
        if run_dir.statistics.exists():
            write_json(export.statistics, read_json(run_dir.statistics))
        write_text(export.model_card, _render_card(config, facts, generated=generated))
        if onnx:
            trained = load_trained(run_dir.root, device=torch.device("cpu"))
            _write_onnx(export.onnx, trained, views, {"notice": NOTICE, "made_by": str(facts["made_by"])})
        write_text(export.checksums, sums_text({path.name: sha256_file(path) for path in aside.iterdir()}))
    return facts


def _require_finished(run_dir: RunDir) -> dict[int, str]:
    """Return the SHA-256 of each fold's weights. Verifies that the predictions of the run were made with them.

    Raises:
        RunError: the run has no config or fold file, or folds are not finished or not predicted; names these folds.
    """
    if not run_dir.config.exists() or not run_dir.folds.exists():
        names = "config.json and folds.csv"
        raise run_dir.missing_error(names, "expected a trained run", "Train first: claris train")
    folds = range(read_folds(run_dir.folds).k)
    digests = {fold: digest for fold in folds if (digest := finished_sha256(run_dir.fold(fold)))}
    unfinished = [fold for fold in folds if fold not in digests]
    if unfinished:
        found = f"{run_dir.root}: fold {name_few(unfinished)} not finished, or damaged"
        raise RunError(found, f"expected all of {len(folds)} folds", "Run claris train to finish them")
    other = [fold for fold, digest in digests.items() if _predicted_with(run_dir, fold) != digest]
    if other:
        found = f"{run_dir.root}: fold {name_few(other)} not predicted with its weights"
        raise RunError(found, "the metrics must belong to these weights", "Run claris predict")
    return digests


def _predicted_with(run_dir: RunDir, fold: int) -> object:
    """Return the SHA-256 of the weights that the fold was predicted with, or None if it is not predicted."""
    path = run_dir.fold(fold).predictions_manifest
    return read_json(path).get("weights_sha256") if path.exists() else None


def _make_portable(config: TrainConfig) -> TrainConfig:
    """Return the config without local paths."""
    return dataclasses.replace(config, model=portable_name(config.model), weights=Path(config.weights).name or "none")


def _export_facts(run_dir: RunDir, folds: list[int], onnx_views: int | None) -> dict[str, object]:
    """Return the content of `export.json`. Computes the metrics from the OOF predictions."""
    run = load_run(run_dir)
    figures = run_metrics(run.oof, run.slides)
    return {
        "format": EXPORT_FORMAT,
        "notice": NOTICE,
        "name": run_dir.root.name,
        "made_by": f"claris {__version__}",
        "torch": torch.__version__,
        "folds": folds,
        "by_slide": run.slides is not None,
        "thresholds": {"half": THRESHOLD, "oof": figures.overall.best_threshold},
        "temperature": figures.overall.temperature,
        "oof": figures.overall.to_json(),
        "oof_folds": [one.to_json() for one in figures.folds],
        "oof_views": read_json(run_dir.fold(0).predictions_manifest).get("views"),
        "onnx": None if onnx_views is None else {"views": onnx_views},
    }


def _copy_verified(source: Path, target: Path, digest: str) -> None:
    """Copy weights and verify their SHA-256.

    Raises:
        RunError: the weights have changed since `digest` was computed.
    """
    content = source.read_bytes()
    if sha256_bytes(content) != digest:
        raise RunError(f"{source}: changed during the copy", "", "Run the same command again")
    write_bytes(target, content)


def _render_card(config: TrainConfig, facts: dict[str, object], *, generated: bool) -> str:
    """Return the model card as Markdown."""
    return render_template(_CARD_TEMPLATE, config=config, facts=facts, oof=facts["oof"], generated=generated)
