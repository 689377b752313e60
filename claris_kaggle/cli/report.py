"""Write one self-contained HTML page of a run or several: figures, curves, ROC, folds, configs.

example:
  claris report runs/first --out report.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "an HTML page of a run or several"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folders with their predictions")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="page to write")


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from claris_kaggle.report import write_report

    print(write_report([options.run_dir(path) for path in args.runs], args.out))
