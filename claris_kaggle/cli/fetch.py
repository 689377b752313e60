"""Fetch the competition's files through the Kaggle API; an interrupted download is resumed.

Needs a Kaggle token. Accept the competition's rules on its web page first.
With --slides, also stores a slide map as slides.csv in the folder, where the other commands find it.

example:
  claris fetch --out data
  claris fetch --out data --slides owner/dataset
  claris fetch --out data --slides patch_id_wsi.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "download the competition's files from Kaggle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="folder to create [data]")
    parser.add_argument(
        "--slides",
        metavar="REF",
        help="store this slide map, too: a Kaggle dataset as owner/dataset or owner/dataset/file, or a file [none]",
    )


def run(args: argparse.Namespace) -> None:
    """Fetch the slide map, then the files, and print the folder. A wrong name is found before 7 GB are downloaded."""
    import contextlib

    from claris_kaggle.kaggle.download import fetch_data, find_slides, store_slides

    with find_slides(args.slides) if args.slides else contextlib.nullcontext() as slides:
        data = fetch_data(args.out.absolute())
        if slides:
            store_slides(slides, data)
    print(args.out)
    options._suggest_next("folds", "--data", args.out, "--out", "folds/five.csv")
