"""Check on this machine, before the first push, what a session would refuse on Kaggle.

The network makes a training step here. Tables and weights are checked if a copy of them is in the current folder, under
the name or the path that a `--…-from` flag names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.config import TrainConfig, parse_config_flags
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError, UsageError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import SPLIT_AGAIN_HINT, Folds, read_folds, require_together
from claris_kaggle.data.fold_split import make_folds
from claris_kaggle.data.prepare import read_training_folds
from claris_kaggle.data.pseudo_file import read_pseudo_file
from claris_kaggle.kaggle.kernel_source import KernelSettings
from claris_kaggle.kaggle.launch_state import _DEFAULT_FOLDS, Plan, _Launch
from claris_kaggle.kaggle.session_inputs import _FileSettings

# A session has two T4 GPUs. A step needs two patches for each of them.
_SESSION_GPUS = 2
# Where `claris fetch` puts the competition's files.
_LOCAL_DATA = DataDir(Path("data"))
_NOT_WEIGHT_SUFFIXES = (
    ".zip", ".gz", ".7z", ".rar", ".h5", ".hdf5", ".keras", ".onnx", ".tflite", ".csv", ".json", ".txt",
)  # fmt: skip
_NOT_TABLE_SUFFIXES = (
    ".xlsx", ".xls", ".ods", ".parquet", ".feather", ".pkl", ".pickle", ".npy", ".json", ".pdf", ".h5",
)  # fmt: skip


def check_session(job: str, settings: KernelSettings) -> None:
    """Raise an error if a session with these settings would fail at its start.

    Args:
        job: train, predict or ensemble.
        settings: the settings of the kernel.
    Raises:
        UsageError: a setting is wrong; the message names the flag.
        ClarisError: a copy of a named file in the current folder is not what the session needs.
    """
    if job == "train":
        _check_training(settings, settings.flags, settings.folds, resumed=bool(settings.inputs))
    elif not (settings.inputs or settings.datasets or settings.models):
        found = f"push {job} without --input: the session has no run"
        raise UsageError(found, "expected the output of training kernels", "Give --input owner/slug")


def _check_first_push(launch: _Launch) -> None:
    """Check the sessions of a launch as `check_session` does, unless one of them may have been pushed.

    Raises:
        ClarisError: as in `check_session`.
    """
    if not any(session.push_attempted or session.version for part in launch.sessions for session in part):
        check_plan(launch.plan)


def check_plan(plan: Plan) -> None:
    """Check the sessions of a launch as `check_session` does.

    Raises:
        ClarisError: as in `check_session`.
    """
    _check_training(plan, plan.flags, [fold for part in plan.parts for fold in part], every=True)


def _check_training(
    files: _FileSettings, flags: Sequence[str], folds: Sequence[int], *, resumed: bool = False, every: bool = False
) -> None:
    """Check the recipe of training sessions, their folds, and the copies of their files.

    Args:
        files: the settings that name files.
        flags: flags for `claris train`.
        folds: the fold numbers to train; empty for all.
        resumed: the session may take its folds from an earlier run.
        every: the sessions must train every fold.
    Raises:
        ClarisError: as in `check_session`.
    """
    from claris_kaggle.training.setup import new_config

    config = new_config(parse_config_flags(flags, files.weights_from))
    copies = {name: path for name, value in files.named_files.items() if (path := _find_copy(value))}
    _check_recipe(config, files)
    _require_tables(files)
    try:
        split = _check_tables(copies)
        k = split.k if split else 0 if files.folds_from or resumed else _DEFAULT_FOLDS
        _require_folds(folds, k, copies.get("folds_from", files.folds_from or "the default fold file"), every=every)
        weights = copies.get("weights_from")
        _check_network_once(config, weights)
        _require_memory(config)
    except ClarisError as error:
        if not any(error.found.startswith(str(path)) for path in copies.values()):
            raise
        hint = f"{error.hint}. Or rename it, if it is not a copy of the file on Kaggle".removeprefix(". ")
        raise type(error)(error.found, error.expected, hint) from error
    if copies:
        log_info(f"checked before the push: {', '.join(map(str, copies.values()))}")


def _find_copy(name: str) -> Path | None:
    """Return the copy of owner/dataset/file in the current folder; None if there is none."""
    parts = name.split("/")
    candidates = [Path(*parts), Path(*parts[1:]), Path(parts[-1])] if len(parts) >= 3 else []
    return next((path for path in candidates if path.is_file()), None)


def _check_recipe(config: TrainConfig, files: _FileSettings) -> None:
    """Check for options that a machine with two T4 GPUs does not support, and for files that only this machine has.

    Raises:
        UsageError: names the flag.
    """
    from claris_kaggle.models.sources import require_imagenet

    if config.precision == "bf16":
        raise UsageError("--precision is bf16, which a T4 does not support", "", "Give fp16, or leave it out")
    if 0 < config.batch_size < 2 * _SESSION_GPUS:
        expected = f"a session with {_SESSION_GPUS} GPUs needs at least {2 * _SESSION_GPUS}"
        raise UsageError(f"--batch-size is {config.batch_size}", expected, "Give a larger one")
    if config.extra_weight != TrainConfig.extra_weight and not files.extra_from:
        raise UsageError("--extra-weight without --extra-from", "it weights pseudo-labels", "Give --extra-from")
    if files.weights_from.lower().endswith(_NOT_WEIGHT_SUFFIXES):
        found = f"--weights-from {files.weights_from}: not a weight file by its name"
        raise UsageError(found, "expected .safetensors or .pth", "Unpack or convert it")
    if config.model.startswith("local-dir:"):
        found = f"--model is {config.model}, a folder that a session does not have"
        raise UsageError(found, "", "Give hf-hub:OWNER/NAME, or a name of timm")
    if config.weights == "imagenet":
        require_imagenet(config.model)
    elif config.weights.startswith("/kaggle/") and not _attached_names(files) & {*config.weights.split("/")}:
        found = f"--weights is {config.weights}, and no input of that name is attached"
        raise UsageError(found, "", "Give --weights-from owner/dataset/file, which attaches it")
    elif config.weights != "none" and not files.weights_from and not config.weights.startswith("/kaggle/"):
        found = f"--weights is {config.weights}, a file that a session does not have"
        raise UsageError(found, "", "Put it in a dataset, and give --weights-from owner/dataset/file")


def _attached_names(files: _FileSettings) -> set[str]:
    """Return the names of the inputs of a session, without their owners."""
    kinds = ("datasets", "models", *(["inputs"] if isinstance(files, KernelSettings) else []))
    return {name.split("/")[1] for kind in kinds for name in getattr(files, kind)}


def _require_tables(files: _FileSettings) -> None:
    """Raise if the name of a slide map, fold file or file of pseudo-labels shows that it is not a CSV.

    Raises:
        UsageError: names the flag.
    """
    for name, value in files.named_files.items():
        if name != "weights_from" and value.lower().endswith(_NOT_TABLE_SUFFIXES):
            found = f"--{name.replace('_', '-')} {value}: not a CSV file by its name"
            raise UsageError(found, "", "Save the table as CSV, and put that into the dataset")


def _require_memory(config: TrainConfig) -> None:
    """Raise if a step needs more memory than a T4 has, even without the safety margin.

    Raises:
        UsageError: names the largest batch size that should fit.
    """
    from claris_kaggle.models.cost import T4_GIGABYTES, run_cost, run_step_gigabytes

    needed = run_step_gigabytes(config, _SESSION_GPUS)
    if config.batch_size and needed > T4_GIGABYTES:
        found = f"--batch-size {config.batch_size} needs about {needed:.0f} GB on each of {_SESSION_GPUS} GPUs"
        largest = _SESSION_GPUS * run_cost(config, config.precision).largest_batch_size()
        raise UsageError(found, f"a T4 has {T4_GIGABYTES:g} GB", f"At most {largest} should fit")


def _require_folds(folds: Sequence[int], k: int, source: object, *, every: bool) -> None:
    """Raise if one of the fold numbers is not below `k`, or with `every` if one is missing.

    Args:
        folds: the fold numbers to train; empty for all.
        k: number of folds of the fold file; 0 if it is not known.
        source: names the fold file in messages.
        every: each fold must be among `folds`. A launch cannot submit a run without some of its folds.
    Raises:
        UsageError: names the first such fold.
    """
    if every and folds and not k:
        log_info(f"the kernels train folds 0 to {max(folds)}: {source} must have exactly these folds")
    hint = "Leave out --per-fold, or list each fold once in a plan" if every else "Give other folds"
    wrong = [fold for fold in folds if 0 < k <= fold]
    if wrong:
        raise UsageError(f"there is no fold {wrong[0]}", f"{source} has folds 0 to {k - 1}", hint)
    missing = [fold for fold in range(k) if fold not in folds]
    if every and folds and missing:
        raise UsageError(f"no kernel trains fold {missing[0]}", f"{source} has folds 0 to {k - 1}", hint)


def _check_tables(copies: Mapping[str, Path]) -> Folds | None:
    """Check the copies of fold file, slide map and pseudo-labels against each other.

    Args:
        copies: the copies by the names of their settings.
    Returns:
        The folds; None without a copy of the fold file.
    Raises:
        ClarisError: a table has an error, or does not match another.
    """
    split = _read_split_copy(copies["folds_from"]) if "folds_from" in copies else None
    if "slides_from" in copies:
        path = copies["slides_from"]
        ids, labels = (split.ids, split.labels) if split else _read_labels_copy()
        slides = tables.read_slides(path, ids)
        if ids and not split:
            _require_slides(ids, labels, slides, path)
        if split:
            require_together(split, slides, "slide", copies["folds_from"], SPLIT_AGAIN_HINT)
    if "extra_from" in copies and split and _LOCAL_DATA.sample.is_file():
        read_pseudo_file(copies["extra_from"], split, tables.read_sample(_LOCAL_DATA.sample))
    return split


def _read_labels_copy() -> tuple[list[str], NDArray[np.int8]]:
    """Return the training ids and their labels; empty without a local copy of the competition's files."""
    return tables.read_labels(_LOCAL_DATA.labels) if _LOCAL_DATA.labels.is_file() else ([], np.empty(0, np.int8))


def _require_slides(ids: list[str], labels: NDArray[np.int8], slides: list[str], path: Path) -> None:
    """Raise if the default folds of a session cannot be made from a slide map.

    Raises:
        UsageError: there are too few slides; the message names the file.
    """
    try:
        make_folds(ids, labels, k=_DEFAULT_FOLDS, slides=slides)
    except ClarisError as error:
        raise UsageError(f"{path}: {error.found}", error.expected, "Give a map with more slides, or none") from error


def _read_split_copy(path: Path) -> Folds:
    """Return the folds in the file, checked against the training labels if there is a local copy of them.

    Raises:
        ClarisError: the file has an error, or belongs to other data.
    """
    return read_training_folds(_LOCAL_DATA, path) if _LOCAL_DATA.labels.is_file() else read_folds(path)


@functools.cache
def _check_network_once(config: TrainConfig, weights: Path | None) -> None:
    """Check that the network of a config can be trained from these weights. The runs of a plan may share a network.

    Raises:
        ClarisError: it cannot.
    """
    from claris_kaggle.training.setup import check_network

    check_network(config, weights)
