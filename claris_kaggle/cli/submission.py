"""Check a submission against the sample: ids, values, header, nothing missing and nothing besides.

example:
  claris submission check submission.csv --data data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "check a submission"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("action", choices=["check"], help="what to do")
    parser.add_argument("file", type=Path, metavar="FILE", help="the submission")
    options.add_data(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Check the file and print what it holds."""
    data = options.data_dir(args)
    import json

    from claris_kaggle.submission import check_submission
    from claris_kaggle.tables import read_sample

    facts = check_submission(args.file, read_sample(data.sample))
    if args.json:
        print(json.dumps({"file": str(args.file), **facts}))
        return
    spread = f"{facts['min']:.4g} to {facts['max']:.4g}, mean {facts['mean']:.4g}"
    order = "" if facts["sample_order"] else ", not in the sample's order (Kaggle joins by id)"
    print(f"{args.file}: {facts['rows']:,} rows, {spread}{order}: good")
