"""Train one fold or all on every available device, and resume after a stop.

claris train --data DIR --folds FILE.csv --run DIR                       every GPU, else one CPU process
claris train --data DIR --folds FILE.csv --run DIR --nproc 2             two processes
torchrun --nnodes 2 ... -m -- claris_kaggle train --data DIR ...            several machines
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from claris_kaggle.core.config import TrainConfig, require_same
from claris_kaggle.core.console import Progress, format_duration, log_info
from claris_kaggle.core.errors import RunError, Stopped, TrainingError, first_line, format_count
from claris_kaggle.core.files import hold_lock
from claris_kaggle.core.paths import FoldDir
from claris_kaggle.core.time_limit import Stopper
from claris_kaggle.data import tables
from claris_kaggle.data.batches import EpochBatches, ExtraPatches, TrainSet
from claris_kaggle.data.prepare import TrainingData
from claris_kaggle.evaluation.metrics import Metrics, summary
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.p4m import untie_weights
from claris_kaggle.models.weights import (
    find_weights,
    finish_fold,
    finished_sha256,
    load_initial_weights,
    read_weights,
    save_weights,
)
from claris_kaggle.runtime import distributed
from claris_kaggle.runtime.cudnn_fallback import DEFAULT_MODE, convert_cudnn_failures, run_ranks
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.jobs import torch_settings
from claris_kaggle.runtime.loading import limit_workers
from claris_kaggle.training.checkpoint import _CheckpointWriter, _load_checkpoint
from claris_kaggle.training.learner import (
    _Diverged,
    _is_compiler_error,
    _Learner,
    _recompute_statistics,
    _sum_over_ranks,
    _train_epoch,
)
from claris_kaggle.training.setup import (
    TrainJob,
    _choose_folds,
    _chosen_options,
    _create_network,
    _load_prepared_run,
    _prepare_run,
    _prepare_run_on_machines,
)
from claris_kaggle.training.throughput import _compiling_pays, _log_throughput

_HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "auc", "accuracy", "lr", "seconds", "images_per_second")
_LOWER_LR = "Start a new run with a lower --lr, or with --precision fp32"
_NO_MEMORY = "Start a new run with --batch-size {} or smaller"


def train_run(job: TrainJob, config: TrainConfig | Mapping[str, object] | None = None) -> None:
    """Train the folds that are not finished yet, in one or several processes. Resumes a run that was stopped.

    Messages go to the logger `claris_kaggle`. Signal handlers and torch settings are restored at the end.

    Args:
        job: the inputs and the options of the execution.
        config: a complete config, or a mapping with the options that differ from the stored config on resume, or from
            the preset in a new run.
    Raises:
        ClarisError: the inputs do not match, the config differs from the stored one, or training failed.
        Stopped: time limit or signal. The state is on disk.
    """
    stopper, options = Stopper(job.time_limit), _chosen_options(config)
    if distributed.under_torchrun():
        with distributed.join_world() as world, distributed.lock_on_rank_zero(world, job.run_dir.lock):
            _train_rank(job, options, world, stopper)
        return
    with hold_lock(job.run_dir.lock):
        nproc = distributed.choose_nproc(job.nproc)
        if nproc > 1:
            _prepare_run(job, options, nproc)
        run_ranks(
            job.cudnn, nproc, "claris_kaggle.training.train:_train_launched_rank",
            lambda mode: dataclasses.replace(job, cudnn=mode, time_limit=stopper.limit_from_now()).to_json(),
            lambda world: _train_rank(job, options, world, stopper),
            lambda: None,
        )  # fmt: skip


def _train_launched_rank(content: Mapping[str, object]) -> None:
    """Train on one rank that `train_run` launched, with the config in the folder of the run.

    Args:
        content: output of `TrainJob.to_json`.
    """
    job = TrainJob.from_json(content)
    with distributed.join_world() as world:
        _train_rank(job, {}, world, Stopper(job.time_limit))


def _train_rank(job: TrainJob, given: dict[str, object], world: World, stopper: Stopper) -> None:
    """Run training on this rank: get the config that all ranks share, then train the folds in turn."""
    with stopper.listen():
        if distributed.launched_by_claris():
            config, data = _load_prepared_run(job)
        elif world.world_size == 1:
            config, data = _prepare_run(job, given, 1)
        else:
            config, data = _prepare_run_on_machines(job, given, world)
        with torch_settings(config.threads, autotune=job.cudnn == DEFAULT_MODE):
            _train_folds(job, config, data, world, stopper)


def _train_folds(job: TrainJob, config: TrainConfig, data: TrainingData, world: World, stopper: Stopper) -> None:
    """Train, in turn, the folds that are not finished."""
    for fold in _choose_folds(data.folds, job.only):
        if finished_sha256(job.run_dir.fold(fold)):
            log_info(f"fold {fold}: already finished")
            continue
        # If the first optimizer imported this, the import would keep its callers, and so the first network, in memory.
        importlib.import_module("torch._dynamo")
        job = _train_fold(job, config, data, fold, world, stopper)


def _train_fold(
    job: TrainJob, config: TrainConfig, data: TrainingData, fold: int, world: World, stopper: Stopper
) -> TrainJob:
    """Train one fold to its end, from its checkpoint if there is one.

    Returns:
        The job for the other folds, with the choice of `compile`. They do not measure the throughput again.
    Raises:
        TrainingError: not enough GPU memory, torch could not compile the network, or the training diverged.
        Stopped: time limit or signal.
    """
    fold_dir = job.run_dir.fold(fold)
    try:
        with convert_cudnn_failures(f"fold {fold}", job.cudnn):
            if job.rates:
                _measure_rates(job, config, data, fold, world)
            job = _choose_compile(job, config, data, fold, world)
            learner = _train_with_one_rollback(
                job, _load_or_create_learner(job, config, fold, world), data, fold, stopper
            )
    except torch.OutOfMemoryError as error:
        found = f"fold {fold}: the GPU memory is too small for {config.batch_size} patches per step"
        raise TrainingError(found, "", _NO_MEMORY.format(config.batch_size // 2)) from error
    except RuntimeError as error:
        if not _is_compiler_error(error):
            raise
        found = f"fold {fold}: torch could not compile the network ({first_line(error)})"
        raise TrainingError(found, "", "Run it without --compile") from error
    if world.is_main:
        _select_weights(learner, fold_dir)
        log_info(
            f"fold {fold}: finished, validation {_format_last_auc(learner)}{_estimate_remaining(job, learner, data)}"
        )
    distributed.max_over_ranks(world, 0)  # a barrier: all ranks wait until the fold is marked as finished
    return dataclasses.replace(job, rates=False)


def _measure_rates(job: TrainJob, config: TrainConfig, data: TrainingData, fold: int, world: World) -> None:
    """Measure and log the throughput with a temporary network."""
    trainset = _make_trainset(data, fold, config)
    learner = _create_learner(job, config, fold, world)
    batches = _epoch_batches(learner, trainset)
    _log_throughput(learner, batches, _count_workers(job, world, batches))


def _choose_compile(job: TrainJob, config: TrainConfig, data: TrainingData, fold: int, world: World) -> TrainJob:
    """Return the job with `compile` set to `always` or `never`, by a measurement if it is `auto`."""
    if job.compile != "auto":
        return job
    choices = {True: dataclasses.replace(job, compile="always"), False: dataclasses.replace(job, compile="never")}
    trainset = _make_trainset(data, fold, config)
    images = _count_unfinished(job, data) * config.epochs * len(trainset) // world.world_size

    def create(compiled: bool) -> _Learner:
        return _create_learner(choices[compiled], config, fold, world)

    pays = _compiling_pays(create, lambda learner: _epoch_batches(learner, trainset), images)
    return choices[distributed.broadcast_from_rank_zero(world, pays)]


def _count_unfinished(job: TrainJob, data: TrainingData) -> int:
    """Return the number of folds of the job that are not finished."""
    return sum(not finished_sha256(job.run_dir.fold(fold)) for fold in _choose_folds(data.folds, job.only))


def _format_last_auc(learner: _Learner) -> str:
    """Return the validation AUC of the last epoch as text, or an empty text before the first epoch has ended."""
    return f"AUC {learner.history[-1]['auc']:.4f}" if learner.history else ""


def _estimate_remaining(job: TrainJob, learner: _Learner, data: TrainingData) -> str:
    """Return the number of unfinished folds and their estimated duration as text, based on the time of this fold."""
    unfinished = _count_unfinished(job, data)
    seconds = unfinished * sum(row["seconds"] for row in learner.history)
    return f"; {format_count(unfinished, 'fold')} left, about {format_duration(seconds)}" if unfinished else ""


def _train_with_one_rollback(
    job: TrainJob, learner: _Learner, data: TrainingData, fold: int, stopper: Stopper
) -> _Learner:
    """Train to the end of the fold. If the training diverges, roll back to the last checkpoint once.

    Raises:
        _Diverged: the training diverged a second time.
        Stopped: time limit or signal.
    """
    try:
        _run_epochs(job, learner, data, fold, stopper)
        return learner
    except _Diverged as error:
        log_info(f"fold {fold}: {error.found}; returning to the last checkpoint")
    config, world = learner.config, learner.world
    del learner  # frees its GPU memory
    distributed.max_over_ranks(world, 0)  # a barrier: rank 0 has written the checkpoint
    learner = _load_or_create_learner(job, config, fold, world)
    _run_epochs(job, learner, data, fold, stopper)
    return learner


def _load_or_create_learner(job: TrainJob, config: TrainConfig, fold: int, world: World) -> _Learner:
    """Return the learner of the fold's newest checkpoint, or a new one.

    Raises:
        RunError: the checkpoint has another config, or this rank does not see the checkpoint of rank 0.
    """
    path = job.run_dir.fold(fold).checkpoint
    state = _load_checkpoint(path)
    weights = find_weights(config.weights, config.model) if state is None else None
    learner = _create_learner(job, config, fold, world, weights)
    if state is not None:
        require_same(TrainConfig.from_json(state["config"], path), config, path)
        learner.restore(state)
        log_info(f"fold {fold}: resuming from epoch {learner.epoch + 1}, step {learner.step + 1}")
    if distributed.broadcast_from_rank_zero(world, learner.global_step) != learner.global_step:
        found = f"{path}: process {world.rank} does not see the checkpoint of process 0"
        raise RunError(found, "all machines need the same run folder", "Put --run on a shared disk")
    return learner


def _create_learner(
    job: TrainJob, config: TrainConfig, fold: int, world: World, weights: Path | None = None
) -> _Learner:
    """Return a learner at the first step, with the weights in the file, or random weights."""
    model = _create_network(config, fold)
    if weights is not None and (skipped := load_initial_weights(model, weights)):
        log_info(f"fold {fold}: the classifier starts from random weights ({', '.join(skipped)})")
    return _Learner(config, world, model, compiled=job.compile == "always", cudnn=job.cudnn)


def _run_epochs(job: TrainJob, learner: _Learner, data: TrainingData, fold: int, stopper: Stopper) -> None:
    """Run the remaining epochs, each followed by exact validation, a history row and a checkpoint.

    Raises:
        _Diverged: the loss, its gradients or a prediction are NaN or infinite.
        Stopped: time limit or signal. The state is on disk.
    """
    config, world, fold_dir = learner.config, learner.world, job.run_dir.fold(fold)
    trainset = _make_trainset(data, fold, config)
    valid_rows = data.folds.valid_rows(fold)
    valid_ids = [data.folds.ids[row] for row in valid_rows]
    workers = job.rank_workers(world)
    with _CheckpointWriter(fold_dir.checkpoint) as writer:
        try:
            while learner.epoch < config.epochs:
                loss = _sum_over_ranks(
                    world, _train_epoch_with_checkpoints(job, learner, trainset, writer, stopper, fold)
                )
                _save_if_main(learner, writer)  # validation can take longer than the time before a forced kill
                stopper.tick()
                _update_swa(job, learner, trainset)
                stopper.tick()
                distributed.broadcast_buffers(world, learner.predictor)
                name = f"fold {fold} epoch {learner.epoch + 1}/{config.epochs}, validation"
                with Progress(name, len(valid_ids), "images", note=_format_last_auc(learner)) as progress:
                    probabilities = predict_ids(
                        untie_weights(learner.predictor), data.pack, valid_ids, world, config,
                        views=1, workers=workers, on_progress=progress.update,
                    )  # fmt: skip
                stopper.tick()
                if not np.isfinite(probabilities).all():
                    raise _Diverged(f"epoch {learner.epoch + 1}: predictions are NaN or infinite", "", _LOWER_LR)
                metrics = summary(data.folds.labels[valid_rows], probabilities)
                _end_epoch(learner, fold_dir, fold, loss, len(trainset), metrics)
                _save_if_main(learner, writer)
        except Stopped:
            _save_if_main(learner, writer)
            writer.wait()
            distributed.max_over_ranks(world, 0)  # a barrier: after one rank has ended, torchrun gives the others 30 s
            raise


def _make_trainset(data: TrainingData, fold: int, config: TrainConfig) -> TrainSet:
    """Return the training patches of the fold, with the test patches that have a pseudo-label for this fold."""
    rows, pseudo, extra = data.folds.train_rows(fold), data.pseudo, None
    if pseudo and data.test_pack and len(pseudo_rows := pseudo.rows(fold)):
        names = [pseudo.ids[row] for row in pseudo_rows]
        extra = ExtraPatches(data.test_pack, names, pseudo.labels[pseudo_rows].astype(np.int64), config.extra_weight)
    ids = [data.folds.ids[row] for row in rows]
    return TrainSet(data.pack, ids, data.folds.labels[rows].astype(np.int64), (1.0, config.class_weight), extra)


def _epoch_batches(learner: _Learner, trainset: TrainSet, *, all_ranks: bool = False) -> EpochBatches:
    """Return the steps of the current epoch for this rank, or with `all_ranks` for all ranks together."""
    config, world = learner.config, learner.world
    return EpochBatches(
        trainset, config, epoch=learner.epoch,
        rank=0 if all_ranks else world.rank, world_size=1 if all_ranks else world.world_size,
        transform_on_host=world.device.type == "cpu",
    )  # fmt: skip


def _count_workers(job: TrainJob, world: World, batches: EpochBatches) -> int:
    """Return the number of worker processes of this rank, at most those whose batches fit in shared memory."""
    return limit_workers(job.rank_workers(world), batches.item_bytes, world.local_size)


def _update_swa(job: TrainJob, learner: _Learner, trainset: TrainSet) -> None:
    """Add the epoch to the SWA. After the last epoch, recompute the statistics of its batch norms.

    Every rank computes them over all patches, with the batches of a single process. So the statistics do not depend on
    the number of processes, and no rank waits for another.
    """
    learner.add_epoch_to_swa()
    swa = learner.swa
    if swa is not None and learner.swa_is_complete and _has_batch_norm(swa.module):
        log_info("recomputing the batch-norm statistics of the averaged weights")
        batches = _epoch_batches(learner, trainset, all_ranks=True)
        _recompute_statistics(learner, swa.module, batches, _count_workers(job, learner.world, batches))


def _has_batch_norm(network: nn.Module) -> bool:
    """Return True if the network has batch norms."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def _train_epoch_with_checkpoints(
    job: TrainJob, learner: _Learner, trainset: TrainSet, writer: _CheckpointWriter, stopper: Stopper, fold: int
) -> float:
    """Train the rest of the epoch, with progress, regular checkpoints and the time limit.

    Returns:
        This rank's share of the mean loss.
    Raises:
        _Diverged: the loss or its gradients are NaN or infinite.
        Stopped: time limit or signal, on any rank.
    """
    config, world = learner.config, learner.world
    batches = _epoch_batches(learner, trainset)
    earlier_seconds, total = learner.seconds, len(trainset)
    saved = start = time.monotonic()
    name = f"fold {fold} epoch {learner.epoch + 1}/{config.epochs}"
    done = int(total * learner.step / len(batches))
    with Progress(name, total, "images", done=done, note=_format_last_auc(learner)) as progress:

        def after_step(rows: int) -> str:
            nonlocal saved
            now = time.monotonic()
            learner.seconds = earlier_seconds + now - start
            progress.update(rows)
            if now - saved >= 60 * job.checkpoint_minutes:
                _save_if_main(learner, writer)
                saved = time.monotonic()
            stopper.tick()
            return stopper.reason()

        stopper.skip_interval()
        return _train_epoch(learner, batches, _count_workers(job, world, batches), after_step)


def _end_epoch(
    learner: _Learner, fold_dir: FoldDir, fold: int, train_loss: float, images: int, metrics: Metrics
) -> None:
    """Write the history row of the epoch, save the weights if they are the best so far, and start the next epoch."""
    row = {
        "epoch": learner.epoch + 1,
        "train_loss": train_loss,
        "valid_loss": metrics.log_loss,
        "auc": metrics.auc,
        "accuracy": metrics.accuracy,
        "lr": _last_learning_rate(learner),
        "seconds": learner.seconds,
        "images_per_second": images / max(learner.seconds, 1e-9),
    }
    best = max((earlier["auc"] for earlier in learner.history), default=-1.0)
    learner.history.append(row)
    learner.epoch, learner.step, learner.seconds = learner.epoch + 1, 0, 0.0
    learner.loss_sum.zero_()
    if learner.world.is_main:
        if row["auc"] > best:
            save_weights(fold_dir.best_weights, untie_weights(learner.predictor))
        tables.write_table(
            fold_dir.history, {name: [row[name] for row in learner.history] for name in _HISTORY_COLUMNS}
        )
    if learner.skipped_steps:
        log_info(
            f"fold {fold}: {int(learner.skipped_steps)} steps so far were skipped, because the loss was not finite"
        )
    log_info(
        f"fold {fold} epoch {row['epoch']}/{learner.config.epochs}: loss {train_loss:.4f}, "
        f"validation loss {row['valid_loss']:.4f}, AUC {row['auc']:.4f}, accuracy {row['accuracy']:.4f}, "
        f"{row['images_per_second']:,.0f} images/s"
    )


def _last_learning_rate(learner: _Learner) -> float:
    """Return the learning rate of the last step, before the factors of the parameter groups."""
    group = learner.optimizer.param_groups[0]
    return float(group["lr"] / group.get("lr_scale", 1.0))


def _save_if_main(learner: _Learner, writer: _CheckpointWriter) -> None:
    """Save the state on rank 0. The other ranks have the same state."""
    if learner.world.is_main:
        writer.save(learner.state())


def _select_weights(learner: _Learner, fold_dir: FoldDir) -> None:
    """Write the final weights of the fold and mark it as finished.

    By default these are the weights of the last epoch. Selecting the epoch by the validation patches of the fold would
    make the OOF score optimistic, because it is computed on the same patches.
    """
    row, model = learner.history[-1], untie_weights(learner.predictor)
    if learner.config.select == "best":
        row = max(learner.history, key=lambda row: row["auc"])
        model.load_state_dict(read_weights(fold_dir.best_weights))
    save_weights(fold_dir.weights, model)
    finish_fold(fold_dir, {"epoch": row["epoch"], "auc": row["auc"], "select": learner.config.select})
