"""Check a submission, submit it, wait for its score, and record both in the ledger.

A file is submitted only once. A second call finds the earlier submission.

example:
  claris submit submission.csv --data data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "submit a file and wait for its score"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the submission")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with sample_submission.csv [downloaded from Kaggle]"
    )
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the score")
    options._add_poll_flag(parser, 10)
    options._add_ledger_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Submit the file, and print the ledger's line."""
    import json
    import tempfile

    from claris_kaggle.core.files import explain_disk_errors
    from claris_kaggle.data import tables
    from claris_kaggle.kaggle.download import fetch_file
    from claris_kaggle.kaggle.submit import MAX_SCORE_WAIT, submit_file

    with explain_disk_errors(args.file):  # before anything is downloaded
        args.file.open("rb").close()
    with tempfile.TemporaryDirectory() as temporary:
        sample = (args.data or Path(temporary)) / "sample_submission.csv"
        if args.data is None:
            fetch_file(sample.name, sample.parent)
        ids = tables.read_sample(sample)
    entry = submit_file(args.file, ids, args.ledger, wait=0 if args.no_wait else MAX_SCORE_WAIT, poll=args.poll)
    if args.json:
        print(json.dumps(entry))
    else:
        scores = f"public {entry.get('public') or '?'}, private {entry.get('private') or '?'}"
        print(f"submission {entry['ref']}: {entry['status'].lower()}, {scores}")
