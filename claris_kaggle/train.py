"""The training verb: one fold or all, on every device there is, taken up where it stopped.

claris train --data DIR --folds FILE.csv --run DIR                       every GPU here, else one CPU process
claris train --data DIR --folds FILE.csv --run DIR --nproc 2             two processes
torchrun --nnodes 2 ... -m -- claris_kaggle train --data DIR ...            several machines
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from claris_kaggle import distributed, tables
from claris_kaggle.checkpoint import finish_fold, finished_sha256, load_checkpoint, save_checkpoint, save_weights
from claris_kaggle.config import DEFAULT_COLOR, DEFAULT_LR, TrainConfig, default_batch_size, require_same
from claris_kaggle.console import Progress, say
from claris_kaggle.dataset import EpochBatches, TrainSet
from claris_kaggle.distributed import World
from claris_kaggle.engine import Learner, average_over_ranks, train_epoch
from claris_kaggle.errors import RunError, Stopped, TrainingError, UsageError
from claris_kaggle.files import hold_lock, read_json, sha256_file, write_json
from claris_kaggle.folds import Folds, read_folds, write_folds
from claris_kaggle.inference import predict
from claris_kaggle.metrics import summary
from claris_kaggle.model import create_model, find_weights, load_start, read_weights
from claris_kaggle.paths import DataDir, FoldDir, RunDir
from claris_kaggle.prepare import TrainingData, read_training
from claris_kaggle.stopping import Stopper

HISTORY = ("epoch", "train_loss", "valid_loss", "auc", "accuracy", "lr", "seconds", "images_per_second")
NO_MEMORY = "Begin a new run with --batch-size {} or smaller"


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """How a run is carried out here; none of it changes what comes out.

    Attributes:
        data, fold_file, run_dir, cache: where things lie.
        only: fold numbers to train; empty for all.
        nproc: processes on this machine; 0 is one for each GPU, else one.
        workers: loader processes for each; None is some on a GPU and none on a CPU.
        time_limit: seconds until all must be done; None for no limit.
        checkpoint_minutes: time between checkpoints within an epoch.
    """

    data: DataDir
    fold_file: Path
    run_dir: RunDir
    cache: Path
    only: tuple[int, ...] = ()
    nproc: int = 0
    workers: int | None = None
    time_limit: float | None = None
    checkpoint_minutes: float = 10.0

    def rank_workers(self, world: World) -> int:
        """Loader processes of one rank."""
        if self.workers is not None:
            return self.workers
        return min(4, max(1, share_cores(world.world_size))) if world.device.type == "cuda" else 0


def share_cores(nproc: int) -> int:
    """Cores for each of so many processes, at least one."""
    return max(1, (os.cpu_count() or 1) // nproc)


def train_run(job: TrainJob, given: dict[str, Any], arguments: Sequence[str]) -> None:
    """Train the folds that are not finished yet.

    Args:
        given: config fields that the user chose; the others come from the run, else the defaults.
        arguments: the command line to start processes with.
    Raises:
        ClarisError: inputs do not fit, another config began the run, training failed, or Stopped.
    """
    stopper = Stopper(job.time_limit)
    if distributed.under_torchrun():
        with distributed.join_world() as world:
            work(job, given, world, stopper)
        return
    with hold_lock(job.run_dir.lock):
        nproc = job.nproc or distributed.default_nproc()
        if nproc == 1:
            with distributed.join_world() as world:
                work(job, given, world, stopper)
            return
        begin_run(job, given, nproc)
        left = [] if job.time_limit is None else ["--time-limit", f"{stopper.left():.0f}s"]
        distributed.launch(nproc, [*arguments, *left])


def work(job: TrainJob, given: dict[str, Any], world: World, stopper: Stopper) -> None:
    """What every rank does: agree on the config, then train fold after fold."""
    stopper.listen()
    if distributed.was_launched():
        config, data = continue_run(job)
    elif world.world_size == 1:
        config, data = begin_run(job, given, 1)
    else:
        config, data = begin_on_machines(job, given, world)
    torch.set_num_threads(config.threads)
    torch.backends.cudnn.benchmark = True
    for fold in choose_folds(data.folds, job.only):
        fold_dir = job.run_dir.fold(fold)
        if finished_sha256(fold_dir):
            say(f"fold {fold}: finished before")
            continue
        train_fold(job, config, data, fold, world, stopper)


def begin_run(job: TrainJob, given: dict[str, Any], nproc: int) -> tuple[TrainConfig, TrainingData]:
    """Check all inputs, fix the config or compare it with the run's, and write what is new."""
    path = job.run_dir.config
    stored = TrainConfig.from_json(read_json(path), path) if path.exists() else None
    if job.only and stored is None and job.run_dir.root.is_dir():
        require_no_foreign_files(job.run_dir)
    asked = TrainConfig(**{**(stored.to_json() if stored else {}), **given})
    choose_folds(read_folds(job.fold_file), job.only)  # what is quickly found comes before what takes time
    weights = find_weights(asked.weights, asked.model)
    create_model(asked.model)  # an unknown name must fail before the data are read
    data = read_training(job.data, job.fold_file, job.cache)
    config = resolve(asked, weights, data, nproc)
    if stored is not None:
        require_same(stored, config, path)
    else:
        write_folds(job.run_dir.folds, data.folds, {"copied_from": job.fold_file.name}, overwrite=True)
        write_json(path, config.to_json())
    say(describe(config, nproc))
    return config, data


def require_no_foreign_files(run_dir: RunDir) -> None:
    """Refuse to begin a run where fold folders lie without a config.

    Raises:
        RunError: naming one of them.
    """
    leftover = sorted(run_dir.root.glob("fold[0-9]*/last.ckpt"))
    if leftover:
        raise RunError(f"{leftover[0]}: a checkpoint, but no config.json beside", "", "Name a new folder as --run")


def resolve(asked: TrainConfig, weights: Path | None, data: TrainingData, nproc: int) -> TrainConfig:
    """The config with every default and every input's digest filled in."""
    recipe = "pretrained" if weights else "scratch"
    cuda = torch.cuda.is_available()
    precision = asked.precision if asked.precision != "auto" else "fp16" if cuda else "fp32"
    if precision == "fp16" and not cuda:
        raise UsageError(
            "--precision is fp16, and there is no GPU here", "", "Give fp32, or bf16 on a processor that has it"
        )
    batch_size = asked.batch_size or default_batch_size(len(data.folds.train_rows(0)))
    if batch_size < 2 * nproc:
        raise UsageError(f"--batch-size is {batch_size}", f"at least {2 * nproc} are needed, two for each process")
    return dataclasses.replace(
        asked,
        recipe=recipe,
        batch_size=batch_size,
        lr=DEFAULT_LR[recipe] if asked.lr is None else asked.lr,
        color=DEFAULT_COLOR[recipe] if asked.color is None else asked.color,
        precision=precision,
        threads=asked.threads or share_cores(nproc),
        weights_sha256=sha256_file(weights) if weights else "",
        data_sha256=tables.digest(data.folds.ids, data.folds.labels),
        folds_sha256=data.folds.digest,
    )


def describe(config: TrainConfig, nproc: int) -> str:
    """The recipe in one line, for the user to see what was taken."""
    start = {"imagenet": "ImageNet weights", "none": "random weights"}.get(
        config.weights, f"weights of {config.weights}"
    )
    return (
        f"training {config.model} from {start} ({config.recipe} recipe): {config.epochs} epochs, "
        f"batch {config.batch_size}, {config.schedule} to {config.lr:g}, colour {config.color:g}, {config.precision}, "
        f"{nproc} process{'es' if nproc > 1 else ''} of {config.threads} threads"
    )


def continue_run(job: TrainJob) -> tuple[TrainConfig, TrainingData]:
    """What the process that launched this one has just checked and written."""
    config = TrainConfig.from_json(read_json(job.run_dir.config), job.run_dir.config)
    return config, read_training(job.data, job.fold_file, job.cache, proved=True)


def begin_on_machines(job: TrainJob, given: dict[str, Any], world: World) -> tuple[TrainConfig, TrainingData]:
    """Under the user's own torchrun: the first process of each machine prepares, all agree with rank 0."""
    if world.is_main:
        config, _ = begin_run(job, given, world.world_size)
    config = distributed.from_main(world, config if world.is_main else None)
    if world.local_rank == 0 and not world.is_main:
        read_training(job.data, job.fold_file, job.cache)
    distributed.any_rank(world, 0)
    data = read_training(job.data, job.fold_file, job.cache, proved=True)
    if data.folds.digest != config.folds_sha256:
        raise RunError(f"{job.fold_file}: another fold file than rank 0 has", "", "Copy the same file to every machine")
    return config, data


def choose_folds(folds: Folds, only: Sequence[int]) -> list[int]:
    """The fold numbers to train, all of them by default.

    Raises:
        UsageError: a number is not among the file's folds.
    """
    wrong = [fold for fold in only if not 0 <= fold < folds.k]
    if wrong:
        raise UsageError(f"--fold is {wrong[0]}", f"the fold file has folds 0 to {folds.k - 1}")
    return sorted(set(only)) or list(range(folds.k))


def train_fold(
    job: TrainJob, config: TrainConfig, data: TrainingData, fold: int, world: World, stopper: Stopper
) -> None:
    """Train one fold to its end, from its checkpoint if there is one."""
    fold_dir = job.run_dir.fold(fold)
    learner = new_learner(config, fold, world)
    state = load_checkpoint(fold_dir.checkpoint)
    if state is not None:
        require_same(TrainConfig.from_json(state["config"], fold_dir.checkpoint), config, fold_dir.checkpoint)
        if world.is_main or world.world_size > 1:
            learner.restore(state)
        say(f"fold {fold}: going on from epoch {learner.epoch + 1}, step {learner.step + 1}")
    try:
        run_epochs(job, learner, data, fold, stopper)
    except Stopped:
        save_if_main(learner, fold_dir)
        raise
    except torch.OutOfMemoryError as error:
        found = f"fold {fold}: the GPU's memory does not hold {config.batch_size} patches a step"
        raise TrainingError(found, "", NO_MEMORY.format(config.batch_size // 2)) from error
    if world.is_main:
        select_weights(learner, fold_dir)
        say(f"fold {fold}: finished, validation AUC {learner.history[-1]['auc']:.4f}")
    distributed.any_rank(world, 0)  # nobody goes on before the fold is sealed


def new_learner(config: TrainConfig, fold: int, world: World) -> Learner:
    """The network at its start; each fold has its own random weights."""
    model = create_model(config.model, seed=config.seed * 1000 + fold)
    weights = find_weights(config.weights, config.model)
    if weights is not None:
        skipped = load_start(model, weights)
        if skipped:
            say(f"fold {fold}: the classifier begins at random ({', '.join(skipped)})")
    return Learner(config, world, model)


def run_epochs(job: TrainJob, learner: Learner, data: TrainingData, fold: int, stopper: Stopper) -> None:
    """The epochs that are left, each with its exact validation, history row and checkpoint."""
    config, world, fold_dir = learner.config, learner.world, job.run_dir.fold(fold)
    train_rows, valid_rows = data.folds.train_rows(fold), data.folds.valid_rows(fold)
    trainset = make_trainset(data, train_rows, config)
    valid_ids = [data.folds.ids[row] for row in valid_rows]
    valid_labels = data.folds.labels[valid_rows]
    workers = job.rank_workers(world)
    while learner.epoch < config.epochs:
        batches = EpochBatches(
            trainset,
            seed=config.seed,
            epoch=learner.epoch,
            batch_size=config.batch_size,
            color=config.color or 0.0,
            rank=world.rank,
            world_size=world.world_size,
        )
        train_loss = average_over_ranks(world, timed_epoch(job, learner, batches, workers, stopper, fold))
        stopper.tick()
        probabilities = predict(learner.model, data.pack, valid_ids, world, config, views=1, workers=workers)
        stopper.tick()
        figures = summary(valid_labels, probabilities)
        end_epoch(learner, fold_dir, fold, train_loss, figures, len(train_rows))


def make_trainset(data: TrainingData, rows: np.ndarray[Any, Any], config: TrainConfig) -> TrainSet:
    """The rows of the folds that are trained on."""
    ids = [data.folds.ids[row] for row in rows]
    return TrainSet(data.pack, ids, data.folds.labels[rows].astype(np.int64), (1.0, config.class_weight))


def timed_epoch(
    job: TrainJob, learner: Learner, batches: EpochBatches, workers: int, stopper: Stopper, fold: int
) -> float:
    """The rest of the epoch with progress, checkpoints now and then, and an eye on the time."""
    fold_dir = job.run_dir.fold(fold)
    start, before = time.monotonic(), learner.seconds
    saved = start
    total = len(batches.trainset.ids)
    name = f"fold {fold} epoch {learner.epoch + 1}/{learner.config.epochs}"
    with Progress(name, total, "images", done=int(total * learner.step / len(batches))) as progress:

        def between(rows: int) -> str:
            nonlocal saved
            now = time.monotonic()
            learner.seconds = before + now - start
            progress.update(rows)
            if now - saved >= 60 * job.checkpoint_minutes:
                save_if_main(learner, fold_dir)
                saved = time.monotonic()
            stopper.tick()
            return stopper.reason()

        stopper.tick()
        return train_epoch(learner, batches, workers, between)


def end_epoch(
    learner: Learner, fold_dir: FoldDir, fold: int, train_loss: float, figures: dict[str, float], images: int
) -> None:
    """Put down the epoch's row, move on to the next epoch, and save."""
    row = {
        "epoch": learner.epoch + 1,
        "train_loss": train_loss,
        "valid_loss": figures["log_loss"],
        "auc": figures["auc"],
        "accuracy": figures["accuracy"],
        "lr": learner.optimizer.param_groups[0]["lr"],
        "seconds": learner.seconds,
        "images_per_second": images / max(learner.seconds, 1e-9),
    }
    best = max((earlier["auc"] for earlier in learner.history), default=-1.0)
    learner.history.append(row)
    learner.epoch, learner.step, learner.seconds = learner.epoch + 1, 0, 0.0
    learner.loss_sum.zero_()
    if learner.world.is_main:
        if row["auc"] > best:
            save_weights(fold_dir.best_weights, learner.model)
        tables.write_table(fold_dir.history, {name: [one[name] for one in learner.history] for name in HISTORY})
    save_if_main(learner, fold_dir)
    say(
        f"fold {fold} epoch {row['epoch']}/{learner.config.epochs}: loss {train_loss:.4f}, "
        f"validation loss {row['valid_loss']:.4f}, AUC {row['auc']:.4f}, accuracy {row['accuracy']:.4f}, "
        f"{row['images_per_second']:,.0f} images/s"
    )


def save_if_main(learner: Learner, fold_dir: FoldDir) -> None:
    """Save the state from rank 0; the other ranks have the same."""
    if learner.world.is_main:
        save_checkpoint(fold_dir.checkpoint, learner.state())


def select_weights(learner: Learner, fold_dir: FoldDir) -> None:
    """Put the weights that will predict in place and seal the fold.

    By default those of the last epoch: picking the epoch by the fold's own validation patches
    would flatter the OOF score that the same patches give.
    """
    row = learner.history[-1]
    if learner.config.select == "best":
        row = max(learner.history, key=lambda one: one["auc"])
        learner.model.load_state_dict(read_weights(fold_dir.best_weights))
    save_weights(fold_dir.weights, learner.model)
    finish_fold(fold_dir, {"epoch": row["epoch"], "auc": row["auc"], "select": learner.config.select})
