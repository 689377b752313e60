"""Write one self-contained HTML page of a run or several: figures with intervals, curves, errors as pictures, configs.

example:
  claris report runs/first --out report.html --data data
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
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the competition's folder: errors are then shown as pictures"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of packs to take the pictures from")
    options.add_ledger(parser)


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path."""
    data = options.data_dir(args) if args.data else None
    from claris_kaggle.report import write_report

    runs = [options.run_dir(path) for path in args.runs]
    print(write_report(runs, args.out, data=data, cache=args.cache, ledger=args.ledger))
