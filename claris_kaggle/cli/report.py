"""Write one HTML page about one or several runs: metrics with intervals, curves, images of errors, configs.

The page is a single file without external resources.

example:
  claris report runs/first --out report.html --data data
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options
from claris_kaggle.core.errors import UsageError

if TYPE_CHECKING:
    from claris_kaggle.core.paths import RunDir

HELP = "write an HTML report of one or several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_runs_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the competition's folder: the page then shows images of errors, and uses its slides.csv",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="cache of decoded patches, to read the images from")
    options._add_columns_flag(parser)
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help=f"CSV file that records submissions and scores [{options._LEDGER}, if it exists]",
    )


def run(args: argparse.Namespace) -> None:
    """Write the page, print its path, and log the next command.

    Raises:
        UsageError: the named ledger does not exist, or --columns is not understood.
    """
    if args.ledger and not args.ledger.exists():
        raise UsageError(f"--ledger {args.ledger}: no such file", "", "Check the path, or remove --ledger")
    data = options._open_data(args) if args.data else None
    from claris_kaggle.reporting.report import write_report

    columns = options._parse_columns_flag(args)
    runs = [options._open_run(path) for path in args.runs]
    ledger = args.ledger or options._LEDGER
    print(write_report(runs, args.out, data=data, cache=args.cache, ledger=ledger, columns=columns))
    named = ["--columns", args.columns] if args.columns else []
    if args.data is None:
        options._suggest_next("report", *args.runs, "--out", args.out, *named, "--data", "DIR")
    elif _have_same_folds(runs):
        options._suggest_next("ensemble", *args.runs, *named, "--data", args.data, "--out", "submission.csv")


def _have_same_folds(runs: Sequence[RunDir]) -> bool:
    """Return True if there is one run, or all have a copy of the same fold file, so that `ensemble` accepts them."""
    from claris_kaggle.core.files import sha256_file
    from claris_kaggle.core.paths import FoldRunDir, recognise_fold

    found = [recognise_fold(run) for run in runs]
    if len(runs) == 1 or not all(run.folds.exists() for run in found):
        return len(runs) == 1
    return len({(sha256_file(run.folds), run.root.name if isinstance(run, FoldRunDir) else "") for run in found}) == 1
