"""Average the folds of one run, or several runs as well, and write a checked submission.

example:
  claris ensemble runs/first --data data --out submission.csv
  claris ensemble runs/first runs/second --data data --out submission.csv --method rank
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "folds of one run, or several runs, to a submission"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folders with their predictions")
    options.add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="submission to write")
    parser.add_argument("--method", default="mean", help="how runs are combined: mean or rank [mean]")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Write the submission and print its path and the OOF figures."""
    data = options.data_dir(args)
    import json

    from claris_kaggle.submission import submit_runs

    result = submit_runs([options.run_dir(path) for path in args.runs], data, args.out, method=args.method)
    if args.json:
        print(json.dumps(result))
        return
    for name, figures in result["runs"].items():
        print(f"{name}: OOF AUC {figures['auc']:.4f}, accuracy {figures['accuracy']:.4f}")
    if len(result["runs"]) > 1:
        print(f"{args.method} of {len(result['runs'])} runs: OOF AUC {result['oof']['auc']:.4f}")
    print(result["submission"])
