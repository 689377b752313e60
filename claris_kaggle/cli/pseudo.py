"""Write pseudo-labels for a second round of training: the test patches that the networks predict with confidence.

Fold k of the second round trains only on what fold k's networks predicted, so its OOF predictions stay out-of-fold.
Several runs must share one fold file, and are averaged fold by fold.

example:
  claris pseudo runs/first --data data --out pseudo.csv
  claris train --data data --folds folds/five.csv --run runs/round2 --extra pseudo.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import format_count, name_few

HELP = "write pseudo-labels of test patches for a second round of training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folders of runs with the same folds")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the competition's folder; only sample_submission.csv is read",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="file to write")
    parser.add_argument(
        "--confidence", type=float, default=0.99, metavar="P",
        help="minimum probability of the predicted class, above 0.5 and at most 1 [0.99]",
    )  # fmt: skip
    parser.add_argument(
        "--balance",
        action="store_true",
        help="keep the same number of patches of both classes: the most confident ones",
    )
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Write the file, and print the number of patches of each fold and class."""
    import json

    from claris_kaggle.core.paths import DataDir
    from claris_kaggle.ensembling.pseudo_labels import make_pseudo_labels

    runs = [options._open_run(path) for path in args.runs]
    summary = make_pseudo_labels(runs, DataDir(args.data), args.out, confidence=args.confidence, balanced=args.balance)
    single = [str(fold.fold) for fold in summary.folds if not fold.benign or not fold.malignant]
    if single:
        log_info(
            f"warning: {format_count(len(single), 'fold')} ({name_few(single)}) without pseudo-labels of one class, "
            "which biases a training on them. A lower --confidence may find patches of both classes"
        )
    if args.json:
        print(json.dumps(summary.to_json()))
        return
    print("fold  benign  malignant")
    for fold in summary.folds:
        print(f"{fold.fold:<4}  {fold.benign:>6,}  {fold.malignant:>9,}")
    print(f"{summary.file}: of {summary.test_patches:,} test patches")
