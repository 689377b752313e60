"""Average the folds of one run, or several runs as well, and write a checked submission.

Several runs must share one fold file. Weights are scored on folds that they were not fitted on, so
the printed figures do not flatter. A run may also be a folder with no more than oof.csv
(id,label,fold,probability) and test.csv (id,probability), from any other tool.

example:
  claris ensemble runs/first --data data --out submission.csv
  claris ensemble runs/first runs/second --data data --out submission.csv --method auto
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from claris_kaggle.cli import options
from claris_kaggle.console import say

HELP = "folds of one run, or several runs, to a submission"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folders with their predictions")
    options.add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="submission to write")
    parser.add_argument(
        "--method", default="mean", metavar="NAME",
        help="mean, logit, rank, logloss, auc, greedy, stack, or auto: the best where that is sure, else mean [mean]",
    )  # fmt: skip
    parser.add_argument("--only-sound", action="store_true", help="leave out runs that something speaks against")
    parser.add_argument("--calibrate", action="store_true", help="scale the result by a temperature fitted on OOF")
    parser.add_argument("--run", type=Path, metavar="DIR", help="keep the ensemble as a run of its own there")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Write the submission and print its path and the OOF figures."""
    data = options.data_dir(args)
    import json

    from claris_kaggle.submission import submit_runs

    result = submit_runs(
        [options.run_dir(path) for path in args.runs], data, args.out, method=args.method,
        only_sound=args.only_sound, calibrate=args.calibrate, keep=options.run_dir(args.run) if args.run else None,
    )  # fmt: skip
    tell(result["ensemble"])
    if args.json:
        print(json.dumps(result))
        return
    for name, figures in result["runs"].items():
        print(f"{name}: {line(figures)}")
    if len(result["runs"]) > 1:
        show_methods(result)
    print(result["submission"])


def line(figures: dict[str, Any]) -> str:
    """The figures that matter, in a line."""
    low, high = figures["auc_interval"]
    return f"OOF AUC {figures['auc']:.4f} ({low:.4f} to {high:.4f}), accuracy {figures['accuracy']:.4f}"


def tell(evidence: dict[str, Any]) -> None:
    """What was noticed about the runs, on stderr."""
    for name, text in evidence["remarks"].items():
        left_out = "left out" if name in evidence["left_out"] else "kept; --only-sound leaves it out"
        say(f"{name}: {text} ({left_out})")
    for name, other in evidence["copies"].items():
        say(f"{name}: the same predictions as {other}; counted once")


def show_methods(result: dict[str, Any]) -> None:
    """The chosen method with its weights, beside what the others scored."""
    evidence = result["ensemble"]
    for one, others in evidence["correlations"].items():
        for other, value in others.items():
            if one < other:
                print(f"rank correlation of {one} and {other}: {value:.4f}")
    for name, tried in evidence["methods"].items():
        low, high = tried["gain"]["interval"]
        gain = (
            "" if name == "mean" else f", over the mean {tried['gain']['difference']:+.5f} ({low:+.5f} to {high:+.5f})"
        )
        print(f"{name}: nested OOF AUC {tried['auc']:.5f}{gain}")
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in evidence["weights"].items())
    print(f"taken: {result['method']} ({weights})")
    print(f"together: {line(result['oof'])}")
