"""Download the output of a pushed kernel version and verify every file.

example:
  claris pull --out runs/kaggle
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.cli import options

HELP = "download a kernel's output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("ref", nargs="?", default="", metavar="REF", help="kernel, as owner/slug [the last one pushed]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    options._add_record_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Fetch the output, and print a summary.

    Raises:
        KaggleError: the session failed; its finished work is fetched nevertheless.
    """
    import json

    from claris_kaggle.kaggle import kernel_output, kernel_push
    from claris_kaggle.kaggle.session import FAILED

    kernel = kernel_push.find_recorded_push(args.record, args.ref)
    output = kernel_output.pull_with_retries(kernel, args.out)
    result = {"out": str(args.out), "status": output.status, "files": list(output.files)}
    print(json.dumps(result) if args.json else f"{args.out}: {len(output.files)} files, {output.status}")
    if output.status == FAILED:
        raise kernel_output.explain_failed_session(kernel, output, args.out)
