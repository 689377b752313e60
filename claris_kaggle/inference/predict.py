"""Predict OOF and test probabilities of each finished fold, then of the run.

claris predict --data DIR --run DIR --views 8
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.console import Progress, format_command, log_info
from claris_kaggle.core.errors import DataError, DiskError, RunError, Stopped, TableError, TrainingError, format_count
from claris_kaggle.core.files import hold_lock, read_json, sha256_file, write_json
from claris_kaggle.core.paths import FoldDir, RunDir
from claris_kaggle.core.time_limit import Stopper
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import Folds
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.prepare import get_pack, read_training, read_training_folds
from claris_kaggle.evaluation import predictions, run_metrics
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.resemblance import PatchStatistics
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.inference.tta import require_views
from claris_kaggle.models.factory import fuse_batch_norm, trained_network
from claris_kaggle.models.weights import finished_sha256, load_finished
from claris_kaggle.runtime import distributed
from claris_kaggle.runtime.cudnn_fallback import convert_cudnn_failures, move_network, run_ranks
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.jobs import Job, torch_settings
from claris_kaggle.runtime.precision import suggest_precision, usable_precision

_STATISTICS_PATCHES = 5000


@dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """The inputs of a prediction and the options of its execution.

    Attributes:
        data: folder of the competition's files.
        run_dir: folder of the run.
        cache: folder of the packed patches.
        views: number of views of the test-time augmentation: 1, 4 or 8.
        nproc: number of processes on this machine; 0 means one per GPU, or one process without a GPU.
        workers: worker processes for data loading, per process.
        threads: CPU threads per process; 0 uses the setting of the run.
        precision: `auto`, `fp32`, `fp16` or `bf16`; empty uses the precision of the run.
        time_limit: time limit in seconds; None for no limit.
        cudnn: the cuDNN mode of the first attempt, one of `config.CUDNN_MODES`.
    """

    views: int = 8
    workers: int = 0
    threads: int = 0
    precision: str = ""


@dataclass(frozen=True)
class _PredictData:
    """The data that each rank needs: folds with labels, and the packed patches of both splits."""

    folds: Folds
    train: Pack
    test: Pack


def predict_run(job: PredictJob) -> dict[str, Any] | None:
    """Predict with every finished fold that has no predictions yet, in one or several processes.

    Messages go to the logger `claris_kaggle`. Signal handlers and torch settings are restored at the end.

    Args:
        job: the inputs and the options.
    Returns:
        The content of `metrics.json`; None while folds are missing, and on ranks other than 0.
    Raises:
        ClarisError: no fold is finished, or the inputs do not match the run.
        Stopped: time limit or signal. Finished folds keep their predictions.
    """
    require_views(job.views)
    stopper = Stopper(job.time_limit)
    if distributed.under_torchrun():
        with distributed.join_world() as world, distributed.lock_on_rank_zero(world, job.run_dir.lock):
            return _predict_rank(job, world, stopper, verified=False)
    _require_config(job.run_dir)  # before the lock, which would create the folder
    with hold_lock(job.run_dir.lock):
        nproc = distributed.choose_nproc(job.nproc)
        if nproc > 1:
            _load_run_inputs(job)
        return run_ranks(
            job.cudnn, nproc, "claris_kaggle.inference.predict:_predict_launched_rank",
            lambda mode: replace(job, cudnn=mode, time_limit=stopper.limit_from_now()).to_json(),
            lambda world: _predict_rank(job, world, stopper, verified=False),
            lambda: read_json(job.run_dir.metrics) if job.run_dir.metrics.exists() else None,
        )  # fmt: skip


def _predict_launched_rank(content: Mapping[str, object]) -> None:
    """Predict on one rank that `predict_run` launched.

    Args:
        content: output of `PredictJob.to_json`.
    """
    job = PredictJob.from_json(content)
    with distributed.join_world() as world:
        _predict_rank(job, world, Stopper(job.time_limit), verified=True)


def _require_config(run_dir: RunDir) -> None:
    """Raise an error if the folder does not contain a run.

    Raises:
        RunError: no config.json. The message names the folder, and runs beside or inside it.
    """
    if not run_dir.config.exists():
        raise run_dir.missing_error("config.json", "expected a trained run", "Train first: claris train")


def _load_run_inputs(job: PredictJob, *, verified: bool = False) -> tuple[TrainConfig, _PredictData, list[int]]:
    """Read the config of the run, its data and the numbers of its finished folds, and check that they match.

    Args:
        job: the inputs.
        verified: another process has already checked the packed patches.
    Raises:
        RunError: the run does not exist, no fold is finished, or the fold file is not the one of the run.
    """
    run_dir = job.run_dir
    _require_config(run_dir)
    config = TrainConfig.from_json(read_json(run_dir.config), run_dir.config)
    folds = _read_folds_of_run(job, config)
    training = read_training(job.data, run_dir.folds, job.cache, verified=verified, folds=folds)
    if training.folds.digest != config.folds_sha256:
        found = f"{run_dir.folds}: not the fold file of this run"
        raise RunError(found, "", "Restore the file, or train a new run")
    finished = [fold for fold in range(training.folds.k) if finished_sha256(run_dir.fold(fold))]
    for fold in sorted(set(run_dir.finished_folds()) - set(finished)):
        places = ("--data", job.data.root, "--folds", run_dir.folds, "--run", run_dir.root)
        again = format_command("train", *places, "--fold", fold)
        log_info(f"fold {fold}: the weights are missing or damaged. Train it again: {again}")
    if not finished:
        raise RunError(f"{run_dir.root}: no finished fold", "", "Run claris train until a fold is finished")
    test_ids = tables.read_sample(job.data.sample)
    test = get_pack(job.data, "test", test_ids, job.cache, verified=verified)
    return config, _PredictData(training.folds, training.pack, test), finished


def _read_folds_of_run(job: PredictJob, config: TrainConfig) -> Folds:
    """Return the folds of the run after checking that they are those of the training labels.

    Raises:
        ClarisError: as in `read_training_folds`. The hint says if the run was trained on other labels.
    """
    try:
        return read_training_folds(job.data, job.run_dir.folds)
    except TableError as error:
        ids, labels = tables.read_labels(job.data.labels)
        if tables.digest_rows(ids, labels) == config.data_sha256:
            raise
        found = f"{job.data.root}: not the patches on which the run {job.run_dir.root} was trained"
        raise TableError(found, "", "Give the folder that it was trained on as --data") from error


def _predict_rank(job: PredictJob, world: World, stopper: Stopper, *, verified: bool) -> dict[str, Any] | None:
    """Predict the folds in turn on this rank. Rank 0 also writes the image statistics and the files of the run."""
    with stopper.listen():
        if not verified and world.world_size > 1:
            if world.local_rank == 0:
                _load_run_inputs(job)
            distributed.max_over_ranks(world, 0)
            verified = True
        config, data, finished = _load_run_inputs(job, verified=verified)
        config = replace(config, precision=usable_precision(job.precision, config.precision, world.device.type))
        if not job.precision:
            suggest_precision(config.precision, world.device.type, config.model)
        with torch_settings(job.threads or config.threads, autotune=torch.backends.cudnn.benchmark):
            _predict_folds(job, config, data, finished, world, stopper)
    if world.is_main:
        write_json(job.run_dir.statistics, _fit_statistics(data).to_json())
    missing = sorted(set(range(data.folds.k)) - set(finished))
    if missing:
        earlier = "; those in its folder are of an earlier prediction" if job.run_dir.oof.exists() else ""
        log_info(
            f"fold {', '.join(map(str, missing))} without weights; oof.csv, test.csv and metrics.json of the run were "
            f"not written{earlier}"
        )
        return None
    if not world.is_main:
        return None
    return run_metrics.gather_run(job.run_dir, data.folds, data.test.ids, {"views": job.views})


def _predict_folds(
    job: PredictJob, config: TrainConfig, data: _PredictData, finished: list[int], world: World, stopper: Stopper
) -> None:
    """Predict, in turn, with the finished folds that have no predictions yet."""
    model = trained_network(config)
    move_network(model, world.device, job.cudnn)
    precision = distributed.broadcast_from_rank_zero(world, _choose_reusable_precision(job, config.precision, finished))
    reusable_config = replace(config, precision=precision)
    for fold in finished:
        if not distributed.broadcast_from_rank_zero(world, _is_predicted(job, reusable_config, fold)):
            with convert_cudnn_failures(f"fold {fold}", job.cudnn):
                _predict_fold(job, config, data, fold, model, world, stopper)


def _choose_reusable_precision(job: PredictJob, precision: str, finished: list[int]) -> str:
    """Return the precision for which existing predictions are reused, so that the folds of a run do not mix several.

    If --precision is not given and all folds were predicted with the same precision, it is that one; otherwise it is
    the precision in use.
    """
    precisions: set[str] = set()
    with contextlib.suppress(DataError, DiskError, KeyError):
        precisions = {read_json(job.run_dir.fold(fold).predictions_manifest)["precision"] for fold in finished}
    return precisions.pop() if len(precisions) == 1 and not job.precision else precision


def _is_predicted(job: PredictJob, config: TrainConfig, fold: int) -> bool:
    """Return True if the fold has intact prediction files made from the same weights, settings and test patches."""
    fold_dir = job.run_dir.fold(fold)
    with contextlib.suppress(DataError, DiskError):
        current = _make_predictions_manifest(job, fold_dir, config)
        stored = read_json(fold_dir.predictions_manifest)
        if {"input": current["input"], **stored} == current:  # older files do not name the input
            log_info(f"fold {fold}: already predicted")
            return True
    return False


def _make_predictions_manifest(job: PredictJob, fold_dir: FoldDir, config: TrainConfig) -> dict[str, object]:
    """Return the content of `predictions.json`: the inputs of the fold's two prediction files, and their SHA-256.

    Args:
        job: the inputs.
        fold_dir: the fold.
        config: the config of the run, with the precision of the arithmetic that was used.
    Raises:
        DiskError: one of the files does not exist.
    """
    return {
        "weights_sha256": finished_sha256(fold_dir),
        "views": job.views,
        "precision": config.precision,
        "input": {"crop": config.crop, "resolution": config.resolution, "normalise": config.normalise},
        "test_sha256": tables.digest_rows(tables.read_sample(job.data.sample)),
        "files": {path.name: sha256_file(path) for path in (fold_dir.oof, fold_dir.test)},
    }


def _predict_fold(
    job: PredictJob,
    config: TrainConfig,
    data: _PredictData,
    fold: int,
    model: torch.nn.Module,
    world: World,
    stopper: Stopper,
) -> None:
    """Write the fold's `oof.csv` and `test.csv`, then the manifest with the SHA-256 of both.

    Raises:
        TrainingError: a prediction is NaN or infinite. Nothing was written.
        Stopped: time limit or signal. Nothing was written.
    """
    fold_dir = job.run_dir.fold(fold)
    load_finished(fold_dir, model)
    fused = move_network(fuse_batch_norm(model), world.device, job.cudnn)
    rows = data.folds.valid_rows(fold)
    valid_ids = [data.folds.ids[row] for row in rows]
    total = len(valid_ids) + len(data.test.ids)

    with Progress(f"fold {fold}, {format_count(job.views, 'view')}", total) as progress:

        def on_progress(done: int) -> None:
            progress.update(done)
            if stopper.reason():
                found = f"stopped by {stopper.reason()} while fold {fold} was predicted"
                raise Stopped(found, "", "Run the same command to resume with that fold")

        def probabilities(pack: Pack, ids: list[str]) -> NDArray[np.float32]:
            values = predict_ids(
                fused, pack, ids, world, config, views=job.views, workers=job.workers, on_progress=on_progress
            )
            _require_finite(values, f"fold {fold}", config.precision)
            return values

        oof = probabilities(data.train, valid_ids)
        progress.note = f"OOF AUC {auc(data.folds.labels[rows], oof):.4f}"
        test = probabilities(data.test, data.test.ids)
    if world.is_main:
        fold_dir.predictions_manifest.unlink(missing_ok=True)
        predictions.write_oof(fold_dir.oof, valid_ids, data.folds.labels[rows], fold, oof)
        predictions.write_test(fold_dir.test, data.test.ids, test)
        write_json(fold_dir.predictions_manifest, _make_predictions_manifest(job, fold_dir, config))
    log_info(f"fold {fold}: predicted {total:,} patches at {progress.rate():,.0f} per second, {progress.note}")


def _require_finite(values: NDArray[np.float32], name: str, precision: str) -> None:
    """Raise an error if a prediction is NaN or infinite.

    Raises:
        TrainingError: names the fold and the number of such predictions.
    """
    if wrong := int((~np.isfinite(values)).sum()):
        found = f"{name}: {wrong:,} of {len(values):,} predictions are NaN or infinite in {precision}"
        raise TrainingError(found, "", "Predict with --precision fp32. If that also fails, train the fold again")


def _fit_statistics(data: _PredictData) -> PatchStatistics:
    """Return the colour and texture statistics of at most `_STATISTICS_PATCHES` training patches."""
    ids = data.folds.ids  # sorted SHA-1 values, so any regular choice is random
    rows = np.linspace(0, len(ids) - 1, min(len(ids), _STATISTICS_PATCHES)).astype(np.int64)
    pixels = data.train.pixels[data.train.rows([ids[row] for row in rows])]
    return PatchStatistics.fit(pixels, data.folds.fold[rows].astype(np.int64))
