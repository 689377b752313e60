"""Check a submission against the sample, or compare several: correlations, largest differences, outliers.

example:
  claris submission check submission.csv --data data
  claris submission compare first.csv second.csv --runs runs/first runs/second
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import DataDir

if TYPE_CHECKING:
    from claris_kaggle.ensembling.comparison import SubmissionPair

HELP = "check a submission, or compare several"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("action", choices=["check", "compare"], help="what to do")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="submission file; two or more for compare")
    parser.add_argument("--data", type=Path, metavar="DIR", help="check: the folder with sample_submission.csv")
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN_DIR",
        help="compare: run folder of each file, in the same order",
    )
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Check the file and print a summary, or compare the files."""
    if args.action == "compare":
        _print_comparison(args)
        return
    if args.runs:
        raise UsageError("--runs", "this flag is only for submission compare", "Remove it, or use submission compare")
    if args.data is None or len(args.files) != 1:
        found = "no --data" if args.data is None else f"{len(args.files)} files"
        raise UsageError(found, "check needs one file and --data DIR", "Use submission compare for several")
    data = DataDir(args.data)
    if not data.sample.exists():
        found = f"{args.data}: no {data.sample.name} there"
        raise UsageError(found, "expected the folder with the sample submission", "Give that folder as --data DIR")
    import json
    from dataclasses import asdict

    from claris_kaggle.data.tables import read_sample
    from claris_kaggle.ensembling.submission_file import check_submission

    path = args.files[0]
    summary = check_submission(path, read_sample(data.sample))
    if args.json:
        print(json.dumps({"file": str(path), **asdict(summary)}))
        return
    values = f"{summary.min:.4g} to {summary.max:.4g}, mean {summary.mean:.4g}"
    order = "" if summary.sample_order else ", not in the sample's order (Kaggle joins by id)"
    tied = f", but {summary.tied:,} rows are tied" if summary.tie_remark else ""
    print(f"{path}: {summary.rows:,} rows, {values}{order}: valid{tied}")
    if summary.tie_remark:
        log_info(f"{path}: {summary.tie_remark}")


def _print_comparison(args: argparse.Namespace) -> None:
    """Print the comparison of the files."""
    if args.data is not None:
        raise UsageError("--data", "it belongs to check; compare uses the ids of the files", "Remove it")
    import json

    from claris_kaggle.ensembling.comparison import compare_submissions

    result = compare_submissions(args.files, [options._open_run(path) for path in args.runs])
    if args.json:
        print(json.dumps(result.to_json()))
        return
    for pair in result.pairs:
        _print_pair(pair)
    for remark in result.remarks:
        print(remark)
    if blend := result.blend:
        for remark in blend.remarks:
            print(remark)
        low, high = blend.gain.interval
        gain = f"{blend.gain.difference:+.5f} ({low:+.5f} to {high:+.5f})"
        print(f"mean of all: {blend.auc_name} {blend.mean:.5f}; gain over the best run, {blend.best}: {gain}")


def _print_pair(pair: SubmissionPair) -> None:
    """Print the correlation of two files, the remark about them, and the patches with the largest differences."""
    print(f"{pair.a} and {pair.b}: rank correlation {pair.rank_correlation:.4f}")
    if pair.remark:
        print(f"  {pair.remark}")
    for row in pair.largest_differences:
        print(f"  {row.id}  {row.a:.4f}  {row.b:.4f}  percentile ranks differ by {row.rank_difference:.0%}")
