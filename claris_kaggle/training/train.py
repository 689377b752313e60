"""The training verb: one fold or all, on every device there is, taken up where it stopped.

claris train --data DIR --folds FILE.csv --run DIR                       every GPU here, else one CPU process
claris train --data DIR --folds FILE.csv --run DIR --nproc 2             two processes
torchrun --nnodes 2 ... -m -- claris_kaggle train --data DIR ...            several machines
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from claris_kaggle.core.config import TrainConfig, require_same
from claris_kaggle.core.console import Progress, duration, say
from claris_kaggle.core.errors import RunError, Stopped, TrainingError, count, one_line
from claris_kaggle.core.files import hold_lock
from claris_kaggle.core.paths import FoldDir
from claris_kaggle.core.time_limit import Stopper
from claris_kaggle.data import tables
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.prepare import TrainingData
from claris_kaggle.evaluation.metrics import summary
from claris_kaggle.inference.forward import predict
from claris_kaggle.models.p4m import plain
from claris_kaggle.models.weights import (
    find_weights,
    finish_fold,
    finished_sha256,
    load_start,
    read_weights,
    save_weights,
)
from claris_kaggle.runtime import distributed
from claris_kaggle.runtime.cudnn_fallback import DEFAULT, convert_cudnn_failures, run_ranks
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.jobs import torch_settings
from claris_kaggle.training.checkpoint import CheckpointWriter, load_checkpoint
from claris_kaggle.training.learner import Diverged, Learner, average_over_ranks, train_epoch
from claris_kaggle.training.setup import (
    TrainJob,
    begin_on_machines,
    begin_run,
    choose_folds,
    chosen_options,
    continue_run,
    new_network,
)
from claris_kaggle.training.throughput import say_rates

HISTORY = ("epoch", "train_loss", "valid_loss", "auc", "accuracy", "lr", "seconds", "images_per_second")
LOWER_LR = "Begin a new run with a lower --lr, or with --precision fp32"
NO_MEMORY = "Begin a new run with --batch-size {} or smaller"


def train_run(job: TrainJob, config: TrainConfig | Mapping[str, Any] | None = None) -> None:
    """Train the folds that are not finished yet, on one process or several.

    Messages go to the logger `claris_kaggle`. Handlers of signals and settings of torch are restored at the end.

    Args:
        job: where things lie and how to work.
        config: a whole config, or the options that differ from the run's own, else from the preset's.
    Raises:
        ClarisError: inputs do not fit, another config began the run, training failed, or Stopped.
    """
    stopper, options = Stopper(job.time_limit), chosen_options(config)
    if distributed.under_torchrun():
        with distributed.join_world() as world, distributed.hold_for_all(world, job.run_dir.lock):
            work(job, options, world, stopper)
        return
    with hold_lock(job.run_dir.lock):
        nproc = distributed.choose_nproc(job.nproc)
        if nproc > 1:
            begin_run(job, options, nproc)
        run_ranks(
            job.cudnn, nproc, "claris_kaggle.training.train:train_rank",
            lambda mode: dataclasses.replace(job, cudnn=mode, time_limit=stopper.limit_from_now()).to_json(),
            lambda world: work(job, options, world, stopper),
            lambda: None,
        )  # fmt: skip


def train_rank(content: dict[str, Any]) -> None:
    """Train on one rank that `train_run` launched; the config is that of the run's folder.

    Args:
        content: of `TrainJob.to_json`.
    """
    job = TrainJob.from_json(content)
    with distributed.join_world() as world:
        work(job, {}, world, Stopper(job.time_limit))


def work(job: TrainJob, given: dict[str, Any], world: World, stopper: Stopper) -> None:
    """Do what every rank does: agree on the config, then train fold after fold."""
    with stopper.listen():
        if distributed.was_launched():
            config, data = continue_run(job)
        elif world.world_size == 1:
            config, data = begin_run(job, given, 1)
        else:
            config, data = begin_on_machines(job, given, world)
        with torch_settings(config.threads, autotune=job.cudnn == DEFAULT):
            train_folds(job, config, data, world, stopper)


def train_folds(job: TrainJob, config: TrainConfig, data: TrainingData, world: World, stopper: Stopper) -> None:
    """Train the folds that are not finished, in turn."""
    rates = job.rates
    for fold in choose_folds(data.folds, job.only):
        if finished_sha256(job.run_dir.fold(fold)):
            say(f"fold {fold}: finished before")
            continue
        train_fold(job, config, data, fold, world, stopper, rates=rates)
        rates = False


def train_fold(
    job: TrainJob, config: TrainConfig, data: TrainingData, fold: int, world: World, stopper: Stopper, *, rates: bool
) -> None:
    """Train one fold to its end, from its checkpoint if there is one; `rates` measures first what holds it up."""
    fold_dir = job.run_dir.fold(fold)
    try:
        with convert_cudnn_failures(f"fold {fold}", job.cudnn):
            if rates:
                measure_rates(job, config, data, fold, world)
            learner = run_twice(job, take_up(job, config, fold, world), data, fold, stopper)
    except torch.OutOfMemoryError as error:
        found = f"fold {fold}: the GPU's memory does not hold {config.batch_size} patches a step"
        raise TrainingError(found, "", NO_MEMORY.format(config.batch_size // 2)) from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        found = f"fold {fold}: torch could not compile the network ({one_line(error)})"
        raise TrainingError(found, "", "Go on without --compile") from error
    if world.is_main:
        select_weights(learner, fold_dir)
        say(f"fold {fold}: finished, validation {last_auc(learner)}{what_is_left(job, learner, data)}")
    distributed.any_rank(world, 0)  # nobody goes on before the fold is sealed


def measure_rates(job: TrainJob, config: TrainConfig, data: TrainingData, fold: int, world: World) -> None:
    """Say how fast loader and steps are, on a network that is thrown away."""
    trainset = make_trainset(data, data.folds.train_rows(fold), config)
    learner = new_learner(job, config, fold, world)
    say_rates(learner, epoch_batches(learner, trainset), job.rank_workers(world))


def last_auc(learner: Learner) -> str:
    """The validation AUC of the last epoch in words; an empty text before there is one."""
    return f"AUC {learner.history[-1]['auc']:.4f}" if learner.history else ""


def what_is_left(job: TrainJob, learner: Learner, data: TrainingData) -> str:
    """How many folds are not finished, and about how long they will take if they train as this one did."""
    left = sum(not finished_sha256(job.run_dir.fold(fold)) for fold in choose_folds(data.folds, job.only))
    seconds = left * sum(row["seconds"] for row in learner.history)
    return f"; {count(left, 'fold')} to go, about {duration(seconds)}" if left else ""


def run_twice(job: TrainJob, learner: Learner, data: TrainingData, fold: int, stopper: Stopper) -> Learner:
    """Train to the end of the fold; a loss that is no number sends it back to the last checkpoint once.

    Raises:
        Diverged: it happened again.
    """
    try:
        run_epochs(job, learner, data, fold, stopper)
        return learner
    except Diverged as error:
        say(f"fold {fold}: {error.found}; going back to the last checkpoint")
    distributed.any_rank(learner.world, 0)  # rank 0 has left its writer, so that all read the same checkpoint
    learner = take_up(job, learner.config, fold, learner.world)
    run_epochs(job, learner, data, fold, stopper)
    return learner


def take_up(job: TrainJob, config: TrainConfig, fold: int, world: World) -> Learner:
    """The learner of the fold's newest checkpoint, or a new one."""
    learner, path = new_learner(job, config, fold, world), job.run_dir.fold(fold).checkpoint
    state = load_checkpoint(path)
    if state is not None:
        require_same(TrainConfig.from_json(state["config"], path), config, path)
        learner.restore(state)
        say(f"fold {fold}: going on from epoch {learner.epoch + 1}, step {learner.step + 1}")
    if distributed.from_main(world, learner.taken) != learner.taken:
        found = f"{path}: process {world.rank} does not see the checkpoint that process 0 goes on from"
        raise RunError(found, "one folder on all machines is needed", "Put --run on a disk that they share")
    return learner


def new_learner(job: TrainJob, config: TrainConfig, fold: int, world: World) -> Learner:
    """The network at its start."""
    model = new_network(config, fold)
    weights = find_weights(config.weights, config.model)
    if weights is not None and (skipped := load_start(model, weights)):
        say(f"fold {fold}: the classifier begins at random ({', '.join(skipped)})")
    return Learner(config, world, model, compiled=job.compile, cudnn=job.cudnn)


def run_epochs(job: TrainJob, learner: Learner, data: TrainingData, fold: int, stopper: Stopper) -> None:
    """The epochs that are left, each with its exact validation, history row and checkpoint.

    Raises:
        Diverged: the loss or a prediction is no number.
        Stopped: on time or by a signal, with the state on disk.
    """
    config, world, fold_dir = learner.config, learner.world, job.run_dir.fold(fold)
    trainset = make_trainset(data, data.folds.train_rows(fold), config)
    valid_rows = data.folds.valid_rows(fold)
    valid_ids = [data.folds.ids[row] for row in valid_rows]
    workers = job.rank_workers(world)
    with CheckpointWriter(fold_dir.checkpoint) as writer:
        try:
            while learner.epoch < config.epochs:
                loss = average_over_ranks(world, timed_epoch(job, learner, trainset, writer, stopper, fold))
                save_if_main(learner, writer)  # validation takes longer than an end by force may wait
                stopper.tick()
                distributed.share_buffers(world, learner.predictor)
                name = f"fold {fold} epoch {learner.epoch + 1}/{config.epochs}, validation"
                seen = dataclasses.replace(config, resolution=config.resolution_in(learner.epoch), small_share=0.0)
                with Progress(name, len(valid_ids), "images", note=last_auc(learner)) as progress:
                    probabilities = predict(
                        plain(learner.predictor), data.pack, valid_ids, world, seen,
                        views=1, workers=workers, after=progress.update,
                    )  # fmt: skip
                stopper.tick()
                if not np.isfinite(probabilities).all():
                    raise Diverged(f"epoch {learner.epoch + 1}: predictions are no numbers", "", LOWER_LR)
                figures = summary(data.folds.labels[valid_rows], probabilities)
                end_epoch(learner, fold_dir, fold, loss, len(trainset.ids), figures)
                save_if_main(learner, writer)
        except Stopped:
            save_if_main(learner, writer)
            writer.wait()
            distributed.any_rank(world, 0)  # when one rank has ended, torchrun gives the others 30 s
            raise


def make_trainset(data: TrainingData, rows: np.ndarray[Any, Any], config: TrainConfig) -> TrainSet:
    """The rows of the folds that are trained on."""
    ids = [data.folds.ids[row] for row in rows]
    return TrainSet(data.pack, ids, data.folds.labels[rows].astype(np.int64), (1.0, config.class_weight))


def epoch_batches(learner: Learner, trainset: TrainSet) -> EpochBatches:
    """The steps of the learner's current epoch for its rank."""
    config, world = learner.config, learner.world
    return EpochBatches(
        trainset, config, epoch=learner.epoch, rank=world.rank, world_size=world.world_size,
        turn_here=world.device.type == "cpu",
    )  # fmt: skip


def timed_epoch(
    job: TrainJob, learner: Learner, trainset: TrainSet, writer: CheckpointWriter, stopper: Stopper, fold: int
) -> float:
    """The rest of the epoch with progress, checkpoints now and then, and an eye on the time."""
    config, world = learner.config, learner.world
    batches = epoch_batches(learner, trainset)
    before, total = learner.seconds, len(trainset.ids)
    saved = start = time.monotonic()
    name = f"fold {fold} epoch {learner.epoch + 1}/{config.epochs}"
    done = int(total * learner.step / len(batches))
    with Progress(name, total, "images", done=done, note=last_auc(learner)) as progress:

        def between(rows: int) -> str:
            nonlocal saved
            now = time.monotonic()
            learner.seconds = before + now - start
            progress.update(rows)
            if now - saved >= 60 * job.checkpoint_minutes:
                save_if_main(learner, writer)
                saved = time.monotonic()
            stopper.tick()
            return stopper.reason()

        stopper.pause()
        return train_epoch(learner, batches, job.rank_workers(world), between)


def end_epoch(
    learner: Learner, fold_dir: FoldDir, fold: int, train_loss: float, images: int, figures: dict[str, float]
) -> None:
    """Put down the epoch's row and move on to the next epoch."""
    row = {
        "epoch": learner.epoch + 1,
        "train_loss": train_loss,
        "valid_loss": figures["log_loss"],
        **{name: figures[name] for name in ("auc", "accuracy")},
        "lr": last_learning_rate(learner),
        "seconds": learner.seconds,
        "images_per_second": images / max(learner.seconds, 1e-9),
    }
    best = max((earlier["auc"] for earlier in learner.history), default=-1.0)
    learner.history.append(row)
    learner.epoch, learner.step, learner.seconds = learner.epoch + 1, 0, 0.0
    learner.loss_sum.zero_()
    if learner.world.is_main:
        if row["auc"] > best:
            save_weights(fold_dir.best_weights, plain(learner.predictor))
        tables.write_table(fold_dir.history, {name: [one[name] for one in learner.history] for name in HISTORY})
    if learner.skipped:
        say(f"fold {fold}: {int(learner.skipped)} steps so far had no finite loss and changed no weight")
    say(
        f"fold {fold} epoch {row['epoch']}/{learner.config.epochs}: loss {train_loss:.4f}, "
        f"validation loss {row['valid_loss']:.4f}, AUC {row['auc']:.4f}, accuracy {row['accuracy']:.4f}, "
        f"{row['images_per_second']:,.0f} images/s"
    )


def last_learning_rate(learner: Learner) -> float:
    """Return the learning rate of the last step, before the factors of groups of layers."""
    group = learner.optimizer.param_groups[0]
    return float(group["lr"] / group["lr_scale"])


def save_if_main(learner: Learner, writer: CheckpointWriter) -> None:
    """Save the state from rank 0; the other ranks have the same."""
    if learner.world.is_main:
        writer.save(learner.state())


def select_weights(learner: Learner, fold_dir: FoldDir) -> None:
    """Put the weights that will predict in place and seal the fold.

    By default those of the last epoch: picking the epoch by the fold's own validation patches
    would flatter the OOF score that the same patches give.
    """
    row, model = learner.history[-1], plain(learner.predictor)
    if learner.config.select == "best":
        row = max(learner.history, key=lambda one: one["auc"])
        model.load_state_dict(read_weights(fold_dir.best_weights))
    save_weights(fold_dir.weights, model)
    finish_fold(fold_dir, {"epoch": row["epoch"], "auc": row["auc"], "select": learner.config.select})
