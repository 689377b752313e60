"""Define the flags that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.core.config import CUDNN_MODES
from claris_kaggle.core.console import format_command, log_info
from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import DataDir, RunDir, default_cache

if TYPE_CHECKING:
    from claris_kaggle.inference.fold_models import FoldModels
    from claris_kaggle.serving.classify import ClassifyJob

# Flags of `claris train` that the session sets itself.
_SET_BY_SESSION = ("data", "folds", "run", "slides", "extra", "fold", "nproc", "cache", "time_limit")
# Flags of these whose file an input of the session can provide.
_SETTABLE_FROM_INPUT = ("--folds", "--slides", "--extra")
_NO_STATISTICS = (
    "{} has no image_statistics.json, so images are not compared with its training patches. Run claris predict on the "
    "run to add it. For an export, export the run again after that"
)
_LEDGER = Path("submissions") / "ledger.csv"


def _add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Add --data, the competition's folder."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the competition's folder, with train/ and test/"
    )


def _add_slides_flag(parser: argparse.ArgumentParser, effect: str) -> None:
    """Add --slides, the slide map. `_choose_slides` reads it."""
    parser.add_argument(
        "--slides",
        type=Path,
        metavar="FILE",
        help=f"slide map, a table with the slide of each patch id; {effect}. Give none for no map [slides.csv in the "
        "data folder]",
    )


def _suggest_next(*words: object) -> None:
    """Log the next command. In processes that torchrun started, only rank 0 logs."""
    log_info(f"next: {format_command(*words)}")


def _choose_slides(args: argparse.Namespace, data: DataDir) -> Path | None:
    """Return the slide map of --slides, else the one in the data folder; None without one, and for `none`."""
    if args.slides is not None:
        return None if str(args.slides) == "none" and not args.slides.exists() else Path(args.slides)
    if not data.slides.exists():
        return None
    log_info(f"using the slide map {data.slides}")
    return data.slides


def _add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """Add --cache, the folder of packed patches."""
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of the cache of decoded patches [claris_kaggle in your cache folder, ~/.cache]",
    )


def _add_jobs_flag(parser: argparse.ArgumentParser) -> None:
    """Add --jobs, the number of processes that read files."""
    parser.add_argument(
        "--jobs",
        type=_parse_count,
        default=0,
        metavar="N",
        help="number of processes that read files [one per core if there are many files]",
    )


def _add_poll_flag(parser: argparse.ArgumentParser, seconds: float, condition: str = "") -> None:
    """Add --poll, the polling interval. `condition` says when the command uses it."""
    parser.add_argument(
        "--poll",
        type=_parse_seconds,
        default=float(seconds),
        metavar="SECONDS",
        help=f"{condition}polling interval in seconds [{seconds}]",
    )


def _add_run_flag(parser: argparse.ArgumentParser) -> None:
    """Add --run, the run's folder."""
    parser.add_argument(
        "--run", "--run-dir", dest="run", type=Path, required=True, metavar="DIR", help="the run's folder"
    )


def _add_classify_flags(parser: argparse.ArgumentParser, max_pixels: int) -> None:
    """Add the flags of image classification, which `_load_classifier` reads."""
    parser.add_argument(
        "--views", type=int, metavar="V", help="test-time augmentation views: 1, 4 or 8 [8; with --fast 1]"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="less accurate: only the fold with the highest OOF AUC, one view, and a stride of 64 pixels",
    )
    parser.add_argument(
        "--threshold",
        default="0.5",
        metavar="P",
        help="decision threshold: a number, or oof (the threshold with the highest OOF accuracy) [0.5]",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="stride of the sliding window in pixels, for images larger than a patch [32; with --fast 64]",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=max_pixels,
        metavar="N",
        help=f"maximum image size in pixels, width times height [{max_pixels}]",
    )


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Add --nproc, --workers and --cudnn."""
    parser.add_argument(
        "--nproc", type=_parse_count, default=0, metavar="N", help="number of processes [one per GPU, else 1]"
    )
    parser.add_argument(
        "--workers",
        type=_parse_count,
        default=None,
        metavar="N",
        help="DataLoader workers per process [training on a GPU: up to 4; else 0]",
    )
    parser.add_argument(
        "--cudnn",
        choices=CUDNN_MODES,
        default=CUDNN_MODES[0],
        help="cuDNN mode on a GPU; if cuDNN fails, the next mode is tried [default]",
    )


def _add_runs_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument for one or several runs."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="folders of runs, of single folds, or of other tools' predictions",
    )


def _add_attached_input_flags(parser: argparse.ArgumentParser) -> None:
    """Add --dataset and --model-input, for more inputs of a kernel."""
    parser.add_argument(
        "--dataset", nargs="+", default=[], metavar="REF", help="more Kaggle datasets to attach, as owner/slug"
    )
    parser.add_argument(
        "--model-input",
        nargs="+",
        default=[],
        metavar="REF",
        help="Kaggle models to attach, as owner/model/framework/variation/version",
    )


def _add_named_file_flags(parser: argparse.ArgumentParser) -> None:
    """Add --weights-from, --slides-from, --folds-from and --extra-from, for training kernels."""
    files = {
        "weights": "starting weights",
        "slides": "a slide map, to keep each slide in one fold",
        "folds": "a fold file",
        "extra": "pseudo-labels of claris pseudo, with their JSON in the same dataset",
    }
    for name, what in files.items():
        parser.add_argument(
            f"--{name}-from",
            default="",
            metavar="FILE",
            help=f"{what}, as owner/dataset/file; its dataset is attached to the kernel",
        )


def _add_columns_flag(parser: argparse.ArgumentParser) -> None:
    """Add --columns, the names of columns in files of other tools."""
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN,...",
        default="",
        help="columns in files of other tools: the name in the file, then id, label, fold or probability; for example "
        "target=label,pred=probability [usual names are recognised]",
    )


def _parse_columns_flag(args: argparse.Namespace) -> dict[str, str] | None:
    """Return the columns of --columns, as from `parse_columns`; None without the flag.

    Raises:
        UsageError: the flag is not understood.
    """
    from claris_kaggle.evaluation.predictions import parse_columns

    return parse_columns(args.columns) if args.columns else None


def _add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add --json, which prints the result as one object."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_record_flag(parser: argparse.ArgumentParser) -> None:
    """Add --record, the record of pushes."""
    default = Path("runs") / "kernels.json"
    parser.add_argument(
        "--record", type=Path, default=default, metavar="FILE", help=f"JSON file that records pushes [{default}]"
    )


def _add_ledger_flag(parser: argparse.ArgumentParser) -> None:
    """Add --ledger, the list of submissions."""
    parser.add_argument(
        "--ledger",
        type=Path,
        default=_LEDGER,
        metavar="FILE",
        help=f"CSV file that records submissions and scores [{_LEDGER}]",
    )


def _parse_count(text: str) -> int:
    """Return the text as a whole number of at least 0."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid whole number: {text!r}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _parse_seconds(text: str) -> float:
    """Return the text as a number of seconds of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid number of seconds: {text!r}") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive time")
    return value


def _parse_train_flags(rest: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of `claris train` with these flags. The session sets data, folds and run itself.

    Raises:
        SystemExit: `claris train` has no such flag; the error is printed.
    """
    from claris_kaggle.cli.main import _build_parser

    required = ["train", "--data", "DIR", "--folds", "FILE.csv", "--run", "DIR"]
    return _build_parser("train").parse_args([*required, *rest])


def _check_train_flags(rest: Sequence[str]) -> tuple[str, ...]:
    """Return the flags after -- if `claris train` accepts them. A session would report an error only an hour later.

    Raises:
        UsageError: the session sets one of them itself, or a value is invalid.
        SystemExit: `claris train` has no such flag; the error is printed.
    """
    from claris_kaggle.core.config import apply_preset, read_given_flags

    defaults, given = _parse_train_flags([]), _parse_train_flags(rest)
    conflicting = [
        "--" + name.replace("_", "-") for name in _SET_BY_SESSION if vars(given)[name] != vars(defaults)[name]
    ]
    if conflicting:
        replacements = [
            f"{flag}-from owner/dataset/file before --" for flag in conflicting if flag in _SETTABLE_FROM_INPUT
        ]
        hint = f"Give {' and '.join(replacements)}" if replacements else "Remove it"
        raise UsageError(f"{', '.join(conflicting)} after --", "the session sets this itself", hint)
    apply_preset(read_given_flags(given))
    return tuple(rest)


def _require_session(text: str) -> None:
    """Check the time limit of a session.

    Raises:
        UsageError: it is invalid, or not below Kaggle's limit; the message names both.
    """
    from claris_kaggle.core.time_limit import parse_duration
    from claris_kaggle.kaggle.kernel_push import MAX_SESSION_TEXT

    if parse_duration(text) >= parse_duration(MAX_SESSION_TEXT):
        raise UsageError(
            f"--time-limit is {text}", f"Kaggle ends a session at {MAX_SESSION_TEXT}", "Use at most 11h20m"
        )


def _require_inputs(args: argparse.Namespace) -> None:
    """Check the references of datasets and models; see `require_references`."""
    from claris_kaggle.kaggle.kernel_source import require_references

    require_references(args.dataset, "--dataset", (2, 3), "owner/slug")
    require_references(args.model_input, "--model-input", (5,), "owner/model/framework/variation/version")


def _read_named_files(args: argparse.Namespace) -> dict[str, str]:
    """Return the input files of a session by the names of its settings, after a check against the other flags.

    Raises:
        UsageError: a name is not owner/dataset/file, or the flags after -- name other weights.
    """
    from claris_kaggle.core.config import apply_preset, read_given_flags
    from claris_kaggle.kaggle.kernel_source import require_file_name

    named = {name: str(getattr(args, name)) for name in ("weights_from", "slides_from", "folds_from", "extra_from")}
    for name, value in named.items():
        if value:
            require_file_name(value, "--" + name.replace("_", "-"))
    if named["weights_from"]:
        given = read_given_flags(_parse_train_flags(args.rest))
        if "weights" in given:
            what = f"--weights-from {named['weights_from']} and --weights {given['weights']} after --"
            raise UsageError(what, "training starts from only one of them", "Remove one of them")
        apply_preset({**given, "weights": named["weights_from"]})
    return named


def _open_data(args: argparse.Namespace) -> DataDir:
    """Return the competition's folder, after a check that its four parts exist."""
    return DataDir(args.data).require()


def _open_run(path: Path) -> RunDir:
    """Return the run's folder as an absolute path, so that child processes find it."""
    return RunDir(path.absolute())


def _choose_cache_dir(args: argparse.Namespace) -> Path:
    """Return the folder of packed patches."""
    return args.cache or default_cache()


def _load_classifier(args: argparse.Namespace) -> tuple[FoldModels, ClassifyJob]:
    """Return the networks of --run and the settings of the classification. Checks the flags before it reads weights."""
    from claris_kaggle.inference.fold_models import load_trained
    from claris_kaggle.serving.classify import FAST_STRIDE, ClassifyJob

    job = ClassifyJob(max_pixels=args.max_pixels)
    if args.fast:
        job = replace(job, views=1, stride=FAST_STRIDE)
    given = {name: getattr(args, name) for name in ("views", "stride") if getattr(args, name) is not None}
    job = replace(job, **given)
    trained = load_trained(args.run)
    if trained.statistics is None:
        log_info(_NO_STATISTICS.format(trained.name))
    if args.fast:
        trained = trained.only_best_fold()
    return trained, replace(job, threshold=_choose_threshold(args.threshold, trained))


def _choose_threshold(text: str, trained: FoldModels) -> float:
    """Return the given number, or the best threshold on the run's own OOF predictions.

    Raises:
        UsageError: it is not a number, or it is `oof` and the run has no OOF predictions.
    """
    if text != "oof":
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"--threshold is {text!r}", "expected a number between 0 and 1, or oof") from None
    found = trained.metric("best_threshold")
    if found is None:
        raise UsageError(f"--threshold is oof, and {trained.name} has no OOF predictions", "", "Run claris predict")
    return found
