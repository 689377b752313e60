"""Fetch the competition's files through the Kaggle API; an interrupted download is resumed.

Needs a Kaggle token. Accept the competition's rules on its web page first.

example:
  claris fetch --out data
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "download the competition's files from Kaggle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="folder to create [data]")


def run(args: argparse.Namespace) -> None:
    """Fetch the files, and print the folder."""
    from claris_kaggle.kaggle.download import fetch_data

    fetch_data(args.out.absolute())
    print(args.out)
