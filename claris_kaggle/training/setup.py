"""The config of a run: fixed at the start, equal on all ranks, compared on resume."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from claris_kaggle.core.config import (
    COMPILE_MODES,
    TrainConfig,
    apply_preset,
    default_batch_size,
    default_learning_rate,
    require_same,
    update_config,
)
from claris_kaggle.core.console import format_duration, log_info
from claris_kaggle.core.errors import ClarisError, RunError, UsageError, format_count
from claris_kaggle.core.files import read_json, sha256_file, write_json
from claris_kaggle.core.paths import FoldDir, RunDir
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import SPLIT_AGAIN_HINT, SPLIT_BY_PATCH, Folds, require_together, write_folds
from claris_kaggle.data.prepare import TrainingData, read_training, read_training_folds
from claris_kaggle.data.pseudo_file import PseudoLabels, read_pseudo_file
from claris_kaggle.models.cost import run_cost, run_step_gigabytes
from claris_kaggle.models.factory import (
    create_model,
    fixed_side,
    network_options,
    pretrained_normalisation,
    require_side,
    require_trainable,
)
from claris_kaggle.models.p4m import require_symmetric
from claris_kaggle.models.sources import canonical_name, read_architecture
from claris_kaggle.models.weights import find_weights, load_initial_weights
from claris_kaggle.runtime import distributed
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.jobs import Job
from claris_kaggle.runtime.precision import choose_precision, suggest_precision
from claris_kaggle.training.checkpoint import _has_checkpoint
from claris_kaggle.training.optimizer import _require_optimizer

# The scratch recipe was measured on 1,200 patches. From this number of patches on, another recipe is suggested.
_MANY_PATCHES = 20_000
# Files that the folder of a run does not have before its first fold is finished: those of the competition, of a fold,
# and of another tool.
_FOREIGN_FILES = ("train_labels.csv", "sample_submission.csv", "model.json", "last.ckpt", "oof.csv", "test.csv")


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """The inputs of a run and the options of its execution on this machine. The options do not define the result.

    Attributes:
        data: folder of the competition's files.
        fold_file: the fold file.
        run_dir: folder of the run.
        cache: folder of the packed patches.
        extra: file of pseudo-labels from `claris pseudo`, on which each fold trains too; None for none.
        slides: slide map. If given, folds in which a slide is in both training and validation are rejected.
        only: fold numbers to train; empty for all.
        nproc: number of processes on this machine; 0 means one per GPU, or one process without a GPU.
        workers: worker processes for data loading, per process; None means 1 to 4 on a GPU and 0 on a CPU.
        time_limit: time limit in seconds; None for no limit.
        checkpoint_minutes: minutes between checkpoints within an epoch.
        rates: measure data-loading and training throughput before the first epoch.
        compile: train through `torch.compile`: `never`, `always`, or `auto`, which measures if it saves time. Results
            differ in the last digits, as between GPU models.
        cudnn: the cuDNN mode of the first attempt, one of `config.CUDNN_MODES`. Modes other than `default` also change
            the last digits.
    """

    fold_file: Path
    slides: Path | None = None
    extra: Path | None = None
    only: tuple[int, ...] = ()
    workers: int | None = None
    checkpoint_minutes: float = 10.0
    rates: bool = False
    compile: str = "never"

    def __post_init__(self) -> None:
        """Convert paths that are given as text, and `only` to a tuple.

        Raises:
            UsageError: `compile` is not one of `COMPILE_MODES`.
        """
        super().__post_init__()
        object.__setattr__(self, "only", tuple(self.only))
        if self.compile not in COMPILE_MODES:
            raise UsageError(f"compile is {self.compile!r}", f"it must be one of {', '.join(COMPILE_MODES)}")

    def rank_workers(self, world: World) -> int:
        """Return the number of worker processes for data loading of this rank of `world`."""
        if self.workers is not None:
            return self.workers
        return min(4, max(1, _share_cores(world.world_size))) if world.device.type == "cuda" else 0


def _chosen_options(config: TrainConfig | Mapping[str, object] | None) -> dict[str, object]:
    """Return the options that the caller set: all options of a config, those of a mapping, or none."""
    if not isinstance(config, TrainConfig):
        return dict(config or {})
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.metadata.get("flag")}


def _share_cores(nproc: int) -> int:
    """Return the number of CPU cores per process, at least 1."""
    return max(1, (os.cpu_count() or 1) // nproc)


def _prepare_run(job: TrainJob, given: dict[str, object], nproc: int) -> tuple[TrainConfig, TrainingData]:
    """Check all inputs, and write the config of a new run or compare it with the stored one on resume.

    The config is written only after the weights are loaded, the network has made a training step, and the data are
    read. A stored config without a checkpoint or a finished fold may be replaced.

    Args:
        job: the inputs and the options of the execution.
        given: the config options that the caller set.
        nproc: number of processes over all machines.
    Returns:
        The complete config and the training data.
    Raises:
        ClarisError: an option or an input is invalid, or the config differs from the stored one.
    """
    path = job.run_dir.config
    stored, trained = _read_stored_config(job)
    given = _without_auto(given)
    # Fast checks come before slow ones.
    folds = read_training_folds(job.data, job.fold_file)
    is_bound = stored is not None and (trained or (not given and stored.folds_sha256 == folds.digest))
    bound = stored if is_bound else None
    requested = new_config(given) if bound is None else _choose_network(update_config(bound, given), bound)
    fold_numbers = _choose_folds(folds, job.only)
    _report_split(job, folds)
    pseudo = _read_extra(job, folds, given, bound)
    if job.slides is not None:
        require_together(folds, tables.read_slides(job.slides, folds.ids), "slide", job.fold_file, SPLIT_AGAIN_HINT)
    _choose_training_precision(requested)
    _require_batch_size(requested.batch_size, nproc)
    started = bound if all(_has_progress(job.run_dir.fold(fold)) for fold in fold_numbers) else None
    weights = _find_initial_weights(requested, started)
    if not trained:
        check_network(requested, weights)
    data = read_training(job.data, job.fold_file, job.cache, extra=job.extra, folds=folds, pseudo=pseudo)
    config = _resolve_config(requested, weights, data, nproc, started)
    if stored is not None and trained:
        require_same(stored, config, path)
    else:
        _write_run_config(job, config, data, stored)
    log_info(f"{_describe_recipe(config, nproc)}; {_describe_cost(config, data, len(fold_numbers))}")
    _warn_of_memory(config, nproc)
    _warn_of_learning_rate(config, given)
    if not (stored and trained) and "precision" not in given:
        suggest_precision(config.precision, "cuda" if torch.cuda.is_available() else "cpu", config.model)
    return config, data


def _read_stored_config(job: TrainJob) -> tuple[TrainConfig | None, bool]:
    """Return the config in the folder, None without one; and True if there is a checkpoint or a finished fold."""
    path = job.run_dir.config
    folds = job.run_dir.fold_dirs().values()
    trained = any(_has_progress(fold_dir) for fold_dir in folds)
    if path.exists():
        return TrainConfig.from_json(read_json(path), path), trained
    _require_no_foreign_files(job.run_dir)
    return None, trained


def _has_progress(fold_dir: FoldDir) -> bool:
    """Return True if the fold is finished or has a checkpoint, so that it does not need the initial weights."""
    return fold_dir.weights_manifest.exists() or _has_checkpoint(fold_dir.checkpoint)


def _find_initial_weights(requested: TrainConfig, stored: TrainConfig | None) -> Path | None:
    """Return the file of the initial weights, or None for random weights.

    Args:
        requested: the config.
        stored: the config of a run whose folds do not need the initial weights any more; None otherwise.
    Raises:
        ClarisError: as in `find_weights`.
    """
    try:
        return find_weights(requested.weights, requested.model)
    except ClarisError:
        if stored is None or (requested.weights, requested.model) != (stored.weights, stored.model):
            raise
        return None


def check_network(requested: TrainConfig, weights: Path | None) -> None:
    """Check that optimizer and network exist, and that the network takes its input size, its weights and a step.

    Args:
        requested: the config; values that depend on data may be automatic.
        weights: file of the initial weights; None for random weights, or to skip them.
    Raises:
        ClarisError: one of them fails.
    """
    _require_optimizer(requested.optimizer)
    model = _create_network(requested)
    require_side(model, requested.model, requested.side, requested.architecture)
    if requested.equivariance != "none":
        require_symmetric(model, requested.side)
    if requested.normalise == "model":
        pretrained_normalisation(requested.model)
    if weights is not None:
        load_initial_weights(model, weights)
    require_trainable(model, requested.model, requested.side)


def _write_run_config(job: TrainJob, config: TrainConfig, data: TrainingData, stored: TrainConfig | None) -> None:
    """Write config and fold file to the folder of a run in which nothing is trained yet."""
    if stored is None:
        _suggest_preset(config, len(data.folds.ids))
    elif stored != config:
        log_info(f"{job.run_dir.config}: nothing was trained with it; replaced by the config of this command")
    write_folds(job.run_dir.folds, data.folds, {"copied_from": job.fold_file.name}, overwrite=True)
    write_json(job.run_dir.config, config.to_stored_json(generated=job.data.generated.exists()))


def _read_extra(
    job: TrainJob, folds: Folds, given: Mapping[str, object], stored: TrainConfig | None
) -> PseudoLabels | None:
    """Return the pseudo-labels of --extra, None for none. A run that started with them needs them on resume.

    Raises:
        UsageError: --extra-weight without --extra.
        RunError: the run was started with pseudo-labels.
        ClarisError: the file is invalid.
    """
    if job.extra is not None:
        return read_pseudo_file(job.extra, folds, tables.read_sample(job.data.sample))
    if stored is not None and stored.extra_sha256:
        hint = "Give the same file with --extra"
        raise RunError(f"{job.run_dir.config}: a second round with pseudo-labels, and no --extra now", "", hint)
    if given.get("extra_weight", TrainConfig.extra_weight) != TrainConfig.extra_weight:
        raise UsageError("--extra-weight without --extra", "it weights pseudo-labels", "Give --extra FILE")
    return None


def new_config(given: Mapping[str, object]) -> TrainConfig:
    """Return the config of a new run. A network with a fixed input size gets this size unless another one is given.

    Raises:
        UsageError: as in `apply_preset`.
        ClarisError: as in `_choose_network`.
    """
    config = _choose_network(apply_preset(given))
    if "resolution" in given or "crop" in given or not config.resolution:
        return config
    return dataclasses.replace(config, resolution=fixed_side(config.model) or config.resolution)


def _choose_network(requested: TrainConfig, stored: TrainConfig | None = None) -> TrainConfig:
    """Return the config with the full name of its network and the architecture of a repository or folder.

    A run that resumes keeps its stored architecture, and needs neither folder nor network connection for it.

    Raises:
        ClarisError: there is no such repository or folder, or it has no network of timm.
    """
    name = canonical_name(requested.model)
    if stored is not None and name in (stored.model, stored.model.removeprefix("local-dir:")):
        return dataclasses.replace(requested, model=stored.model, architecture=stored.architecture)
    return dataclasses.replace(requested, model=name, architecture=read_architecture(name))


def _report_split(job: TrainJob, folds: Folds) -> None:
    """Log that the folds are by patch, unless they or the slide map show that each slide is in one fold."""
    if folds.slides is not None:
        return
    path = job.slides or (job.data.slides if job.data.slides.exists() else None)
    slides = tables.read_slides(path, folds.ids) if path else folds.ids
    one_fold_per_slide = len(set(zip(slides, folds.fold.tolist(), strict=True))) == len(set(slides))
    if path is None or not one_fold_per_slide:
        log_info(SPLIT_BY_PATCH)


def _without_auto(given: dict[str, object]) -> dict[str, object]:
    """Return the options without `preset: auto`, which on resume means the preset of the stored config."""
    return {name: value for name, value in given.items() if (name, value) != ("preset", "auto")}


def _suggest_preset(config: TrainConfig, patches: int) -> None:
    """Log a suggestion to use other options than the scratch preset for a large number of patches."""
    if config.preset == "scratch" and config.stem == "pool4" and patches >= _MANY_PATCHES:
        log_info(
            "the scratch recipe is for few patches: for this many, also try a new --run with "
            "--stem pool --tail pool --epochs 6"
        )


def _create_network(config: TrainConfig, fold: int = 0) -> nn.Module:
    """Return the network at the start of training, with random weights that differ between folds.

    Raises:
        UsageError: unknown timm model, or a layer that the config needs is missing.
    """
    return create_model(config.model, config.seed * 1000 + fold, **network_options(config))


def _require_no_foreign_files(run_dir: RunDir) -> None:
    """Raise an error if a folder without a config has trained folds, or files of another kind than a new run's.

    Raises:
        RunError: it is the competition's folder, the folder of one fold, or has predictions of another tool, which
            `claris predict` would replace; or a fold was trained. The message names the file.
    """
    hint = "Copy the run's config.json into its folder, or give a new folder as --run"
    for name, kind in (("last.ckpt", "a checkpoint"), ("model.json", "a finished fold")):
        leftover = sorted(run_dir.root.glob(f"fold[0-9]*/{name}"))
        if leftover:
            raise RunError(f"{leftover[0]}: {kind} without a config.json", "", hint)
    found = next((name for name in _FOREIGN_FILES if (run_dir.root / name).exists()), "")
    if found:
        expected = f"expected a new folder, and this one has {found}"
        raise run_dir.missing_error("config.json", expected, "Give a new folder as --run")


def _choose_normalisation(requested: TrainConfig, stored: TrainConfig | None) -> str:
    """Return the normalisation. For `model` it is read from the network's settings, or else from `stored`.

    Raises:
        ClarisError: as in `pretrained_normalisation`.
    """
    if requested.normalise != "model":
        return requested.normalise
    try:
        return pretrained_normalisation(requested.model)
    except ClarisError:
        if stored is None or stored.model != requested.model:
            raise
        return stored.normalise


def _resolve_config(
    requested: TrainConfig, weights: Path | None, data: TrainingData, nproc: int, stored: TrainConfig | None
) -> TrainConfig:
    """Return the config with all automatic values and the SHA-256 of all inputs filled in.

    Args:
        requested: the config.
        weights: file of the initial weights; None for random weights, or if the file is missing now.
        data: the training data.
        nproc: number of processes over all machines.
        stored: as in `_find_initial_weights`.
    Raises:
        UsageError: the batch size is below two patches per process, or the precision is not supported here.
    """
    patches = data.count_train(0)
    batch_size = requested.batch_size or _choose_batch_size(requested, patches, nproc)
    _require_batch_size(batch_size, nproc)
    digest = stored.weights_sha256 if stored is not None and stored.weights == requested.weights else ""
    return dataclasses.replace(
        requested,
        batch_size=batch_size,
        lr=requested.lr or default_learning_rate(requested.epochs * math.ceil(patches / batch_size)),
        normalise=_choose_normalisation(requested, stored),
        precision=_choose_training_precision(requested),
        threads=requested.threads or _share_cores(nproc),
        weights_sha256=sha256_file(weights) if weights else digest,
        data_sha256=tables.digest_rows(data.folds.ids, data.folds.labels),
        folds_sha256=data.folds.digest,
        extra_sha256=data.extra_sha256,
    )


def _choose_batch_size(requested: TrainConfig, patches: int, nproc: int) -> int:
    """Return the default batch size: `default_batch_size`, halved until each process fits the memory of a T4.

    The T4's limit is used on every machine, so that the same command gives the same config everywhere.

    Args:
        requested: the config, before its automatic values are filled in.
        patches: number of training patches of a fold.
        nproc: number of processes over all machines.
    """
    size = default_batch_size(patches)
    largest = nproc * run_cost(requested, requested.precision).largest_batch_size()
    while size > largest and size >= 4 * nproc:
        size //= 2
    return size


def _warn_of_memory(config: TrainConfig, nproc: int) -> None:
    """Log a warning if a step needs more memory than the GPU has, even without the safety margin."""
    available = _gpu_gigabytes()
    if available is None:
        return
    needed = run_step_gigabytes(config, nproc)
    if needed > available:
        largest = nproc * run_cost(config, config.precision).largest_batch_size(available)
        log_info(
            f"--batch-size {config.batch_size} needs about {needed:.1f} GB per GPU, and this one has "
            f"{available:.1f} GB; at most {largest} should fit"
        )


def _warn_of_learning_rate(config: TrainConfig, given: Mapping[str, object]) -> None:
    """Log that the learning rate was not measured with the optimizer that the caller set without a learning rate."""
    if "optimizer" in given and "lr" not in given and not config.optimizer.endswith(("adam", "adamw")):
        log_info(
            f"the learning rate of {config.lr:g} was measured with adamw; {config.optimizer} may need another: "
            "try some with --lr on one fold"
        )


def _gpu_gigabytes() -> float | None:
    """Return the memory of the GPU in 1e9 bytes, or None without a GPU."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def _describe_cost(config: TrainConfig, data: TrainingData, folds: int) -> str:
    """Return the GFLOP per image and the estimated time to train that number of folds on two T4s, as text."""
    cost, k = run_cost(config), data.folds.k
    patches = data.count_train(0) * k // (k - 1)
    hours = cost.hours(
        train_patches=patches, epochs=config.epochs, folds=folds, views=0, predict_patches=0, all_folds=k
    )
    return f"{cost.gflop:.3g} GFLOP an image, about {format_duration(3600 * hours)} on two T4s (estimated)"


def _choose_training_precision(requested: TrainConfig) -> str:
    """Return the precision to train with on this machine.

    Raises:
        UsageError: the precision is not supported here.
    """
    return choose_precision(requested.precision, "cuda" if torch.cuda.is_available() else "cpu")


def _require_batch_size(batch_size: int, nproc: int) -> None:
    """Raise if a batch has fewer than two patches per process; 0 stands for a size that is not chosen yet.

    Raises:
        UsageError: the batch size is too small.
    """
    if 0 < batch_size < 2 * nproc:
        raise UsageError(f"--batch-size is {batch_size}", f"at least {2 * nproc} are needed, two per process")


# Options that `_describe_recipe` always shows in its own format, or that are not part of the recipe.
_ALWAYS_DESCRIBED = {
    "model", "weights", "batch_size", "preset", "epochs", "lr", "schedule", "precision", "seed", "threads",
    "extra_weight",
}  # fmt: skip


# Options that `--augment none` does not use.
_LIGHT_AUGMENTATION = {"geometry", "color", "stain"}


def _describe_recipe(config: TrainConfig, nproc: int) -> str:
    """Return a one-line summary of the recipe, including the options that differ from the defaults."""
    published = "its published weights" if config.architecture else "ImageNet weights"
    start = {"imagenet": published, "none": "random weights"}.get(config.weights, f"weights of {config.weights}")
    left_out = _ALWAYS_DESCRIBED | (_LIGHT_AUGMENTATION if config.augment == "none" else set())
    others = [
        f"{item.name.replace('_', '-')} {getattr(config, item.name)}, "
        for item in dataclasses.fields(config)
        if item.metadata.get("flag") and item.name not in left_out and getattr(config, item.name) != item.default
    ]
    if config.extra_sha256:
        others.append(f"second round with pseudo-labels of weight {config.extra_weight:g}, ")
    return (
        f"training {config.model} from {start} ({config.preset} recipe): {format_count(config.epochs, 'epoch')}, "
        f"batch {config.batch_size}, {config.schedule}, learning rate {config.lr:g}, {''.join(others)}"
        f"{config.precision}, {nproc} process{'es' if nproc > 1 else ''} of {config.threads} threads"
    )


def _load_prepared_run(job: TrainJob) -> tuple[TrainConfig, TrainingData]:
    """Read the config and the training data that the parent process has just checked and written."""
    config = TrainConfig.from_json(read_json(job.run_dir.config), job.run_dir.config)
    return config, read_training(job.data, job.fold_file, job.cache, verified=True, extra=job.extra)


def _prepare_run_on_machines(job: TrainJob, given: dict[str, object], world: World) -> tuple[TrainConfig, TrainingData]:
    """Prepare a run under the user's own torchrun, possibly on several machines.

    Local rank 0 of each machine packs the patches. All ranks use the config of rank 0.

    Raises:
        RunError: this machine has another fold file than rank 0.
    """
    prepared = _prepare_run(job, given, world.world_size)[0] if world.is_main else None
    config = distributed.broadcast_from_rank_zero(world, prepared)
    assert config is not None  # rank 0 has one
    if world.local_rank == 0 and not world.is_main:
        read_training(job.data, job.fold_file, job.cache, extra=job.extra)
    distributed.max_over_ranks(world, 0)
    data = read_training(job.data, job.fold_file, job.cache, verified=True, extra=job.extra)
    for path, found, needed in (
        (job.fold_file, data.folds.digest, config.folds_sha256), (job.extra, data.extra_sha256, config.extra_sha256),
    ):  # fmt: skip
        if found != needed:
            raise RunError(f"{path}: not the file of rank 0", "", "Copy the same file to every machine")
    return config, data


def _choose_folds(folds: Folds, only: Sequence[int]) -> list[int]:
    """Return the fold numbers to train in ascending order: those in `only`, or all if it is empty.

    Raises:
        UsageError: the fold file has no fold of that number.
    """
    wrong = [fold for fold in only if not 0 <= fold < folds.k]
    if wrong:
        raise UsageError(f"--fold is {wrong[0]}", f"the fold file has folds 0 to {folds.k - 1}")
    return sorted(set(only)) or list(range(folds.k))
